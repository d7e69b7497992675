"""The notebook of `examples/` runs from its first cell to its last, in an empty folder, as Jupyter would run it."""

import ast
import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def shown(cell: str, names: dict[str, Any]) -> Any:
    """Run a cell; what its last line is, if that is an expression."""
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    results = [shown("".join(cell["source"]), names) for cell in CELLS if cell["cell_type"] == "code"]
    assert "<table>" in results[0]._repr_html_()
    assert list(results[1].index) == list(range(4))
    assert names["own"].summary["best"] > 0.8
    assert set(results[-2]) == {"upright", "level"}
    assert (tmp_path / "lines" / "model" / "best" / "README.md").is_file()


def test_the_notebook_is_clean() -> None:
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in CELLS)
    assert NOTEBOOK.stat().st_size < 20_000
