# ruff: noqa: E501 - a table
"""Folders of images and of splits: which images, classes and files are taken for what."""

from pathlib import Path

import datasets
import pytest
from samples import config
from written import CSV, GIVEN, Case, Write, file, folder, images, picture, saved, typed

from task.data import prepared
from task.data.parts import reading_of
from task.data.prepared import DataError
from task.data.sources.base import read_split
from task.data.sources.registry import open_source
from task.storage.store import Store

META = "file_name,label\na.png,cat\nin/b.png,dog\n"
IMAGES = [
    Case("by class", images("cat/1.png", "dog/2.png", "cat/.DS_Store.png", "dog/Thumbs.db"), [("cat/1.png", "cat"), ("dog/2.png", "dog")]),
    Case("by split and class", images("Train/cat/1.png", "Train/dog/2.JPG", "val/cat/3.png"), [("cat/1.png", "cat"), ("dog/2.JPG", "dog")]),
    Case("folders in another order than the labels", images("cat/1.png", "dog/2.png"), [("cat/1.png", "cat"), ("dog/2.png", "dog")], ("dog", "cat")),
    Case("a folder that is no label", images("ant/1.png", "cat/2.png"), "row 0, column 'label': the name of a folder is none of cat, dog: 'ant'", GIVEN),
    Case("a class that is called like a split", images("train/1.png", "plane/2.png", "bus/3.png"), r"called like splits, and some are not: \['train'\] and \['bus', 'plane'\]"),
    Case("images beside classes", images("cat/1.png", "dog/2.png", "3.png"), "3.png: an image is not in a folder of its class"),
    Case("classes in classes", images("pets/cat/1.png", "pets/dog/2.png"), "an image is not in a folder of its class"),
    Case("one class", images("cat/1.png", "cat/2.png"), "one label only"),
    Case("a table", folder(file("metadata.csv", META), file("a.png", picture(1)), file("in/b.png", picture(2))), [("a.png", "cat"), ("in/b.png", "dog")]),
    Case("a table by split", folder(file("train/metadata.jsonl", '{"file_name": "a.png", "label": "cat"}\n{"file_name": "b.png", "label": "dog"}\n'), file("train/a.png", picture(1)), file("train/b.png", picture(2))), [("a.png", "cat"), ("b.png", "dog")]),
    Case("a table without labels", folder(file("metadata.csv", "file_name\na.png\n"), file("a.png", picture(1))), "has no column 'label', only 'image'"),
    Case("a row without an image", folder(file("metadata.csv", "file_name,label\na.png,cat\n,dog\nb.png,dog\n"), file("a.png", picture(1)), file("b.png", picture(2))), [("a.png", "cat"), ("b.png", "dog")]),
    Case("saved without an image", saved(datasets.Dataset.from_dict({"image": [{"bytes": picture(1), "path": "a"}, None, {"bytes": picture(2), "path": "b"}], "label": ["cat", "dog", "dog"]}).cast_column("image", datasets.Image())), [("a", "cat"), ("b", "dog")]),
    Case("a table of several splits", folder(file("metadata.csv", "file_name,label\ntrain/a.png,cat\ntest/b.png,dog\n"), file("train/a.png", picture(1)), file("test/b.png", picture(2))), "one table is about the images of several splits"),
    Case("a table of one split", folder(file("metadata.csv", "file_name,label\ntrain/a.png,cat\ntrain/b.png,dog\n"), file("train/a.png", picture(1)), file("train/b.png", picture(2))), [("train/a.png", "cat"), ("train/b.png", "dog")]),
    Case("names of files that are called like splits", folder(file("metadata.csv", "file_name,label\ntest tubes.png,cat\ntrain.png,dog\n"), file("test tubes.png", picture(1)), file("train.png", picture(2))), [("test tubes.png", "cat"), ("train.png", "dog")]),
    Case("folders called by numbers", images("0/1.png", "1/2.png"), "the name of a folder is none of cat, dog", GIVEN),
    Case("more than ten of them", images(*(f"{number}/{number}.png" for number in range(11))), [(f"{number}/{number}.png", str(number)) for number in (0, 1, 10, *range(2, 10))], tuple(map(str, range(11)))),
    Case("two tables", folder(file("metadata.csv", META), file("metadata.jsonl", "{}"), file("a.png", picture(1))), "several tables say what is on the images"),
    Case("saved images", saved(datasets.Dataset.from_dict({"image": [{"bytes": picture(1), "path": "a"}, {"bytes": picture(2), "path": "b"}], "label": ["cat", "dog"]}).cast_column("image", datasets.Image())), [("a", "cat"), ("b", "dog")]),
]  # fmt: skip


