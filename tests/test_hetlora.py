"""HetLoRA: the server's rule against a float64 loop, and nodes that prune for real."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from in_process import federate
from laws import FACTORS, plans, scene
from tiers import examples

import strategies
from strategies.algebra.lowrank import truncated
from strategies.algebra.tensors import added
from strategies.exchange.types import Refused

HETLORA = strategies.load("hetlora")
SMALL = {
    "strategy": "hetlora",
    "lora.ranks": "2,4",
    "hetlora.gamma": 0.5,
    "num-server-rounds": 3,
    "simulation.num-supernodes": 2,
    "data.partitioner": "iid",
    "data.train-rows": 60,
    "local-epochs": 1,
}


@examples(40)
@given(plan=plans())
def test_factors_weigh_by_the_norm_of_their_product(plan):
    drawn = scene(HETLORA, plan)
    rank = drawn.state.rank
    sums = {name: np.zeros(drawn.state.tensors[name].shape) for name in FACTORS}
    norms = 0.0
    for update in drawn.updates:
        trained = added(truncated(drawn.state.tensors, update.assignment.rank), update.delta)
        b, a = (trained[name].double().numpy() for name in FACTORS)
        norm = np.linalg.norm(b @ a)
        norms += norm
        sums[FACTORS[0]] += norm * np.pad(b, ((0, 0), (0, rank - b.shape[1])))
        sums[FACTORS[1]] += norm * np.pad(a, ((0, rank - a.shape[0]), (0, 0)))
    after = drawn.next().tensors
    for name, total in sums.items():
        np.testing.assert_allclose(after[name].double().numpy(), total / norms, atol=1e-5)


def test_equal_products_and_rows_are_zero_padding():
    """Updates of zero from nodes of one rank: all norms are equal, so the rule is a plain mean, the state itself."""
    from laws import Plan

    drawn = scene(HETLORA, Plan((3, 3), (0, 1), (5, 5), 1))
    still = [replace(u, delta={n: torch.zeros_like(t) for n, t in u.delta.items()}) for u in drawn.updates]
    after = drawn.next(still).tensors
    for name, tensor in drawn.state.tensors.items():
        torch.testing.assert_close(after[name], tensor)


@pytest.mark.slow
def test_a_strong_penalty_makes_nodes_prune_and_stay_pruned(tmp_path: Path):
    """Round 1 starts from B = 0, so there is no tail to shrink; from round 2 on the penalty wins."""
    outcome = federate(tmp_path, SMALL | {"hetlora.penalty": 1000.0})
    ranks = [[line["rank"] for line in entry["nodes"]] for entry in outcome.rounds[1:]]
    assert ranks[:2] == [[2, 4], [2, 4]]
    assert ranks[2] == [1, 2]
    assert not any(line["refused"] for entry in outcome.rounds for line in entry["nodes"])


@pytest.mark.slow
def test_without_a_penalty_that_bites_nobody_prunes_in_round_one(tmp_path: Path):
    outcome = federate(tmp_path, SMALL | {"hetlora.penalty": 0.0, "num-server-rounds": 1})
    assert [line["rank"] for line in outcome.rounds[1]["nodes"]] == [2, 4]


def test_other_strategies_refuse_an_update_of_another_rank():
    from strategies.exchange.types import Assignment
    from strategies.rounds.validation import _lowered

    assignment = Assignment(1, 3, 7, 4)
    assert _lowered(assignment, 2, prunes=True).rank == 2
    for rank, prunes in ((2, False), (5, True), (0, True), (2.0, True)):
        with pytest.raises(Refused, match="its assignment says 4"):
            _lowered(assignment, rank, prunes=prunes)
