"""Choose automatic ranks: the largest candidate that a node has the memory and the time for.

A node measures a training step at the smallest and at the largest candidate that it can train. Memory and time are
assumed to be linear in the rank between them: an adapter's tensors are, and everything else does not depend on the
rank.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from strategies.exchange.types import Profile
from strategies.protocol.trial import Trial

MEMORY_SHARE = 0.8  # share of a node's free memory that training may use; the rest is for what a trial does not see
TIME_SHARE = 0.5  # share of the deadline that a round's steps may take; the rest is for loading, messages and queues
MEMORY, DEADLINE, LARGEST, UNKNOWN = "memory", "deadline", "the largest candidate", "no trial"
SHOWN = 20  # nodes in a table


@dataclass(frozen=True)
class Choice:
    """A node's rank, and what keeps it from a larger one. `fits` is false if even this rank does not fit."""

    rank: int
    limit: str
    fits: bool = True


def choose(trial: Trial, candidates: Sequence[int], deadline: float) -> Choice:
    """Return the largest of the ascending `candidates` that fits into memory and `deadline` (seconds, of a round).

    More memory, or a later deadline, never makes it smaller.
    """
    best, limit = 0, LARGEST
    for rank in candidates:
        if limit := _limit(trial, rank, deadline):
            break
        best = rank
    return Choice(best or candidates[0], limit or LARGEST, bool(best))


def below(rank: int, candidates: Iterable[int] = ()) -> int:
    """Return the rank of a node that ran out of memory: the next smaller candidate, else half; 0 below rank 1."""
    return max((candidate for candidate in candidates if candidate < rank), default=rank // 2)


def table(choices: Sequence[tuple[Profile, Trial | None, Choice]]) -> str:
    """Return the table of trials, one line per node; only the first of many nodes."""
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
    """Return what rules this rank out; empty if nothing does."""
    if not trial.ranks or rank > trial.ranks[-1]:
        return MEMORY  # the node has tried it
    if _at(rank, trial.ranks, trial.bytes) > MEMORY_SHARE * trial.free:
        return MEMORY
    if trial.steps * _at(rank, trial.ranks, trial.seconds) > TIME_SHARE * deadline:
        return DEADLINE
    return ""


def _at(rank: int, ranks: Sequence[int], values: Sequence[float]) -> float:
    """Return the value at a rank, on the line through the measured points; flat if it would fall, which is timing
    noise."""
    rise = max(0.0, values[-1] - values[0]) / max(1, ranks[-1] - ranks[0])
    return values[0] + rise * (rank - ranks[0])
