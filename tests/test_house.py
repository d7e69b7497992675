"""The house: imports without circles, folders and files of a size that a person overlooks."""

from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from task.extensions import NOT_EXTENSIONS

ROOT = Path(__file__).parents[1]
PACKAGES = ("task", "strategies", "server_app", "client_app", "thistledown")
AXES = {  # folders of which each public module is an extension, and is not counted
    "strategies", "strategies/wrappers", "strategies/optimizers", "task/tunings", "task/kinds", "task/data/sources",
    "task/data/partitioners", "server_app/callbacks/trackers",
}  # fmt: skip
MODULES, LINES = 14, 280
FOLDERS = sorted(
    folder.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for folder in (ROOT / package, *(ROOT / package).rglob("*"))
    if folder.is_dir() and folder.name != "__pycache__"
)
LARGER = {  # folders with more modules, and why
    "strategies/algebra": 15,  # each is a piece of arithmetic by itself
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Who imports whom, imports inside functions and for type checkers among them."""
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def circles(graph: grimp.ImportGraph) -> Iterator[list[str]]:
    """Yield the modules of every circle of imports (strongly connected components, by Tarjan)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []

    def visit(module: str) -> Iterator[list[str]]:
        number[module] = lowest[module] = len(number)
        path.append(module)
        for other in sorted(graph.find_modules_directly_imported_by(module)):
            if other not in number:
                yield from visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in path:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            circle = path[path.index(module) :]
            del path[path.index(module) :]
            if len(circle) > 1:
                yield sorted(circle)

    for module in sorted(graph.modules):
        if module not in number:
            yield from visit(module)


def test_no_imports_go_in_a_circle(graph: grimp.ImportGraph) -> None:
    assert list(circles(graph)) == []


def test_a_circle_would_be_found() -> None:
    graph = grimp.ImportGraph()
    for importer, imported in (("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("e", "a")):
        graph.add_import(importer=importer, imported=imported)
    assert list(circles(graph)) == [["a", "b", "c"]]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_has_few_modules(folder: str) -> None:
    names = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
    if folder in AXES:
        names = {name for name in names if name in NOT_EXTENSIONS or name.startswith("_")}
    assert len(names) <= LARGER.get(folder, MODULES), sorted(names)


def test_a_file_has_few_lines() -> None:
    counts = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert {name: count for name, count in counts.items() if count > LINES} == {}
