"""What a results folder records of a run, as far as its model cards tell it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_app.results.endings import METRICS, lines_in
from strategies.protocol import checkpoint
from strategies.rounds.run_state import RunState

Line = Mapping[str, Any]  # of metrics.jsonl
ON_TEST, ON_NODES = "the test part, scored by the server", "rows that nodes hold out, their mean weighted by rows"


@dataclass(frozen=True)
class Recorded:
    """The lines of metrics.jsonl, and the fingerprint of the base that nodes agreed on where the server has no
    weights."""

    lines: Sequence[Line] = ()
    fingerprint: str = ""

    @classmethod
    def of(cls, results: Path) -> "Recorded":
        """Read a results folder. Raises ValueError for lines that are no JSON."""
        try:
            said = RunState.read(checkpoint.about(results / "checkpoints" / checkpoint.LAST)).base
        except (OSError, KeyError, TypeError, ValueError):  # none, or damaged: the best state may be whole
            said = ""
        return cls(lines_in(results), said)

    @property
    def nodes(self) -> int:
        """Return how many nodes took part, 0 if unknown."""
        return len({node["node"] for line in self.lines for node in line["nodes"]})

    def line(self, round: int) -> Line:
        """Return the line of a round, empty if there is none."""
        return next((line for line in self.lines if line["round"] == round), {})

    def scores(self, round: int, names: Sequence[str]) -> dict[str, float]:
        """Return the metrics of a round that were measured and are numbers."""
        line = self.line(round)
        found = {name: line[name] for name in names if line.get(name) is not None}
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}

    def source(self, round: int) -> str:
        """Return where the metrics of a round come from: the file, the round, and the rows."""
        by_server = any(key.startswith("server-") for key in self.line(round))
        return f"{METRICS}, round {round}: {ON_TEST if by_server else ON_NODES}"

    def spent(self, round: int) -> str:
        """Return the privacy that a run had spent after a round; empty without an account."""
        line = self.line(round)
        if "epsilon" not in line:
            return ""
        epsilon = "unbounded" if line["epsilon"] is None else f"{line['epsilon']:.4g}"
        how = f" (by {line['accountant']})" if "accountant" in line else ""
        return f"epsilon {epsilon} at delta {line['delta']:g}{how}, {METRICS}, round {round}"

    def traffic(self, round: int) -> tuple[int, int]:
        """Return the bytes that nodes sent and were sent up to a round."""
        done = [line for line in self.lines if line["round"] <= round]
        return sum(line["bytes_up"] for line in done), sum(line["bytes_down"] for line in done)
