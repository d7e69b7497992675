"""Sources of every kind, what is wrong with bad rows, and the cache of prepared rows."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from task import data
from task.config import TaskConfig
from task.data import DataError
from task.digits import PARTS, digits_part
from task.store import Store

ASSETS = Path(__file__).parents[2] / "shared" / "assets"
WORDS = ["good", "bad", "film", "a", "very", "dull", "bright"]
TEXTS = [("a good film", "good"), ("a very bad film", "bad"), ("bright", "good"), ("dull", "bad")] * 3


def assets(name: str) -> Path:
    if not (ASSETS / name).exists():
        pytest.skip(f"../shared/assets/{name} is not here")
    return ASSETS / name


def config(kind: str = "image", **options: object) -> TaskConfig:
    flat = {f"data.{name.replace('_', '-')}": value for name, value in options.items()}
    return TaskConfig.read({"task.kind": f"{kind}-classification", "model.name": "given", **flat})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def vision(tmp_path: Path) -> Path:
    return vision_base(tmp_path / "vision")


def vision_base(folder: Path, size: object = 8, channels: int = 1, **processor: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"image_size": size, "num_channels": channels}))
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real, tiny WordPiece tokenizer."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(specials + WORDS)}, unk_token="[UNK]")  # type: ignore[call-arg]
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("words")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=200, **names).save_pretrained(folder)
    return folder


def write_table(path: Path, columns: dict[str, list[object]]) -> Path:
    import pyarrow as pa
    from pyarrow import csv, parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    elif path.suffix == ".csv":
        csv.write_csv(pa.table(columns), path)
    else:
        parquet.write_table(pa.table(columns), path)
    return path


def text_columns() -> dict[str, list[object]]:
    return {"text": [text for text, _ in TEXTS], "label": [label for _, label in TEXTS]}


def scans(count: int = 12, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(0).integers(0, 256, (count, size, size)).astype(np.uint8)
    return values, np.arange(count) % 3


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def cut(**options: object) -> dict[str, object]:
    """Options for data without splits of its own."""
    return {"test_split": "", "validation_fraction": 0.25, "test_fraction": 0.25, **options}


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
    parts = data.prepare(config(), vision, store)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [750, 150, 297]
    assert parts.labels == tuple("0123456789")
    batch = parts.train.batch(torch.arange(16))
    images, labels = digits_part("train")
    assert torch.equal(batch["labels"], torch.from_numpy(labels[:16]))
    expected = (torch.from_numpy(images[:16]).float() / 16 - 0.5) / 0.5
    torch.testing.assert_close(batch["pixel_values"], expected)


def test_digits_fit_a_larger_colour_model(store: Store, tmp_path: Path) -> None:
    base = vision_base(tmp_path / "b", [28, 28], 3, image_mean=[0.1, 0.2, 0.3], image_std=[1, 1, 0.5])
    pixels = data.prepare(config(), base, store).test.batch([0, 1])["pixel_values"]
    assert pixels.shape == (2, 3, 28, 28)
    torch.testing.assert_close(pixels[:, 0] + 0.1, pixels[:, 2] * 0.5 + 0.3)


def test_prepared_rows_are_read_without_heavy_imports(store: Store, vision: Path, words: Path, tmp_path: Path) -> None:
    file = write_table(tmp_path / "all.csv", text_columns())
    text = {"task.kind": "text-classification", "model.name": "given", "data.name": str(file), "data.test-split": ""}
    data.prepare(TaskConfig.read(text), words, store)
    data.prepare(config(), vision, store)
    code = f"""
