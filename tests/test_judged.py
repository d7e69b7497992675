"""Tests that compare a score, a loss or a time with a bound have the mark `judged`, so that `make test-everywhere`
tries them with other arithmetic and on a busy machine."""

import ast
from collections.abc import Iterator
from pathlib import Path

import margins
import pytest

TESTS = Path(__file__).parent
MEASURED = {  # keys of what a run has learned, or how long it took
    "accuracy", "loss", "train-loss", "perplexity", "aggregation-error", "chosen-by", "base", "best", "final",
    "server-test-accuracy", "server-test-loss", "server-test-margin", "server-validation-loss", "nodes-accuracy",
    "nodes-loss", "seconds",
}  # fmt: skip
CLOCKS = {"monotonic", "perf_counter", "process_time", "time"}
ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
Function = ast.FunctionDef


def is_measured(node: ast.AST, measured: set[str]) -> bool:
    """Return whether an expression has a measured value in it: a key, a time since another, a name that has one."""
    return any(
        (isinstance(part, ast.Subscript) and isinstance(part.slice, ast.Constant) and part.slice.value in MEASURED)
        or (isinstance(part, ast.BinOp) and isinstance(part.op, ast.Sub) and reads_clock(part.left))
        or (isinstance(part, ast.Name) and part.id in measured)
        for part in ast.walk(node)
    )


def reads_clock(node: ast.AST) -> bool:
    """Return whether an expression is a call of a clock."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS


def names_of(function: Function, measured: set[str]) -> set[str]:
    """Return the names that have measured values in a function, the given ones among them."""
    found = set(measured)
    for part in ast.walk(function):
        if isinstance(part, ast.Assign) and is_measured(part.value, found):
            found |= {name.id for target in part.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def is_a_range(compared: ast.Compare) -> bool:
    """Return whether it is `0 <= accuracy <= 1`, which is so of every accuracy."""
    bounds = (compared.left, compared.comparators[-1])
    return [bound.value for bound in bounds if isinstance(bound, ast.Constant)] == [0, 1]


def judges(function: Function, measured: set[str]) -> bool:
    """Return whether an assertion of a test orders measured values."""
    names = names_of(function, measured)
    return any(
        isinstance(part, ast.Compare)
        and any(isinstance(operator, ORDER) for operator in part.ops)
        and not is_a_range(part)
        and any(is_measured(side, names) for side in (part.left, *part.comparators))
        for assertion in ast.walk(function)
        if isinstance(assertion, ast.Assert)
        for part in ast.walk(assertion)
    )


def judging(text: str) -> Iterator[Function]:
    """Yield the tests of a module that judge by themselves, or by what another function of the module returns."""
    functions = [node for node in ast.parse(text).body if isinstance(node, Function)]
    returned = {
        function.name
        for function in functions
        for part in ast.walk(function)
        if isinstance(part, ast.Return) and part.value and is_measured(part.value, names_of(function, set()))
    }
    yield from (one for one in functions if one.name.startswith("test_") and judges(one, returned))


def is_marked(function: Function) -> bool:
    return any("judged" in ast.unparse(decorator) for decorator in function.decorator_list)


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: path.relative_to(TESTS).as_posix())
def test_a_test_that_judges_is_marked(path: Path) -> None:
    assert [one.name for one in judging(path.read_text(encoding="utf-8")) if not is_marked(one)] == []


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("assert run['final'] > run['base'] + 0.1", True),
        ("before = score()\nassert score() < before", True),
        ("began = time.monotonic()\nassert time.monotonic() - began < 3", True),
        ("assert time.monotonic() < deadline", False),
        ("assert 0 <= run['accuracy'] <= 1", False),
        ("assert run['accuracy'] == 0.5", False),
        ("assert run['bytes_up'] < 100", False),
    ],
)
def test_what_judges(lines: str, found: bool) -> None:
    body = "\n    ".join(lines.splitlines())
    module = f"def score():\n    return evaluate(model)['loss']\n\ndef test_it():\n    {body}\n"
    assert bool(list(judging(module))) is found


@pytest.mark.parametrize(
    ("explanation", "apart"),
    [
        ("0.75 < (1.5 - 0.25)\n +  where 0.75 = loss()", 0.5),
        ("0 < 0.25 < 0.75", 0.5),
        ("-1.0 >= -2", 1.0),
        ("np.float64(0.25) < np.float32(0.75)", 0.5),
        ("abs((np.float64(0.25) - 0.5)) < 0.75", None),
        ("tensor(0.25, dtype=torch.float64) < 0.75", 0.5),
        ("tensor([0.25]) < 0.75", None),
        ("3 < 4", None),
        ("'0.5' < '0.75'", None),
        ("0.5 == 0.5", None),
        ("len([0.5]) < 2.5", None),
        ("<Outcome> < 2.5", None),
    ],
)
def test_the_distance_to_a_bound(explanation: str, apart: float | None) -> None:
    assert margins.distance(explanation) == apart
