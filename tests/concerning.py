"""`pytest --for rbla`, which is `make test-for NAME=rbla`: the tests that concern one extension, and no others.

An extension is a file in the folder of its axis, and has the file's name; `axes.py` has the folders. A test concerns it

- if a parameter of the test is its name, an object of that name, or a text in which the name is a word;
- if the name of the test or of its file contains it;
- if the test is marked `about` with the name, or with its axis: `@pytest.mark.about("strategy")` is for all strategies.
"""

import difflib
import re
from collections import Counter

import pytest
from axes import AXES, extensions
from tiers import parameters, words

KEY = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--for NAME`."""
    parser.addoption("--for", dest="concerning", metavar="NAME", help="run the tests that concern this extension")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a name that no extension has."""
    name = config.option.concerning
    known = {key for axis in AXES for key in extensions(axis)}
    if name is not None and name not in known:
        near = difflib.get_close_matches(name, known, 1)
        meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
        raise pytest.UsageError(f"no extension is called {name!r}; {meant}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that concern the extension."""
    name = config.option.concerning
    if name is None:
        return
    about = {name, *(axis for axis in AXES if name in extensions(axis))}
    longer = [key for axis in AXES for key in extensions(axis) if name in key and key != name]
    kept = [item for item in items if concerns(item, name, about, longer)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def concerns(item: pytest.Item, name: str, about: set[str], longer: list[str]) -> bool:
    """Return whether a test concerns the extension `name`; `longer` are other extensions whose names contain it."""
    marked = {word for mark in item.iter_markers("about") for word in mark.args}
    if marked & about:
        return True
    if any(name in KEY.findall(text.replace("_", "-")) for text in words(list(parameters(item).values()))):
        return True
    called = f"{item.path.stem} {getattr(item, 'originalname', item.name)}".replace("_", "-")
    for key in longer:
        called = called.replace(key, "")
    return re.search(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])", called) is not None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Say what was selected; with several workers, their controller does."""
    _print_selected(session.config, [item.nodeid for item in session.items])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: object, ids: list[str]) -> None:
    """Say what the first worker selected; the others select the same."""
    config, number = node.config, node.gateway.id  # type: ignore[attr-defined]
    if number == "gw0":
        _print_selected(config, ids)


def _print_selected(config: pytest.Config, ids: list[str]) -> None:
    name = config.option.concerning
    if name is None or not ids or hasattr(config, "workerinput"):
        return
    files = Counter(test.partition("::")[0] for test in ids)
    print(f"\n{name}: {len(ids)} tests")
    for file, count in files.items():
        print(f"{count:6} {file}")
