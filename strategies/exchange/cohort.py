"""Who takes part in a round: a pure function of seed, round and who is there."""

import math
import random
from collections.abc import Sequence

from strategies.exchange.types import Profile
from task.seeds import derive


def draw(
    profiles: Sequence[Profile], fraction: float, minimum: int, seed: int, purpose: str, round: int
) -> list[Profile]:
    """A cohort of ceil(fraction * nodes), at least `minimum`, without replacement, in the order of names.

    Flower's node ids are random in every run, so nodes are drawn by name: the same seed draws the same
    nodes, and a resumed run goes on with the same cohorts.
    """
    wanted = size(len(profiles), fraction, minimum)
    return sample(profiles, wanted, random.Random(derive(seed, "cohort", purpose, round)))


def size(nodes: int, fraction: float, minimum: int) -> int:
    """How many of so many nodes are drawn."""
    return min(nodes, max(minimum, math.ceil(fraction * nodes - 1e-9)))


def sample(profiles: Sequence[Profile], count: int, source: random.Random) -> list[Profile]:
    """So many, drawn without replacement, in the order of names."""
    ordered = sorted(profiles, key=lambda profile: profile.sort_key)
    return sorted(source.sample(ordered, count), key=lambda profile: profile.sort_key)


def poisson(profiles: Sequence[Profile], rate: float, source: random.Random) -> list[Profile]:
    """Each by itself with probability `rate`, in the order of names; perhaps nobody."""
    ordered = sorted(profiles, key=lambda profile: profile.sort_key)
    return [profile for profile in ordered if source.random() < rate]


def drops_out(profile: Profile, rate: float, seed: int, round: int) -> bool:
    """Is this node one of those that a simulation lets go in the middle of the round? Each by itself."""
    return random.Random(derive(seed, "dropout", round, profile.name)).random() < rate
