"""Data and models given as Python objects. They are written to files once, and a run reads them like any file, also
when it is resumed."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from task.schema import ConfigError

BATCH = 1000  # rows in memory at once
DATA = "a path, a hub id, a datasets.Dataset or DatasetDict, a pandas.DataFrame, or a mapping of the keys of [data]"
MODEL = (
    "a path, a hub id, a transformers.PreTrainedModel, a pair of one and its tokenizer or processor, or a mapping of "
    "the keys of [model]"
)


def data_settings(data: Any, folder: Callable[[], Path]) -> dict[str, object]:
    """Return `data` as keys of the data table. An object is written to `folder()`.

    If an object has no split `test`, test rows are taken from `train` unless the keys say otherwise.

    Raises ConfigError.
    """
    return _settings(data, lambda given: _written_data(given, folder))


def model_settings(model: Any, folder: Callable[[], Path]) -> dict[str, object]:
    """Return `model` as keys of the model table. An object is written to `folder()`. Raises ConfigError."""
    return _settings(model, lambda given: {"name": _written_model(given, folder)})


def _settings(given: Any, write: Callable[[Any], dict[str, object]]) -> dict[str, object]:
    """Return the keys of a mapping, or the key `name` for anything else; objects are replaced by their written name."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or _is_dataset_dict(given):
        return _settings({"name": given}, write)
    name = given.get("name")
    if name is None or isinstance(name, str | Path):
        return dict(given)
    written = write(name)
    return {**written, **given, "name": written["name"]}


def _is_dataset_dict(given: Any) -> bool:
    """Return whether a mapping is a DatasetDict. Whoever has one has imported its library, which takes a second."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(given, datasets.DatasetDict)


def _written_data(data: Any, folder: Callable[[], Path]) -> dict[str, object]:
    """Write tables as parquet, one file per split, and return the keys that read them."""
    import datasets
    from pyarrow import ArrowException

    try:
        if (pandas := sys.modules.get("pandas")) and isinstance(
            data, pandas.DataFrame
        ):  # imported by whoever has a frame
            data = datasets.Dataset.from_pandas(data, preserve_index=False)
        if isinstance(data, datasets.Dataset):
            data = datasets.DatasetDict(train=data)
        if not isinstance(data, datasets.DatasetDict):
            raise ConfigError([f"data must be {DATA}, not {_kind(data)}"])
        place = folder() / "data"
        for split, rows in data.items():
            _write(rows, place / f"{split}.parquet")
    except (ArrowException, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([f"data cannot be written as parquet: {error}; images can be paths, or bytes"]) from error
    return {"name": place} if "test" in data else {"name": place, "test-split": ""}


def _write(rows: Any, path: Path) -> None:
    """Write the rows of a Dataset, including the bytes of images in separate files."""
    from datasets.table import embed_table_storage
    from pyarrow.parquet import ParquetWriter

    path.parent.mkdir(exist_ok=True)
    with ParquetWriter(path, rows.features.arrow_schema) as writer:
        for table in rows.with_format("arrow").iter(BATCH):
            writer.write_table(embed_table_storage(table))


def _written_model(model: Any, folder: Callable[[], Path]) -> Path:
    """Write a model, and its tokenizer or processor, with `save_pretrained`."""
    from transformers import PreTrainedModel

    parts = model if isinstance(model, tuple | list) else (model,)
    fits = len(parts) in (1, 2) and isinstance(parts[0], PreTrainedModel)
    if not (fits and all(hasattr(part, "save_pretrained") for part in parts)):
        raise ConfigError([f"model must be {MODEL}, not {_kind(model)}"])
    place = folder() / "model"
    for part in parts:
        part.save_pretrained(place)
    return place


def _kind(given: Any) -> str:
    """Describe a value by its type."""
    if isinstance(given, tuple | list):
        return f"a {type(given).__name__} of {', '.join(type(part).__name__ for part in given) or 'nothing'}"
    return f"a {type(given).__module__}.{type(given).__name__}"
