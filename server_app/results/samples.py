"""Sample answers of a run in its results folder: rows, and what the model wrote or predicted at what time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_app.results.page.markup import Html, element, section, table, text
from task.modes import as_the_folder

GENERATIONS, PREDICTIONS = "generations.jsonl", "predictions.jsonl"
BEFORE, BEST, LAST = "before", "best", "last"  # the base, and the states of model/best and model/last
IMAGE = "data:image/png;base64,"  # how a row begins that is an image
SHOWN = 50  # in the report


@dataclass(frozen=True)
class Samples:
    """The samples in one file of a results folder, a line for each: a row, and an answer under the name of every state
    that has answered."""

    folder: Path
    file: str

    def read(self) -> list[dict[str, Any]]:
        """Return all samples; none if no state has answered."""
        path = self.folder / self.file
        if not path.exists():
            return []
        # not splitlines: texts may hold other signs that it takes for the end of a line, such as U+2028
        return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]

    def add(self, which: str, rows: Sequence[Mapping[str, Any]], answers: Sequence[object]) -> None:
        """Write the answers of a state beside those of others to the same rows."""
        lines = self.read() or [{} for _ in rows]
        self._write([{**row, **line, which: one} for row, line, one in zip(rows, lines, answers, strict=True)])

    def copy(self, which: str, other: str) -> None:
        """Write the answers of one state as those of another."""
        self._write([line | {other: line[which]} for line in self.read()])

    def _write(self, lines: Sequence[dict[str, Any]]) -> None:
        draft = self.folder / f".{self.file}"
        draft.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), encoding="utf-8")
        as_the_folder(draft)
        draft.replace(self.folder / self.file)


def generation_table(folder: Path) -> Html:
    """Return the sample generations of a results folder as HTML; nothing if there are none."""
    lines = Samples(folder, GENERATIONS).read()
    if not lines:
        return Html()
    heads = list(lines[0])
    rows = [[line.get(name, "") for name in heads] for line in lines[:SHOWN]]
    shown = table(heads, rows, "sample generations", "texts")
    return section("Sample generations", shown, _more(len(lines), GENERATIONS))


def prediction_table(folder: Path) -> Html:
    """Return the sample predictions of a results folder as HTML; nothing if there are none."""
    lines = Samples(folder, PREDICTIONS).read()
    if not lines:
        return Html()
    states = [name for name in (BEFORE, BEST) if name in lines[0]]
    rows = [[_row(line["row"]), line["label"], *(_said(line, name) for name in states)] for line in lines[:SHOWN]]
    shown = table(["test row", "label", *states], rows, "sample predictions", "texts")
    return section("Sample predictions", shown, _more(len(lines), PREDICTIONS))


def _row(row: str) -> str | Html:
    """Return a text as it is, and an image as one that is not blurred: most are of few pixels."""
    return Html(f'<img class="pixels" src="{text(row)}" alt="an image">') if row.startswith(IMAGE) else row


def _said(line: Mapping[str, Any], state: str) -> Html:
    """Return what a state predicts, with its probability."""
    label, right = line[state]["label"], line[state]["label"] == line["label"]
    said = f"{label} ({line[state]['probability']:.2f}){'' if right else ', wrong'}"
    return element("td", said, class_="" if right else "bad")


def _more(count: int, file: str) -> Html:
    return element("p", f"{count - SHOWN} more are in {file}.") if count > SHOWN else Html()
