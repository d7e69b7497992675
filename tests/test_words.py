"""One word for one thing: words of the first version are gone from names, docstrings, messages and pages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("task", "strategies", "server_app", "client_app", "thistledown")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

NAMES = {  # parts of names, between underscores or capitals, and what is said instead
    "admit": "validate",
    "beside": "replay_state",
    "cumulative": "additive_across_rounds",
    "door": "validation",
    "echo": "install_hash",
    "fresh": "initial_values",
    "ground": "base_weight",
    "grounded": "base_weights",
    "hold": "run",
    "incoming": "decode",
    "inexactness": "aggregation_error",
    "marks": "positions",
    "meeting": "handshake",
    "misfits": "problems",
    "opening": "handshake",
    "outgoing": "encode",
    "outline": "data_index",
    "parcel": "payload",
    "personal": "personalized",
    "ragged": "heterogeneous_ranks",
    "roll": "registry",
    "shifted": "journaled",
    "silenced": "zero_ranks_above",
    "ticket": "assignment",
    "tickets": "assignments",
    "told": "public_message",
    "tried": "run_trial",
    "unfit": "problems",
}
PROSE = {  # words of docstrings, comments, messages and pages
    r"doors?": "validation",
    r"tickets?": "assignment",
    r"rolls?": "node registry",
    r"parcels?": "payload",
    r"echo(es)?": "install hash",
    r"misfits?": "problem",
    r"inexactness": "aggregation error",
    r"ragged": "heterogeneous ranks",
    r"outlines?": "data index",
    r"silenced": "zero",
    r"the marks?": "journal position",
    r"ground": "base weight",
    r"goes on where it was": "resumes bit for bit",
}
FOREIGN = re.compile(
    r"unrolled|ground truth|rolled back|rolls? back|\"ground\"", re.IGNORECASE
)  # English, other people's words, and a name on the wire


def parts(name: str) -> set[str]:
    """Return the words of a name, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}


def names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield every name that a module gives: functions, classes, arguments, variables, fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a page, or the comments and texts of a module."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if path.suffix == ".md" or "#" in line or '"' in line or not re.match(r"\s*[\w.]+ ?[=(:]", line):
            yield number, FOREIGN.sub("", line)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_are_todays(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [(path.stem, 0)] if parts(path.stem) & NAMES.keys() else []
    found += [(name, line) for line, name in names(tree) if parts(name) & NAMES.keys()]
    assert not found, "\n".join(f"line {line}: {name}" for name, line in found)


@pytest.mark.parametrize("path", [*MODULES, *PAGES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_prose_is_todays(path: Path) -> None:
    said = re.compile(rf"\b({'|'.join(PROSE)})\b", re.IGNORECASE)
    found = [
        f"line {line}: {match[0]} in: {text.strip()}" for line, text in prose(path) if (match := said.search(text))
    ]
    assert not found, "\n".join(found)


QUESTION = re.compile(r"^(Is|Are|Does|Do|Has|Have|Must|May|Can|Shall|Was|Were|Which|Who|What|How|Why|Whether)\b[^.]*\?")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_are_no_questions(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [(node, ast.get_docstring(node) or "") for node in ast.walk(tree) if isinstance(node, documented)]
    found = [f"{getattr(node, 'name', 'the module')}: {text}" for node, text in texts if QUESTION.match(text)]
    assert not found, "\n".join(found)
