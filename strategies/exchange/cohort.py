"""Who takes part in a round: a pure function of seed, round and who is there."""

import math
import random
from collections.abc import Sequence

from strategies.exchange.vocabulary import Profile
from task.seeds import derive


def draw(
    profiles: Sequence[Profile], fraction: float, minimum: int, seed: int, purpose: str, round: int
) -> list[Profile]:
    """A cohort of ceil(fraction * nodes), at least `minimum`, without replacement, in the order of names.

    Flower's node ids are random in every run, so nodes are drawn by name: the same seed draws the same
    nodes, and a resumed run goes on with the same cohorts.
    """
    ordered = sorted(profiles, key=lambda profile: profile.order)
    wanted = max(minimum, math.ceil(fraction * len(ordered) - 1e-9))
    chosen = random.Random(derive(seed, "cohort", purpose, round)).sample(ordered, min(wanted, len(ordered)))
    return sorted(chosen, key=lambda profile: profile.order)
