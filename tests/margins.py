"""How far numbers are from the bounds that judged tests compare them with: a plugin of pytest for `everywhere.py`.

It hears of every assertion that holds. One that orders two floating point numbers adds a line of JSON to the file that
the environment names: the test, the assertion, and the distance of its sides. Of a chain, pytest tells the last two.
"""

import ast
import json
import os
import re
from contextlib import suppress
from pathlib import Path

import pytest

FILE = "THISTLEDOWN_MARGINS"
ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
WRAPPED = re.compile(r"(?:np\.float\d+|tensor)\(([^(),]*)(?:, [^()]*)?\)")  # as numpy and torch write a number
ARITHMETIC = (ast.Expression, ast.Compare, ast.BinOp, ast.UnaryOp, ast.Constant, ast.operator, ast.unaryop, ast.cmpop)
ARGUMENTS = ["-p", "margins", "-o", "enable_assertion_pass_hook=true"]


def pytest_assertion_pass(item: pytest.Item, orig: str, expl: str) -> None:
    """Write down how far the sides of an assertion are apart; `expl` has their values in place of names."""
    if item.get_closest_marker("judged") and (apart := distance(expl)) is not None:
        with Path(os.environ[FILE]).open("a", encoding="utf-8") as file:
            file.write(json.dumps([item.nodeid.removeprefix("tests/"), " ".join(orig.split()), apart]) + "\n")


def distance(explanation: str) -> float | None:
    """Return the distance of two floating point numbers that are ordered; None if it is no such comparison."""
    with suppress(SyntaxError, TypeError):
        tree = ast.parse(WRAPPED.sub(r"\1", explanation.partition("\n")[0]), mode="eval")
        if isinstance(compared := tree.body, ast.Compare) and isinstance(compared.ops[-1], ORDER):
            sides = [_value(side) for side in [compared.left, *compared.comparators][-2:]]
            return abs(sides[0] - sides[1]) if float in map(type, sides) else None
    return None


def _value(node: ast.expr) -> float:
    """Return what a few numbers come to. Raises TypeError for anything else."""
    if not all(isinstance(part, ARITHMETIC) for part in ast.walk(node)):
        raise TypeError
    value: float = eval(compile(ast.Expression(node), "<assertion>", "eval"), {"__builtins__": {}})
    return value
