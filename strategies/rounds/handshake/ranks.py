"""Who gets which rank, where nobody has said: the largest candidate that a node has the memory and the time for.

A node measures a training step at the smallest and at the largest candidate that it can train. Between the two,
memory and time are taken to be linear in the rank: an adapter's tensors are, and the rest does not depend on it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from strategies.exchange.types import Profile
from strategies.protocol.trial import Trial

MEMORY_SHARE = 0.8  # of a node's free memory that training may fill; the rest is for what a trial does not see
TIME_SHARE = 0.5  # of the deadline that a round's steps may take; the rest is for loading, messages and queues
MEMORY, DEADLINE, LARGEST, UNKNOWN = "memory", "deadline", "the largest candidate", "no trial"
SHOWN = 20  # nodes in a table


@dataclass(frozen=True)
class Choice:
    """The rank a node gets, and what keeps it from a larger one. `fits` is false where even this one does not fit."""

    rank: int
    limit: str
    fits: bool = True


def choose(trial: Trial, candidates: Sequence[int], deadline: float) -> Choice:
    """The largest of the ascending `candidates` that fits into memory and `deadline` (seconds, of a round).

    More memory, or a later deadline, never makes it smaller.
    """
    best, limit = 0, LARGEST
    for rank in candidates:
        if limit := _limit(trial, rank, deadline):
            break
        best = rank
    return Choice(best or candidates[0], limit or LARGEST, bool(best))


def below(rank: int, candidates: Iterable[int] = ()) -> int:
    """Where a node goes on that ran out of memory: the next smaller candidate, else half; 0 below rank 1."""
    return max((candidate for candidate in candidates if candidate < rank), default=rank // 2)


def table(choices: Sequence[tuple[Profile, Trial | None, Choice]]) -> str:
    """What was found, a line a node; of many nodes the first ones."""
    lines = ["node  device     free GB  cores  s/step  rank  limited by"]
    for profile, trial, choice in choices[:SHOWN]:
        free = trial.free if trial else profile.memory
        pace = f"{_at(choice.rank, trial.ranks, trial.seconds):.3f}" if trial and trial.ranks else "-"
        machine = f"{profile.name:>4}  {profile.device:<8} {free / 1e9:>9.2f} {profile.cores:>6}"
        lines.append(f"{machine} {pace:>7} {choice.rank:>5}  {choice.limit}")
    if len(choices) > SHOWN:
        chosen = [choice.rank for _, _, choice in choices]
        lines.append(f"... and {len(choices) - SHOWN} more; ranks {min(chosen)} to {max(chosen)}")
    return "\n".join(lines)


def _limit(trial: Trial, rank: int, deadline: float) -> str:
    """What rules this rank out; empty where nothing does."""
    if not trial.ranks or rank > trial.ranks[-1]:
        return MEMORY  # the node has tried it
    if _at(rank, trial.ranks, trial.bytes) > MEMORY_SHARE * trial.free:
        return MEMORY
    if trial.steps * _at(rank, trial.ranks, trial.seconds) > TIME_SHARE * deadline:
        return DEADLINE
    return ""


def _at(rank: int, ranks: Sequence[int], values: Sequence[float]) -> float:
    """The line through the measured points; level where it would fall, which is noise of a clock."""
    rise = max(0.0, values[-1] - values[0]) / max(1, ranks[-1] - ranks[0])
    return values[0] + rise * (rank - ranks[0])
