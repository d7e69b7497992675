"""Draw the nodes of a round: a pure function of the seed, the round and the nodes that are connected."""

import math
import random
from collections.abc import Sequence

from strategies.exchange.types import Profile
from task.seeds import derive


def draw(
    profiles: Sequence[Profile], fraction: float, minimum: int, seed: int, purpose: str, round: int
) -> list[Profile]:
    """Return a cohort of ceil(fraction * nodes), at least `minimum`, drawn without replacement, in the order of names.

    Flower's node ids are random in every run, so nodes are drawn by name: the same seed draws the same nodes, and a
    resumed run continues with the same cohorts.
    """
    wanted = size(len(profiles), fraction, minimum)
    return sample(profiles, wanted, random.Random(derive(seed, "cohort", purpose, round)))


def size(nodes: int, fraction: float, minimum: int) -> int:
    """Return how many of `nodes` are drawn."""
    return min(nodes, max(minimum, math.ceil(fraction * nodes - 1e-9)))


def sample(profiles: Sequence[Profile], count: int, source: random.Random) -> list[Profile]:
    """Return a fixed number of nodes, drawn without replacement, in the order of names."""
    ordered = sorted(profiles, key=lambda profile: profile.sort_key)
    return sorted(source.sample(ordered, count), key=lambda profile: profile.sort_key)


def poisson(profiles: Sequence[Profile], rate: float, source: random.Random) -> list[Profile]:
    """Return the nodes drawn, each independently with probability `rate`, in the order of names; the result may be
    empty."""
    ordered = sorted(profiles, key=lambda profile: profile.sort_key)
    return [profile for profile in ordered if source.random() < rate]


def drops_out(profile: Profile, rate: float, seed: int, round: int) -> bool:
    """Return whether a simulation drops this node in the middle of the round. Each node is drawn independently."""
    return random.Random(derive(seed, "dropout", round, profile.name)).random() < rate