@pytest.mark.parametrize("case", IMAGES, ids=lambda case: case.name)
def test_images_are_of_the_class_that_they_lie_in(case: Case, store: Store, vision: Path, tmp_path: Path) -> None:
    path = case.write(tmp_path)
    settings = config(name="given", **case.options)
    if isinstance(case.expected, str):
        with pytest.raises(DataError, match=case.expected):
            prepared.prepare_file(settings, vision, store, path, case.labels)
        return
    rows = prepared.prepare_file(settings, vision, store, path, case.labels)
    plan = prepared.index_file(settings, store, path, case.labels)
    raw = read_split(open_source(str(path)), plan.train.split, reading_of(settings))
    seen = [value["path"] if isinstance(value, dict) else value for value in raw.values("image", plan.train.rows)]
    assert list(zip(seen, (plan.labels[code] for code in rows.labels), strict=True)) == case.expected
    shades = rows.batch(range(len(rows)))["pixel_values"][:, 0, 0, 0] * 255
    assert len(set(shades.tolist())) == len(rows)


# ---------------------------------------------------------------------- splits
@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev", "eval", "Val", "VALIDATION"])
def test_the_usual_names_of_a_validation_split_are_known(name: str, store: Store, tmp_path: Path) -> None:
    path = folder(file("Train.csv", CSV), file(f"{name}.csv", CSV), file("test.tsv", CSV.replace(",", "\t")))(tmp_path)
    plan = prepared.data_index(config("text", name=str(path)), store)
    assert [plan.parts[part].split for part in ("train", "validation", "test")] == ["Train", name, "test"]
    said = [f"{path}: split 'Train' is the train part"]
    said += [f"{path}: split '{name}' is the validation part"] if name != "validation" else []
    assert [line for line in plan.notices if "part" in line] == said


def test_two_validation_splits_are_not_chosen_from(store: Store, tmp_path: Path) -> None:
    path = folder(file("train.csv", CSV), file("val.csv", CSV), file("dev.csv", CSV), file("test.csv", CSV))(tmp_path)
    with pytest.raises(DataError, match="several splits may be 'validation': 'dev' and 'val'; keep one, or name it by"):
        prepared.data_index(config("text", name=str(path)), store)
    plan = prepared.data_index(config("text", name=str(path), validation_split="val"), store)
    assert plan.parts["validation"].split == "val"


def test_a_subset_of_a_folder_is_a_folder_in_it(store: Store, tmp_path: Path) -> None:
    path = folder(file("en/train.csv", CSV), file("de/train.csv", "text,label\ngut,pos\nfad,neg\n"))(tmp_path)
    settings = config("text", name=str(path), subset="de", test_split="", validation_fraction=0.0)
    assert "de" in open_source(str(path), "de").name
    assert len(prepared.data_index(settings, store).train) == 1
    for wrong in ("fr", "../mine/de"):
        with pytest.raises(DataError, match=r"has no folder '.*' \(data.subset\), only 'de', 'en'"):
            open_source(str(path), wrong)


TESTS = [  # how labels stand in a test part, where those of train are words or positions
    ("text,label\na,neg\nb,pos\n", None),
    ("text,label\na,0\nb,1\n", "the label is none of neg, pos: 0; where labels have names a number may mean anything"),
    ("text,label\na,good\nb,pos\n", "the label is none of neg, pos: 'good'"),
]


