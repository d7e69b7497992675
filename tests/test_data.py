"""The built-in digits, the cache of prepared rows, a node's own data, and real data sets."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import config, cut, scans, text_columns, vision_base, write_table

from task.config import TaskConfig
from task.data import prepared
from task.data.prepared import DataError
from task.data.sources.digits import PARTS, digits_part
from task.storage.store import Store

ASSETS = Path(__file__).parents[2] / "shared" / "assets"


def assets(name: str) -> Path:
    if not (ASSETS / name).exists():
        pytest.skip(f"../shared/assets/{name} is not here")
    return ASSETS / name


# ------------------------------------------------------------------------------------------------ digits
def test_digits_have_four_parts_that_share_no_row() -> None:
    assert {name: len(digits_part(name)[1]) for name in PARTS} == PARTS
    assert sum(PARTS.values()) == 1797
    for name in PARTS:
        images, labels = digits_part(name)
        assert images.shape == (PARTS[name], 1, 8, 8)
        assert (images.dtype, labels.dtype, images.max()) == (np.uint8, np.int64, 16)
        shares = np.bincount(labels, minlength=10) / len(labels)
        assert abs(shares - 0.1).max() < 0.02


def test_digits_lie_on_their_side_but_for_the_public_part() -> None:
    from sklearn.datasets import load_digits

    known = {image.astype(np.uint8).tobytes() for image in load_digits().images}
    for name in PARTS:
        turns = 0 if name == "public" else -1
        upright = np.rot90(digits_part(name)[0][:, 0], turns, axes=(1, 2))
        assert all(np.ascontiguousarray(image).tobytes() in known for image in upright), name
    every = [np.rot90(digits_part(n)[0][:, 0], -(n != "public"), axes=(1, 2)) for n in PARTS]
    assert {np.ascontiguousarray(i).tobytes() for i in np.concatenate(every)} == known


def test_digits_are_prepared_with_their_own_scale(store: Store, vision: Path) -> None:
    (vision / "preprocessor_config.json").unlink()  # theirs is known
    parts = prepared.prepare(config(), vision, store)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [750, 150, 297]
    assert parts.labels == tuple("0123456789")
    batch = parts.train.batch(torch.arange(16))
    images, labels = digits_part("train")
    assert torch.equal(batch["labels"], torch.from_numpy(labels[:16]))
    expected = (torch.from_numpy(images[:16]).float() / 16 - 0.5) / 0.5
    torch.testing.assert_close(batch["pixel_values"], expected)


def test_digits_fit_a_larger_colour_model(store: Store, tmp_path: Path) -> None:
    base = vision_base(tmp_path / "b", [28, 28], 3, image_mean=[0.1, 0.2, 0.3], image_std=[1, 1, 0.5])
    pixels = prepared.prepare(config(), base, store).test.batch([0, 1])["pixel_values"]
    assert pixels.shape == (2, 3, 28, 28)
    torch.testing.assert_close(pixels[:, 0] + 0.1, pixels[:, 2] * 0.5 + 0.3)


@pytest.mark.slow
def test_prepared_rows_are_read_without_heavy_imports(store: Store, vision: Path, words: Path, tmp_path: Path) -> None:
    """All but torch: the settings name a tuning, and its file imports that."""
    file = write_table(tmp_path / "all.csv", text_columns())
    text = {"task.kind": "text-classification", "model.name": "given", "data.name": str(file), "data.test-split": ""}
    prepared.prepare(TaskConfig.read(text), words, store)
    prepared.prepare(config(), vision, store)
    code = f"""
