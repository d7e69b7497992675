"""The two tiers of the suite: `make test` in minutes, `make test-all` with everything.

`pytest` alone runs everything. `pytest -m "not slow"` leaves out what is marked `slow` and tries fewer examples:
`THISTLEDOWN_TESTS` is then `fast` instead of `full`, for this process and those that it starts.

Marks of a test or a module:

- `slow`: not part of `make test`. So are tests marked `flower`, except the one that is marked `smoke`.
- `first(n)`: a table of which `make test` runs the first cases.
- `each_value`: a table of which `make test` runs enough cases to see each value of each parameter once.
- `fewer`: it tries fewer examples in `make test`, so that the rest (`make test-rest`) runs it again with all of them.
  Tests by hypothesis have this mark without being given it.
- `judged`: it compares a score, a loss or a time with a bound. `make test-everywhere` tries it with other arithmetic;
  `test_judged.py` finds tests that lack the mark.

A table over strategies and tunings is thinned without a mark: each strategy keeps its first tuning, and fedavg all.

Files that take long come first: a worker that gets one last works on while the others have nothing to do. One worker
has all real deployments, one after another: they mostly wait, and each holds gigabytes.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from axes import extensions
from hypothesis import settings
from xdist.scheduler.loadfile import LoadFileScheduling

FAST, FULL = "fast", "full"
VARIABLE = "THISTLEDOWN_TESTS"
SECONDS = {"flower": 60, "slow": 2}  # of a test with the mark, at a guess
DEPLOYMENTS = "tests/deployment"
EXAMPLES = {FAST: 10, FULL: 100}  # of a test by hypothesis that does not say how many


def pytest_configure(config: pytest.Config) -> None:
    """Choose the tier and the number of examples, before any test module is imported."""
    fast = config.option.markexpr == "not slow"
    tier = os.environ.setdefault(VARIABLE, FAST if fast else FULL)
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # peft imports bitsandbytes, which imports a compiler: 2 s
    if tier not in EXAMPLES:
        raise pytest.UsageError(f"{VARIABLE} = {tier}: the tiers are {' and '.join(EXAMPLES)}")
    for name, count in EXAMPLES.items():
        settings.register_profile(name, max_examples=count, deadline=None, derandomize="CI" in os.environ)
    settings.load_profile(tier)


def scaled(count: int, least: int = 3) -> int:
    """Return how many of `count` examples this tier tries."""
    return min(count, max(least, count * EXAMPLES[os.environ[VARIABLE]] // EXAMPLES[FULL]))


def examples(count: int, least: int = 3, **options: Any) -> settings:
    """Return hypothesis settings for `count` examples, or for this tier's share of them."""
    return settings(max_examples=scaled(count, least), **options)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow because of its place in a table, and what tries fewer examples."""
    tables: dict[str, set[str]] = {}
    for item in items:
        seen = tables.setdefault(item.nodeid.partition("[")[0], set())
        starts_processes = item.get_closest_marker("flower") and not item.get_closest_marker("smoke")
        if starts_processes or (parameters(item) and not _is_kept(item, seen)):
            item.add_marker("slow")
        if hasattr(getattr(item, "function", None), "hypothesis"):
            item.add_marker("fewer")
    longest_files_first(items)


def longest_files_first(items: list[pytest.Item]) -> None:
    """Sort units of work by how long their tests take, roughly; the tests of a unit keep their order."""
    seconds: dict[str, int] = {}
    for item in items:
        mark = next((mark for mark in SECONDS if item.get_closest_marker(mark)), "")
        unit = unit_of(item.nodeid)
        seconds[unit] = seconds.get(unit, 0) + SECONDS.get(mark, 0)
    items.sort(key=lambda item: -seconds[unit_of(item.nodeid)])


def unit_of(nodeid: str) -> str:
    """Return the name of what one worker runs as a whole: a file, or all deployments."""
    return DEPLOYMENTS if nodeid.startswith(f"{DEPLOYMENTS}/") else nodeid.partition("::")[0]


class Units(LoadFileScheduling):
    """The scheduler of `--dist loadfile`, with units of work in place of files."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Units | None:
    """Return the scheduler for `--dist loadfile`."""
    return Units(config, log) if config.getvalue("dist") == "loadfile" else None


def _is_kept(item: pytest.Item, seen: set[str]) -> bool:
    """Return whether `make test` runs this case of a table; `seen` is what earlier cases of it added."""
    given = parameters(item)
    if first := item.get_closest_marker("first"):
        seen.add(item.nodeid)
        return len(seen) <= first.args[0]
    if item.get_closest_marker("each_value"):
        return _adds(seen, {f"{name}={value!r}" for name, value in given.items()})
    names = set(words(list(given.values())))
    chosen = names & extensions("strategy")
    return not chosen or not names & extensions("tuning") or "fedavg" in chosen or _adds(seen, chosen)


def _adds(seen: set[str], values: set[str]) -> bool:
    """Add values; return whether one of them is new."""
    new = not values <= seen
    seen |= values
    return new


def parameters(item: pytest.Item) -> dict[str, object]:
    """Return the values of a case of a parametrised test, by name."""
    return dict(item.callspec.params) if hasattr(item, "callspec") else {}


def words(value: object) -> Iterator[str]:
    """Yield the strings of a parameter, the names of its objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from words([*value.keys(), *value.values()])
    elif isinstance(value, (list, tuple, set, frozenset)):
        for part in value:
            yield from words(part)
    elif isinstance(name := getattr(value, "name", None), str):
        yield name
