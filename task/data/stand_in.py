"""Placeholder rows for a server without data: read, encoded and stored like the rows of nodes."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from task.config import TaskConfig
from task.data.prepared import prepare_file
from task.data.rows import Rows
from task.kinds import registry as kinds
from task.storage.store import Store


def stand_in(config: TaskConfig, base: Path) -> Rows:
    """Return two rows for the model in folder `base`: for texts, a short one and one of `data.max-length` tokens.

    Raises DataError if the base does not describe its inputs.
    """
    data, columns = config.data, kinds.of(config).stand_in(config.data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
        own = replace(config, data=replace(data, id_column=""))
        return prepare_file(own, base, Store(folder / "store"), folder / "rows.jsonl", data.labels)
