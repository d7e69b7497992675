"""Who trains in a round."""

import logging

from strategies.exchange import cohort
from strategies.exchange.types import Profile
from strategies.rounds.run import Run

LOG = logging.getLogger("flwr")


def draw(run: Run, number: int) -> list[Profile]:
    """Draw the nodes that train in this round, and charge the round's privacy.

    If nodes are drawn independently, resting nodes are never drawn: drawing them because too few others are connected
    would reveal who is not.
    """
    held = run.context.federation
    awake = run.registry.awake(number, 0 if run.mechanism.poisson else held.min_train_nodes)
    able = run.mechanism.able(awake, number)
    chosen = run.mechanism.cohort(able, number)
    if chosen is None:
        chosen = cohort.draw(able, held.fraction_train, held.min_train_nodes, held.seed, "train", number)
    LOG.info("configure_train: Sampled %d nodes (out of %d)", len(chosen), len(run.registry.present))
    run.mechanism.spend(able, chosen, number)
    if run.mechanism.ahead:
        run.remember_privacy()
    return chosen
