"""The result pages that are in the repository follow from the numbers beside them."""

import json
import re
from pathlib import Path

import pytest
from flwr.supercore.constant import MAX_FILE_BYTES

from benchmarks import pages, records
from benchmarks.derived import derive

FILES = sorted(records.RESULTS.glob("*.json"))
PLOT = re.compile(r"!\[[^]]*]\(([^)]+)\)")

each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@each
def test_a_page_is_what_its_numbers_give(path: Path) -> None:
    assert pages.page(derive(*records.read(path))) == path.with_suffix(".md").read_text(encoding="utf-8")


@each
def test_numbers_are_one_run_a_line_and_small_enough_to_publish(path: Path, tmp_path: Path) -> None:
    """Written again they are the same file, so there is no field in it but those that are read."""
    assert path.stat().st_size < MAX_FILE_BYTES
    runs = json.loads(path.read_text())["runs"]
    lines = [line.rstrip(",") for line in path.read_text().splitlines() if line.startswith('{"setting":')]
    assert [json.loads(line) for line in lines] == runs
    records.save(tmp_path / path.name, *records.read(path))
    assert (tmp_path / path.name).read_text() == path.read_text()


def test_every_plot_is_on_a_page_and_every_page_has_numbers() -> None:
    names = {path.stem for path in FILES}
    assert {path.stem for path in records.RESULTS.glob("*.md")} == names
    shown = {plot for name in names for plot in PLOT.findall((records.RESULTS / f"{name}.md").read_text())}
    assert shown == {path.name for path in records.RESULTS.glob("*.svg")}
