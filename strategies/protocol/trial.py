"""A node's measurements when its rank is found by a trial: memory and time of a step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord

from strategies.exchange.types import Refused


@dataclass(frozen=True)
class Trial:
    """A node's measurements. `ranks` are the smallest and the largest candidate that it can train: two, one or none."""

    ranks: tuple[int, ...]
    seconds: tuple[float, ...]  # that a step takes at each
    bytes: tuple[int, ...]  # that training takes on top of the idle model, at each
    free: int  # bytes that were free then
    steps: int  # of a round

    def record(self) -> ConfigRecord:
        """Return the record that the node sends."""
        return ConfigRecord({
            "ranks": list(self.ranks), "seconds": list(self.seconds), "bytes": list(self.bytes),
            "free": self.free, "steps": self.steps,
        })  # fmt: skip

    @classmethod
    def read(cls, record: Mapping[str, object], candidates: Sequence[int]) -> "Trial":
        """Parse the record on the server. Raises Refused."""
        try:
            ranks, seconds, sizes = (tuple(record[name]) for name in ("ranks", "seconds", "bytes"))  # type: ignore
            trial = cls(ranks, seconds, sizes, int(record["free"]), int(record["steps"]))  # type: ignore
            measured = all(math.isfinite(n) and n >= 0 for n in (*seconds, *sizes, trial.free, trial.steps))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise Refused(f"its trial is unreadable: {error!r:.200}") from error
        ends = {(), candidates[:1], *((candidates[0], rank) for rank in candidates[1:])}
        if ranks not in ends or not len(ranks) == len(seconds) == len(sizes) or not measured:
            raise Refused(f"its trial is of ranks {ranks!r:.80}, took {seconds!r:.80} s and {sizes!r:.80} bytes")
        return trial
