"""The notebooks of `examples/` run from the first cell to the last, in an empty folder, as Jupyter would run them."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest

import strategies

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
Names = dict[str, Any]


def cells(notebook: Path) -> list[dict[str, Any]]:
    return list(json.loads(notebook.read_text())["cells"])


def shown(cell: str, names: Names) -> Any:
    """Run a cell; what its last line is, if that is an expression."""
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


def quickstart(results: list[Any], names: Names) -> None:
    assert "<table>" in results[0]._repr_html_()
    assert list(results[1].index) == list(range(4))
    assert names["own"].summary["best"] > 0.8
    assert set(results[-2]) == {"upright", "level"}
    assert Path("lines", "model", "best", "README.md").is_file()


def own_csv(results: list[Any], names: Names) -> None:
    assert list(results[0].index) == list(results[-2].columns) == ["north", "south", "west"]
    assert names["outcome"].metrics[-1]["loss"] < 0.8 * names["outcome"].metrics[0]["loss"]
    assert list(results[-1]["answer"]) == ["delivery", "billing"]


def chat(results: list[Any], names: Names) -> None:
    perplexity = results[-3]["perplexity"]
    assert perplexity.iloc[-1] < 0.05 * perplexity.iloc[0]
    assert set(results[-2]["asked"]) == set(names["facts"])
    assert all(results[-2]["answer"])
    assert Path("tea", "model", "last").is_dir()


def compare_strategies(results: list[Any], names: Names) -> None:
    table = results[1]
    assert len(table) == len(names["runs"]) == len(names["by_bytes"].lines) == 3
    whole, mixed, quantized = table["bytes_up"]
    assert quantized < mixed < whole


def own_server_app(results: list[Any], names: Names) -> None:
    assert len(results[-1]) == len(names["tensors"]) > 0


def own_strategy(results: list[Any], names: Names) -> None:
    assert results[1]
    columns = results[2]
    assert list(columns[1.0]) == list(columns["fedavg"])
    assert list(columns[0.0]) != list(columns["fedavg"])


CHECKS: dict[str, Callable[[list[Any], Names], None]] = {
    "quickstart": quickstart,
    "own-csv": own_csv,
    "chat": chat,
    "compare-strategies": compare_strategies,
    "own-server-app": own_server_app,
    "own-strategy": own_strategy,
}


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[notebook.stem for notebook in NOTEBOOKS])
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__])
    matplotlib.use("Agg")
    names: Names = {}
    results = [shown("".join(cell["source"]), names) for cell in cells(notebook) if cell["cell_type"] == "code"]
    CHECKS[notebook.stem](results, names)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[notebook.stem for notebook in NOTEBOOKS])
def test_a_notebook_is_clean(notebook: Path) -> None:
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells(notebook))
    assert notebook.stat().st_size < 20_000