import sys
from pathlib import Path
from task.data import prepared
from task.config import TaskConfig
from task.storage.store import Store
store = Store(Path({str(store.root)!r}))
assert len(prepared.prepare(TaskConfig.read({{}}), Path({str(vision)!r}), store).train) == 750
assert len(prepared.prepare(TaskConfig.read({text!r}), Path({str(words)!r}), store).train) > 5
heavy = {{"datasets", "transformers", "sklearn", "flwr_datasets", "peft", "pandas", "pyarrow", "PIL"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_digits_need_no_tables_or_models_the_first_time(store: Store, vision: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from task.data import prepared
from task.config import TaskConfig
from task.storage.store import Store
prepared.prepare(TaskConfig.read({{}}), Path({str(vision)!r}), Store(Path({str(store.root)!r})))
print(sorted({{"datasets", "transformers", "sklearn", "flwr_datasets", "peft"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------ cache
def test_a_second_call_reads_and_a_touched_file_is_prepared_again(
    store: Store, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_table(tmp_path / "all.csv", text_columns())
    settings = config("text", name=str(file), **cut())
    first = prepared.prepare(settings, words, store)
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "read_split", None)
        second = prepared.prepare(settings, words, store)
        assert (first.train.labels == second.train.labels).all()
        assert (first.train.inputs.ids == second.train.inputs.ids).all()
        patch.setattr(prepared, "parts_of", None)
        other = dataclasses.replace(settings, seed=7, batch_size=3)
        assert len(prepared.prepare(other, words, store).train) == len(first.train)
    os.utime(file, ns=(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "read_split", None)
        with pytest.raises(TypeError):
            prepared.prepare(settings, words, store)
    assert len(prepared.prepare(settings, words, store).train) == len(first.train)


def test_the_data_index_is_shared_by_bases(store: Store, tmp_path: Path) -> None:
    for size in (8, 16):
        base = vision_base(tmp_path / str(size), size)
        assert prepared.prepare(config(), base, store).train.inputs.values.shape[-1] == size
    assert len(list((store.root / "indexes").iterdir())) == 1
    assert len(list((store.root / "data").iterdir())) == 2


# ------------------------------------------------------------------------------------------------ a node's own data
def test_a_node_brings_a_file_or_a_folder(store: Store, words: Path, tmp_path: Path) -> None:
    settings, columns = config("text", name="served", partitioner="none"), text_columns()
    file = write_table(tmp_path / "mine.jsonl", columns)
    folder = write_table(tmp_path / "node" / "train.csv", columns).parent
    write_table(tmp_path / "node" / "notes.csv", {"x": [1]})
    for path in (file, folder):
        rows = prepared.prepare_file(settings, words, store, path, ("ugly", "good", "bad"))
        assert len(rows) == 12
        assert rows.labels.tolist() == [1, 2] * 6
        assert len(prepared.index_file(settings, store, path).train) == 12
    with pytest.raises(
        DataError, match=r"mine\.jsonl, row 1 \(line 2\), column 'label': the label is none of good, ugly: 'bad'"
    ):
        prepared.prepare_file(settings, words, store, file, ("good", "ugly"))
    with pytest.raises(DataError, match="no file or folder"):
        prepared.prepare_file(settings, words, store, tmp_path / "gone", ("good", "bad"))


def test_holdout_splits_rows_for_good(store: Store, vision: Path) -> None:
    rows = prepared.prepare(config(), vision, store).train.select(np.arange(100, 140))
    train, held = prepared.holdout(rows, 0.1, 5)
    assert (len(train), len(held)) == (36, 4)
    assert sorted([*train.indices, *held.indices]) == list(range(100, 140))
    again = prepared.holdout(rows, 0.1, 5)
    assert (again[1].indices == held.indices).all()
    assert (prepared.holdout(rows, 0.1, 6)[1].indices != held.indices).any()
    for count, fraction, sizes in [(1, 0.5, (1, 0)), (2, 0.01, (1, 1)), (2, 0.9, (1, 1)), (3, 0.0, (3, 0))]:
        halves = prepared.holdout(rows.select(range(count)), fraction, 0)
        assert (len(halves[0]), len(halves[1])) == sizes


def test_selections_of_selections(store: Store, vision: Path) -> None:
    rows = prepared.prepare(config(), vision, store).train
    some = rows.select([5, 9, 2]).select(torch.tensor([2, 0]))
    assert some.labels.tolist() == rows.labels[[2, 5]].tolist()
    assert torch.equal(some.batch([1])["pixel_values"], rows.batch([5])["pixel_values"])


def test_a_node_brings_images_to_a_task_of_digits(store: Store, vision: Path, tmp_path: Path) -> None:
    images, labels = scans()
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    rows = prepared.prepare_file(config(), vision, store, tmp_path / "mine.npz", tuple("0123456789"))
    wanted = torch.from_numpy(images[:, None]).float() / 255
    torch.testing.assert_close(rows.batch(np.arange(12))["pixel_values"], wanted)


# ------------------------------------------------------------------------------------------------ real data
def test_ag_news_with_a_real_tokenizer(store: Store) -> None:
    news, base = assets("ag_news"), assets("minilm-l6-v2")
    labels = "World|Sports|Business|Sci/Tech"
    options = {"train_rows": 60, "validation_rows": 20, "test_rows": 30, "labels": labels, "max_length": 64}
    parts = prepared.prepare(config("text", name=str(news), **options), base, store)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (60, 20, 30)
    assert parts.labels == tuple(labels.split("|"))
    batch = parts.train.batch(np.arange(60))
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[1] <= 64
    assert (batch["input_ids"][:, 0] == 101).all()
    assert set(batch["labels"].tolist()) == {0, 1, 2, 3}


def test_mnist(store: Store) -> None:
    images, base = assets("mnist/mnist.npz"), assets("vit-fashion-mnist-0.8m")
    parts = prepared.prepare(config(name=str(images), train_rows=100, test_rows=50, validation_rows=10), base, store)
    pixels = parts.test.batch(np.arange(50))["pixel_values"]
    assert pixels.shape == (50, 1, 28, 28)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert parts.labels == tuple("0123456789")