@pytest.mark.parametrize(("test", "problem"), TESTS)
def test_a_test_part_is_read_by_the_names_of_train(
    test: str, problem: str | None, store: Store, tmp_path: Path
) -> None:
    path = folder(file("train.csv", CSV), file("test.csv", test))(tmp_path)
    if problem is None:
        plan = prepared.data_index(config("text", name=str(path)), store)
        assert plan.parts["test"].labels.tolist() == [0, 1]
        return
    with pytest.raises(DataError, match=problem):
        prepared.data_index(config("text", name=str(path)), store)


FORMS: list[tuple[Write, Write, list[str] | str]] = [  # train and test in other forms, and what the test part is read as
    (file("train.csv", CSV), typed("test.parquet", ["pos", "neg"], [0, 1]), ["pos", "neg"]),
    (file("train.csv", CSV), typed("test.parquet", ["bad", "neg"], [1, 0]), "test.parquet, row 1, column 'label': the class name of the column's type is none of neg, pos: 'bad'"),
    (typed("train.parquet", ["pos", "neg"], [0, 1]), file("test.csv", CSV), ["pos", "neg"]),
    (typed("train.parquet", ["pos", "neg"], [0, 1]), file("test.csv", "text,label\na,1\nb,0\n"), ["neg", "pos"]),
    (typed("train.parquet", ["a", "b", "c"], [0, 1]), file("test.csv", "text,label\na,1\nb,2\n"), "0 is not among these numbers, so they may count from 1"),
    (typed("train.parquet", ["pos", "neg"], [0, 1]), typed("test.parquet", ["neg", "pos"], [0, 1]), ["neg", "pos"]),
    (file("train.csv", "text,label\na,1\nb,2\n"), typed("test.parquet", ["1", "2"], [1, 0]), ["2", "1"]),
]  # fmt: skip


@pytest.mark.parametrize(("train", "test", "expected"), FORMS)
def test_names_decide_whatever_form_they_have(
    train: Write, test: Write, expected: list[str] | str, store: Store, tmp_path: Path
) -> None:
    path = folder(train, test)(tmp_path)
    settings = config("text", name=str(path), validation_fraction=0.0)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            prepared.data_index(settings, store)
        return
    plan = prepared.data_index(settings, store)
    assert [plan.labels[code] for code in plan.parts["test"].labels] == expected


def test_an_image_folder_for_testing_is_read_by_its_names(store: Store, tmp_path: Path) -> None:
    """With a class less, numbers of folders are not those of train."""
    path = images("train/ant/1.png", "train/cat/2.png", "train/dog/3.png", "test/cat/4.png", "test/dog/5.png")(tmp_path)
    plan = prepared.data_index(config(name=str(path), validation_fraction=0.0), store)
    assert [plan.labels[code] for code in plan.parts["test"].labels] == ["cat", "dog"]
    (path / "test" / "cat").rename(path / "test" / "cow")
    with pytest.raises(DataError, match="the name of a folder is none of ant, cat, dog: 'cow'"):
        prepared.data_index(config(name=str(path), validation_fraction=0.0), store)


def test_a_test_part_counts_as_train_does(store: Store, tmp_path: Path) -> None:
    """One without the first class is in no doubt, where train has all."""
    path = folder(file("train.csv", "text,label\na,0\nb,1\nc,2\n"), file("test.csv", "text,label\na,1\nb,2\n"))(
        tmp_path
    )
    plan = prepared.data_index(config("text", name=str(path), labels="ant|cat|dog", validation_fraction=0.0), store)
    assert plan.parts["test"].labels.tolist() == [1, 2]


def test_a_card_with_names_of_classes_is_followed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    card = "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n      class_label:\n        names:\n          '0': dog\n          '1': cat\n---\n"
    path = folder(file("train.csv", "text,label\na,0\nb,1\n"), file("README.md", card))(tmp_path)
    plan = prepared.index_file(config("text", name="given"), store, path, GIVEN)
    assert [GIVEN[code] for code in plan.train.labels] == ["dog", "cat"]


def test_an_empty_name_is_not_the_working_folder() -> None:
    with pytest.raises(DataError, match=r"data\.name is empty"):
        open_source(" ")
