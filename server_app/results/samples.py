"""Sample generations of a run in its results folder: prompts, references, and what the model wrote at what time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_app.results.page.markup import Html, element, section, table
from task.modes import as_the_folder
from task.prediction.answer import Exchange

SAMPLES = "generations.jsonl"
BEFORE, BEST, LAST = "before", "best", "last"  # the base, and the states of model/best and model/last
SHOWN = 50  # in the report


@dataclass(frozen=True)
class Samples:
    """The samples in a results folder, a line for each: `prompt`, `reference`, and an answer under the name of every
    state that has answered."""

    folder: Path

    def read(self) -> list[dict[str, Any]]:
        """Return all samples; none if no state has answered."""
        path = self.folder / SAMPLES
        if not path.exists():
            return []
        # not splitlines: texts may hold other signs that it takes for the end of a line, such as U+2028
        return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]

    def add(self, which: str, found: Sequence[Exchange]) -> None:
        """Write the answers of a state beside those of others to the same rows."""
        lines = self.read() or [{} for _ in found]
        about = [{"prompt": one.prompt, "reference": one.reference} for one in found]
        self._write([own | line | {which: one.answer} for own, line, one in zip(about, lines, found, strict=True)])

    def copy(self, which: str, other: str) -> None:
        """Write the answers of one state as those of another."""
        self._write([line | {other: line[which]} for line in self.read()])

    def _write(self, lines: Sequence[dict[str, Any]]) -> None:
        draft = self.folder / f".{SAMPLES}"
        draft.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), encoding="utf-8")
        as_the_folder(draft)
        draft.replace(self.folder / SAMPLES)


def sample_table(folder: Path) -> Html:
    """Return the samples of a results folder as HTML; nothing if there are none."""
    lines = Samples(folder).read()
    if not lines:
        return Html()
    heads = list(lines[0])
    rows = [[line.get(name, "") for name in heads] for line in lines[:SHOWN]]
    more = f"{len(lines) - SHOWN} more are in {SAMPLES}." if len(lines) > SHOWN else ""
    shown = table(heads, rows, "sample generations", "texts")
    return section("Sample generations", shown, element("p", more) if more else "")