import sys
from pathlib import Path
from task import data
from task.config import TaskConfig
from task.store import Store
store = Store(Path({str(store.root)!r}))
assert len(data.prepare(TaskConfig.read({{}}), Path({str(vision)!r}), store).train) == 750
assert len(data.prepare(TaskConfig.read({text!r}), Path({str(words)!r}), store).train) > 5
heavy = {{"datasets", "transformers", "sklearn", "flwr_datasets", "torch", "pandas", "pyarrow", "PIL"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_digits_need_no_tables_or_models_the_first_time(store: Store, vision: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from task import data
from task.config import TaskConfig
from task.store import Store
data.prepare(TaskConfig.read({{}}), Path({str(vision)!r}), Store(Path({str(store.root)!r})))
print(sorted({{"datasets", "transformers", "flwr_datasets", "torch"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------ tables of text
@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_text_of_every_kind_of_file(suffix: str, store: Store, words: Path, tmp_path: Path) -> None:
    file = write_table(tmp_path / f"all.{suffix}", text_columns())
    parts = data.prepare(config("text", name=str(file), **cut()), words, store)
    assert parts.labels == ("bad", "good")
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [6, 3, 3]
    seen = []
    for rows in (parts.train, parts.validation, parts.test):
        batch = rows.batch(np.arange(len(rows)))
        assert batch["input_ids"].dtype == torch.int64
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            inner = ids[: int(mask.sum())][1:-1].tolist()
            assert (ids[int(mask.sum()) :] == 0).all()
            seen.append((" ".join(WORDS[number - 4] for number in inner), parts.labels[label]))
    assert sorted(seen) == sorted(TEXTS)


def test_a_batch_is_as_wide_as_its_longest_text_and_texts_are_cut(store: Store, words: Path, tmp_path: Path) -> None:
    file = write_table(tmp_path / "all.json", text_columns())
    rows = data.prepare(config("text", name=str(file), max_length=4, **cut()), words, store).train
    widths = {rows.batch([row])["input_ids"].shape[1] for row in range(len(rows))}
    assert widths == {3, 4}
    assert rows.batch([])["labels"].shape == (0,)


def test_a_folder_of_files_named_after_splits(store: Store, words: Path, tmp_path: Path) -> None:
    columns = text_columns()
    write_table(tmp_path / "reviews" / "train.csv", columns)
    write_table(tmp_path / "reviews" / "test.jsonl", {name: values[:5] for name, values in columns.items()})
    settings = config("text", name=str(tmp_path / "reviews"), train_rows=4, test_rows=2, validation_fraction=0.5)
    parts = data.prepare(settings, words, store)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [4, 6, 2]


def test_a_validation_split_is_used_without_being_named(store: Store, words: Path, tmp_path: Path) -> None:
    columns = text_columns()
    for split in ("train", "validation", "test"):
        write_table(tmp_path / "reviews" / f"{split}.parquet", columns)
    parts = data.prepare(config("text", name=str(tmp_path / "reviews")), words, store)
    assert len(parts.train) == len(parts.validation) == 12


def test_given_label_names_name_numbers(store: Store, words: Path, tmp_path: Path) -> None:
    columns = text_columns() | {"label": [number % 2 for number in range(12)]}
    file = write_table(tmp_path / "all.csv", columns)
    plain = data.prepare(config("text", name=str(file), **cut()), words, store)
    named = data.prepare(config("text", name=str(file), labels="even|odd", **cut()), words, store)
    assert (plain.labels, named.labels) == (("0", "1"), ("even", "odd"))
    assert (plain.train.labels == named.train.labels).all()


@pytest.mark.parametrize(
    ("column", "row", "value", "problem"),
    [
        ("text", 3, "", "the text is empty"),
        ("text", 5, "   ", "the text is empty"),
        ("text", 2, None, "the text is empty"),
        ("label", 4, None, "the label is missing"),
        ("label", 7, "", "the label is missing"),
        ("label", 1, "odd", "label 'odd' is none of good, bad"),
    ],
)
def test_bad_rows_are_named(
    column: str, row: int, value: object, problem: str, store: Store, words: Path, tmp_path: Path
) -> None:
    columns = text_columns()
    columns[column][row] = value
    file = write_table(tmp_path / "all.jsonl", columns)
    with pytest.raises(DataError) as error:
        data.prepare(config("text", name=str(file), labels="good|bad", **cut()), words, store)
    assert str(error.value) == f"{file}, row {row}, column '{column}': {problem}"


def test_numbers_are_no_text(store: Store, words: Path, tmp_path: Path) -> None:
    mixed = text_columns()
    mixed["text"][6] = 17
    file = write_table(tmp_path / "mixed.json", mixed)
    with pytest.raises(DataError, match=r"mixed\.json, row 6, column 'text': holds 17"):
        data.prepare(config("text", name=str(file), **cut()), words, store)
    file = write_table(tmp_path / "numbers.parquet", text_columns() | {"text": list(range(12))})
    with pytest.raises(DataError, match=r"row \d+, column 'text': no text, but \d+"):
        data.prepare(config("text", name=str(file), **cut()), words, store)


def test_what_does_not_exist_is_answered_with_what_does(store: Store, words: Path, tmp_path: Path) -> None:
    file = str(write_table(tmp_path / "all.csv", text_columns()))
    wrong = {
        "no file or folder": {"name": str(tmp_path / "gone.csv")},
        "has no split 'test', only 'train'; leave data.test-split empty": {"name": file},
        "has no column 'txt', only 'text', 'label'; did you mean 'text'?": {
            "name": file,
            "text_column": "txt",
            **cut(),
        },
        "has no column 'class'": {"name": file, "label_column": "class", **cut()},
        "has no column 'user'": {"name": file, "id_column": "user", **cut()},
        "names a label twice": {"name": file, "labels": "good|good", **cut()},
        "more than the 200 tokens": {"name": file, "max_length": 201, **cut()},
        "is a kind of file, not a dataset": {"name": "pandas"},
    }
    for problem, options in wrong.items():
        with pytest.raises(DataError) as error:
            data.prepare(config("text", **options), words, store)
        assert problem in str(error.value)


@pytest.mark.parametrize("name", ["bad.csv", "bad.json", "bad.jsonl", "bad.parquet", "bad.npz", "bad.txt"])
def test_files_that_are_not_what_they_say(name: str, store: Store, words: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b'\x80\x04"]\xff,\n\n{1')
    with pytest.raises(DataError, match=name):
        data.outline(config("text", name=str(tmp_path / name), **cut()), store)


# ------------------------------------------------------------------------------------------------ images
@pytest.mark.parametrize("layout", ["x_train", "images"])
def test_npz(layout: str, store: Store, vision: Path, tmp_path: Path) -> None:
    images, labels = scans()
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:4], "y_test": labels[:4]}
    np.savez(tmp_path / "d.npz", **(arrays if layout == "x_train" else {"images": images, "labels": labels}))
    options = {} if layout == "x_train" else cut()
    rows = data.prepare(config(name=str(tmp_path / "d.npz"), **options), vision, store).test
    batch = rows.batch(np.arange(len(rows)))
    wanted = torch.from_numpy(images).float() / 255
    for pixels, label in zip(batch["pixel_values"], batch["labels"], strict=True):
        match = [row for row in range(12) if torch.allclose(wanted[row], pixels[0])]
        assert [labels[row] for row in match] == [label]


def test_npz_is_never_unpickled(store: Store, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.array([{}, {}], dtype=object), labels=np.arange(2))
    with pytest.raises(DataError, match=r"d\.npz cannot be read"):
        data.outline(config(name=str(tmp_path / "d.npz"), **cut()), store)


@pytest.mark.parametrize("form", ["bytes", "dict", "path", "absolute", "list", "feature"])
def test_images_in_columns(form: str, store: Store, vision: Path, tmp_path: Path) -> None:
    import datasets

    images, labels = scans()
    (tmp_path / "in").mkdir()
    for number, image in enumerate(images):
        (tmp_path / "in" / f"{number}.png").write_bytes(png(image))
    values = {
        "bytes": [png(image) for image in images],
        "dict": [{"bytes": png(image), "path": None} for image in images],
        "path": [f"in/{number}.png" for number in range(12)],
        "absolute": [str(tmp_path / "in" / f"{number}.png") for number in range(12)],
        "list": images.tolist(),
        "feature": [Image.fromarray(image) for image in images],
    }
    file = tmp_path / "train.parquet"
    kind = {"image": datasets.Image()} if form == "feature" else {}
    made = datasets.Dataset.from_dict({"image": values[form], "label": labels.tolist()})
    (made.cast(datasets.Features(made.features | kind)) if kind else made).to_parquet(str(file))
    rows = data.prepare(config(name=str(file), **cut(test_fraction=0.0, validation_fraction=0.0)), vision, store).train
    assert rows.inputs.values.tolist() == images[:, None].tolist()
    assert rows.labels.tolist() == labels.tolist()


def test_colour_images_are_resized_and_normalised(store: Store, tmp_path: Path) -> None:
    base = vision_base(tmp_path / "b", {"height": 4, "width": 6}, 3, image_mean=[0.5, 0.4, 0.3], image_std=[0.5] * 3)
    red = np.zeros((9, 7, 3), np.uint8) + np.array([255, 0, 51], np.uint8)
    file = write_table(tmp_path / "d.json", {"image": [red.tolist()] * 4, "label": ["a", "b"] * 2})
    settings = config(name=str(file), **cut(test_fraction=0.0, validation_fraction=0.0))
    pixels = data.prepare(settings, base, store).train.batch([0])["pixel_values"]
    assert pixels.shape == (1, 3, 4, 6)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([1.0, -0.8, -0.2]))


def test_a_folder_of_images(store: Store, vision: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = scans()
    for split in ("train", "test"):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = tmp_path / "pets" / split / "abc"[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:02}.png").write_bytes(png(image))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    parts = data.prepare(config(name=str(tmp_path / "pets"), validation_fraction=0.0), vision, store)
    assert parts.labels == ("a", "b", "c")
    found = {values.tobytes(): label for values, label in zip(parts.test.inputs.values, parts.test.labels, strict=True)}
    assert found == {image.tobytes(): label for image, label in zip(images, labels, strict=True)}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "the image is missing"),
        ([[1, 2], [3]], "rows of pixels that differ in length"),
        ([[1, 256]], "pixels must be numbers from 0 to 255"),
        ([[0.1, 0.2]], "whole numbers from 0 to 255, not fractions"),
        ([[]], "an image has shape"),
    ],
)
def test_bad_images_are_named(value: object, problem: str, store: Store, vision: Path, tmp_path: Path) -> None:
    fill = 0.0 if "fractions" in problem else 0
    values: list[object] = [[[fill, fill + 1], [fill + 2, fill + 3]]] * 6
    values[4] = value
    file = write_table(tmp_path / "d.jsonl", {"image": values, "label": [0, 1] * 3})
    with pytest.raises(DataError) as error:
        data.prepare(config(name=str(file), **cut(test_fraction=0.0, validation_fraction=0.0)), vision, store)
    assert f"{file}, row 4, column 'image': " in str(error.value)
    assert problem in str(error.value)


def test_flat_arrays_are_no_images(store: Store, vision: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((6, 5), np.uint8), labels=np.arange(6))
    with pytest.raises(DataError, match=r"d\.npz \(train\), row \d, column 'image': an image has shape"):
        data.prepare(config(name=str(tmp_path / "d.npz"), **cut()), vision, store)


def test_bytes_and_paths_that_are_no_images_are_named(store: Store, vision: Path, tmp_path: Path) -> None:
    values = [png(scans()[0][0])] * 5 + [b"%!PS-Adobe EPSF"]
    file = write_table(tmp_path / "d.parquet", {"image": values, "label": [0, 1] * 3})
    whole = cut(test_fraction=0.0, validation_fraction=0.0)
    with pytest.raises(DataError, match=r"d\.parquet, row 5, column 'image': 15 bytes that are no readable image"):
        data.prepare(config(name=str(file), **whole), vision, store)
    file = write_table(tmp_path / "p.csv", {"image": ["lost.png"] * 4, "label": [0, 1] * 2})
    with pytest.raises(DataError, match=r"p\.csv, row 0, column 'image': there is no image file .*lost\.png"):
        data.prepare(config(name=str(file), **whole), vision, store)


# ------------------------------------------------------------------------------------------------ cache
def test_a_second_call_reads_and_a_touched_file_is_prepared_again(
    store: Store, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_table(tmp_path / "all.csv", text_columns())
    settings = config("text", name=str(file), **cut())
    first = data.prepare(settings, words, store)
    with monkeypatch.context() as patch:
        patch.setattr(data, "read_split", None)
        second = data.prepare(settings, words, store)
        assert (first.train.labels == second.train.labels).all()
        assert (first.train.inputs.ids == second.train.inputs.ids).all()
        patch.setattr(data, "_share", None)
        other = dataclasses.replace(settings, seed=7, batch_size=3)
        assert len(data.prepare(other, words, store).train) == len(first.train)
    os.utime(file, ns=(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(data, "read_split", None)
        with pytest.raises(TypeError):
            data.prepare(settings, words, store)
    assert len(data.prepare(settings, words, store).train) == len(first.train)


def test_the_outline_is_shared_by_bases(store: Store, tmp_path: Path) -> None:
    for size in (8, 16):
        base = vision_base(tmp_path / str(size), size)
        assert data.prepare(config(), base, store).train.inputs.values.shape[-1] == size
    assert len(list((store.root / "outlines").iterdir())) == 1
    assert len(list((store.root / "data").iterdir())) == 2


# ------------------------------------------------------------------------------------------------ a node's own data
def test_a_node_brings_a_file_or_a_folder(store: Store, words: Path, tmp_path: Path) -> None:
    settings, columns = config("text", name="served", partitioner="none"), text_columns()
    file = write_table(tmp_path / "mine.jsonl", columns)
    folder = write_table(tmp_path / "node" / "train.csv", columns).parent
    write_table(tmp_path / "node" / "notes.csv", {"x": [1]})
    for path in (file, folder):
        rows = data.prepare_file(settings, words, store, path, ("ugly", "good", "bad"))
        assert len(rows) == 12
        assert rows.labels.tolist() == [1, 2] * 6
        assert len(data.outline_file(settings, store, path).train) == 12
    with pytest.raises(DataError, match=r"mine\.jsonl, row 1, column 'label': label 'bad' is none of good, ugly"):
        data.prepare_file(settings, words, store, file, ("good", "ugly"))
    with pytest.raises(DataError, match="no file or folder"):
        data.prepare_file(settings, words, store, tmp_path / "gone", ("good", "bad"))


def test_holdout_splits_rows_for_good(store: Store, vision: Path) -> None:
    rows = data.prepare(config(), vision, store).train.select(np.arange(100, 140))
    train, held = data.holdout(rows, 0.1, 5)
    assert (len(train), len(held)) == (36, 4)
    assert sorted([*train.indices, *held.indices]) == list(range(100, 140))
    again = data.holdout(rows, 0.1, 5)
    assert (again[1].indices == held.indices).all()
    assert (data.holdout(rows, 0.1, 6)[1].indices != held.indices).any()
    for count, fraction, sizes in [(1, 0.5, (1, 0)), (2, 0.01, (1, 1)), (2, 0.9, (1, 1)), (3, 0.0, (3, 0))]:
        halves = data.holdout(rows.select(range(count)), fraction, 0)
        assert (len(halves[0]), len(halves[1])) == sizes


def test_selections_of_selections(store: Store, vision: Path) -> None:
    rows = data.prepare(config(), vision, store).train
    some = rows.select([5, 9, 2]).select(torch.tensor([2, 0]))
    assert some.labels.tolist() == rows.labels[[2, 5]].tolist()
    assert torch.equal(some.batch([1])["pixel_values"], rows.batch([5])["pixel_values"])


def test_a_node_brings_images_to_a_task_of_digits(store: Store, vision: Path, tmp_path: Path) -> None:
    images, labels = scans()
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    rows = data.prepare_file(config(), vision, store, tmp_path / "mine.npz", tuple("0123456789"))
    wanted = torch.from_numpy(images[:, None]).float() / 255
    torch.testing.assert_close(rows.batch(np.arange(12))["pixel_values"], wanted)


# ------------------------------------------------------------------------------------------------ real data
def test_ag_news_with_a_real_tokenizer(store: Store) -> None:
    news, base = assets("ag_news"), assets("minilm-l6-v2")
    labels = "World|Sports|Business|Sci/Tech"
    options = {"train_rows": 60, "validation_rows": 20, "test_rows": 30, "labels": labels, "max_length": 64}
    parts = data.prepare(config("text", name=str(news), **options), base, store)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (60, 20, 30)
    assert parts.labels == tuple(labels.split("|"))
    batch = parts.train.batch(np.arange(60))
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[1] <= 64
    assert (batch["input_ids"][:, 0] == 101).all()
    assert set(batch["labels"].tolist()) == {0, 1, 2, 3}


def test_mnist(store: Store) -> None:
    images, base = assets("mnist/mnist.npz"), assets("vit-fashion-mnist-0.8m")
    parts = data.prepare(config(name=str(images), train_rows=100, test_rows=50, validation_rows=10), base, store)
    pixels = parts.test.batch(np.arange(50))["pixel_values"]
    assert pixels.shape == (50, 1, 28, 28)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert parts.labels == tuple("0123456789")
