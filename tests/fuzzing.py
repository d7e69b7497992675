"""What tests share that try damaged messages by the thousand: what became of them, how long it took, what it filled."""

import resource
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings

# What a change finds no longer there because an earlier one has destroyed it.
GONE = (AttributeError, KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, zlib.error)


def many(examples: int, number: int, *drawn: Any) -> Callable[[Callable[..., None]], None]:
    """Call the function below with so many examples, the same in every run with this seed."""
    how = settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck))

    def call(damage: Callable[..., None]) -> None:
        seed(number)(how(given(*drawn)(damage)))()

    return call


@dataclass
class Tried:
    """All that was tried, case by case."""

    what: str  # in the plural
    outcomes: Counter[str] = field(default_factory=Counter)
    cases: int = 0

    def case(self) -> "Case":
        """A new one."""
        return Case(self, before=_mebibytes())

    def assert_all(self, cases: int, least: int) -> None:
        """Print what became of all; skip the test where only some of the cases were tried."""
        if self.cases < cases:
            pytest.skip("only some of the cases were tried")
        print(f"{_said(self.outcomes, self.what)} in {cases} cases")
        assert self.outcomes.total() >= least


@dataclass
class Case:
    """One case: what became of each message, and the time and memory that they took."""

    tried: Tried
    before: float
    outcomes: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0

    def saw(self, outcome: str, seconds: float) -> None:
        """One message had this outcome, and took so many seconds of a core."""
        self.outcomes[outcome] += 1
        self.longest = max(self.longest, seconds)

    def close(self, slowest: float, largest: float) -> None:
        """Assert that none took more seconds, and all no more MiB."""
        grown = _mebibytes() - self.before
        print(f"{_said(self.outcomes, self.tried.what)}; slowest {self.longest:.3f} s, grown by {grown:.0f} MiB")
        assert self.longest < slowest
        assert grown < largest
        self.tried.outcomes.update(self.outcomes)
        self.tried.cases += 1


def _said(outcomes: Counter[str], what: str) -> str:
    parts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    return f"{outcomes.total()} {what}: {parts}"


def _mebibytes() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
