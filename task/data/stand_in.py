"""Rows that stand in for those of nodes where the server has no data: read, encoded and kept as theirs are."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from task.config import TaskConfig
from task.data.prepared import prepare_file
from task.data.rows import Rows
from task.storage.store import Store

CHECKS = [[0, 255], [255, 0]]  # pixels of an image


def stand_in(config: TaskConfig, base: Path) -> Rows:
    """Two rows for the model in folder `base`: of texts a short one and one of `data.max-length` tokens.

    Raises DataError where the base does not say how rows become its inputs.
    """
    data, long = config.data, "a " * config.data.max_length
    columns: dict[str, list[object]] = {data.image_column: [CHECKS, CHECKS]}
    if config.task.kind == "text-classification":
        columns = {data.text_column: ["a", long]}
    elif config.causal:
        columns = {data.output_column: ["a", long]}
        columns |= {name: ["a", "a"] for name in (data.instruction_column, data.input_column) if name}
    if not config.causal:
        columns[data.label_column] = [data.labels[0], data.labels[-1]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
        own = replace(config, data=replace(data, id_column=""))
        return prepare_file(own, base, Store(folder / "store"), folder / "rows.jsonl", data.labels)
