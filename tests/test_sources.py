"""Tables of text and images from files of every kind, and what is wrong with bad rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from samples import TEXTS, WORDS, config, cut, png, scans, text_columns, vision_base, write_table

from task.data import prepared
from task.data.prepared import DataError
from task.storage.store import Store


# ------------------------------------------------------------------------------------------------ tables of text
@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_text_of_every_kind_of_file(suffix: str, store: Store, words: Path, tmp_path: Path) -> None:
    file = write_table(tmp_path / f"all.{suffix}", text_columns())
    parts = prepared.prepare(config("text", name=str(file), **cut()), words, store)
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
    rows = prepared.prepare(config("text", name=str(file), max_length=4, **cut()), words, store).train
    widths = {rows.batch([row])["input_ids"].shape[1] for row in range(len(rows))}
    assert widths == {3, 4}
    assert rows.batch([])["labels"].shape == (0,)


def test_a_folder_of_files_named_after_splits(store: Store, words: Path, tmp_path: Path) -> None:
    columns = text_columns()
    write_table(tmp_path / "reviews" / "train.csv", columns)
    write_table(tmp_path / "reviews" / "test.jsonl", {name: values[:5] for name, values in columns.items()})
    settings = config("text", name=str(tmp_path / "reviews"), train_rows=4, test_rows=2, validation_fraction=0.5)
    parts = prepared.prepare(settings, words, store)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [4, 6, 2]


def test_a_validation_split_is_used_without_being_named(store: Store, words: Path, tmp_path: Path) -> None:
    columns = text_columns()
    for split in ("train", "validation", "test"):
        write_table(tmp_path / "reviews" / f"{split}.parquet", columns)
    parts = prepared.prepare(config("text", name=str(tmp_path / "reviews")), words, store)
    assert len(parts.train) == len(parts.validation) == 12


def test_given_label_names_name_numbers(store: Store, words: Path, tmp_path: Path) -> None:
    columns = text_columns() | {"label": [number % 2 for number in range(12)]}
    file = write_table(tmp_path / "all.csv", columns)
    plain = prepared.prepare(config("text", name=str(file), **cut()), words, store)
    named = prepared.prepare(config("text", name=str(file), labels="even|odd", **cut()), words, store)
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
        ("label", 1, "odd", "the label is none of good, bad: 'odd'"),
    ],
)
def test_bad_rows_are_named(
    column: str, row: int, value: object, problem: str, store: Store, words: Path, tmp_path: Path
) -> None:
    columns = text_columns()
    columns[column][row] = value
    file = write_table(tmp_path / "all.jsonl", columns)
    with pytest.raises(DataError) as error:
        prepared.prepare(config("text", name=str(file), labels="good|bad", skip_empty=False, **cut()), words, store)
    assert str(error.value) == f"{file}, row {row} (line {row + 1}), column '{column}': {problem}"


def test_numbers_are_no_text(store: Store, words: Path, tmp_path: Path) -> None:
    mixed = text_columns()
    mixed["text"][6] = 17
    file = write_table(tmp_path / "mixed.json", mixed)
    with pytest.raises(DataError, match=r"mixed\.json, row 6, column 'text': holds 17"):
        prepared.prepare(config("text", name=str(file), **cut()), words, store)
    file = write_table(tmp_path / "numbers.parquet", text_columns() | {"text": list(range(12))})
    with pytest.raises(DataError, match=r"row \d+, column 'text': no text, but \d+"):
        prepared.prepare(config("text", name=str(file), **cut()), words, store)


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
            prepared.prepare(config("text", **options), words, store)
        assert problem in str(error.value)


@pytest.mark.parametrize("name", ["bad.csv", "bad.json", "bad.jsonl", "bad.parquet", "bad.npz", "bad.txt"])
def test_files_that_are_not_what_they_say(name: str, store: Store, words: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b'\x80\x04"]\xff,\n\n{1')
    with pytest.raises(DataError, match=name):
        prepared.data_index(config("text", name=str(tmp_path / name), **cut()), store)


# ------------------------------------------------------------------------------------------------ images
@pytest.mark.parametrize("layout", ["x_train", "images"])
def test_npz(layout: str, store: Store, vision: Path, tmp_path: Path) -> None:
    images, labels = scans()
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:4], "y_test": labels[:4]}
    np.savez(tmp_path / "d.npz", **(arrays if layout == "x_train" else {"images": images, "labels": labels}))
    options = {} if layout == "x_train" else cut()
    rows = prepared.prepare(config(name=str(tmp_path / "d.npz"), **options), vision, store).test
    batch = rows.batch(np.arange(len(rows)))
    wanted = torch.from_numpy(images).float() / 255
    for pixels, label in zip(batch["pixel_values"], batch["labels"], strict=True):
        match = [row for row in range(12) if torch.allclose(wanted[row], pixels[0])]
        assert [labels[row] for row in match] == [label]


def test_npz_is_never_unpickled(store: Store, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.array([{}, {}], dtype=object), labels=np.arange(2))
    with pytest.raises(DataError, match=r"d\.npz cannot be read"):
        prepared.data_index(config(name=str(tmp_path / "d.npz"), **cut()), store)


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
    rows = prepared.prepare(
        config(name=str(file), **cut(test_fraction=0.0, validation_fraction=0.0)), vision, store
    ).train
    assert rows.inputs.values.tolist() == images[:, None].tolist()
    assert rows.labels.tolist() == labels.tolist()


def test_colour_images_are_resized_and_normalised(store: Store, tmp_path: Path) -> None:
    base = vision_base(tmp_path / "b", {"height": 4, "width": 6}, 3, image_mean=[0.5, 0.4, 0.3], image_std=[0.5] * 3)
    red = np.zeros((9, 7, 3), np.uint8) + np.array([255, 0, 51], np.uint8)
    file = write_table(tmp_path / "d.json", {"image": [red.tolist()] * 4, "label": ["a", "b"] * 2})
    settings = config(name=str(file), **cut(test_fraction=0.0, validation_fraction=0.0))
    pixels = prepared.prepare(settings, base, store).train.batch([0])["pixel_values"]
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
    parts = prepared.prepare(config(name=str(tmp_path / "pets"), validation_fraction=0.0), vision, store)
    assert parts.labels == ("a", "b", "c")
    found = {values.tobytes(): label for values, label in zip(parts.test.inputs.values, parts.test.labels, strict=True)}
    assert found == {image.tobytes(): label for image, label in zip(images, labels, strict=True)}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "the image is empty"),
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
    whole = cut(test_fraction=0.0, validation_fraction=0.0, skip_empty=False)
    with pytest.raises(DataError) as error:
        prepared.prepare(config(name=str(file), **whole), vision, store)
    assert f"{file}, row 4 (line 5), column 'image': " in str(error.value)
    assert problem in str(error.value)


def test_flat_arrays_are_no_images(store: Store, vision: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((6, 5), np.uint8), labels=np.arange(6))
    with pytest.raises(DataError, match=r"d\.npz \(train\), row \d, column 'image': an image has shape"):
        prepared.prepare(config(name=str(tmp_path / "d.npz"), **cut()), vision, store)


def test_bytes_and_paths_that_are_no_images_are_named(store: Store, vision: Path, tmp_path: Path) -> None:
    values = [png(scans()[0][0])] * 5 + [b"%!PS-Adobe EPSF"]
    file = write_table(tmp_path / "d.parquet", {"image": values, "label": [0, 1] * 3})
    whole = cut(test_fraction=0.0, validation_fraction=0.0)
    with pytest.raises(DataError, match=r"d\.parquet, row 5, column 'image': no readable image .* 15 bytes"):
        prepared.prepare(config(name=str(file), **whole), vision, store)
    file = write_table(tmp_path / "p.csv", {"image": ["lost.png"] * 4, "label": [0, 1] * 2})
    with pytest.raises(
        DataError, match=r"p\.csv, row 0 \(line 2\), column 'image': there is no image file .*lost\.png"
    ):
        prepared.prepare(config(name=str(file), **whole), vision, store)
