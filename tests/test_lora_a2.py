"""LoRA-A²: the units that a node sends, against a slow reference, and beside RoLoRA as a real federation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_process import QV, equal, federate, raw_bytes, sent
from laws import FACTORS, toy_model, trainer
from tiers import examples

import strategies
from strategies.algebra.lowrank import modules, rank_axis
from strategies.algebra.tensors import Tensors
from strategies.exchange.types import Assignment
from strategies.lora_a2 import best_units

EXAMPLES = examples(40)
A2, ROLORA = strategies.load("lora-a2", units=1), strategies.load("rolora")
SHAPES = [(5, 4), (3, 6), (4, 4)]  # outputs and inputs of three modules


def drawn(rank: int, trains: int, seed: int) -> tuple[Tensors, Tensors]:
    """Both factors of three modules, and a change of one factor and of a head."""
    source = torch.Generator().manual_seed(seed)
    before: Tensors = {}
    for number, (outputs, inputs) in enumerate(SHAPES):
        before[f"m{number}.lora_A.weight"] = torch.randn(rank, inputs, generator=source)
        before[f"m{number}.lora_B.weight"] = torch.randn(outputs, rank, generator=source)
    delta = {n: torch.randn(t.shape, generator=source) for n, t in before.items() if rank_axis(n) == trains}
    return before, delta | {"classifier.weight": torch.randn(3, 5, generator=source)}


@EXAMPLES
@given(st.integers(1, 6), st.integers(0, 1), st.integers(1, 7), st.integers(0, 2**20))
def test_the_units_are_those_of_the_largest_products(rank: int, trains: int, units: int, seed: int) -> None:
    before, delta = drawn(rank, trains, seed)
    kept = best_units(before, delta, units)
    scores: dict[tuple[int, int], float] = {}
    for m in range(len(SHAPES)):
        both = before | delta
        b, a = (both[f"m{m}.lora_{side}.weight"].double().numpy() for side in "BA")
        for k in range(rank):
            scores[m, k] = float(np.linalg.norm(np.outer(b[:, k], a[k])))
    best = sorted(scores, key=lambda unit: -scores[unit])[: units * len(SHAPES)]
    assert kept.keys() == delta.keys()
    assert torch.equal(kept["classifier.weight"], delta["classifier.weight"])
    for m in range(len(SHAPES)):
        name = f"m{m}.lora_{'AB'[trains]}.weight"
        for k in range(rank):
            own, whole = (tensors[name].select(trains, k) for tensors in (kept, delta))
            assert torch.equal(own, whole if (m, k) in best else torch.zeros_like(whole))


@pytest.mark.parametrize("round", [1, 2])
def test_a_node_sends_no_more_than_its_budget_and_forgets_the_rest(round: int) -> None:
    model = toy_model(A2, 3, seed=2)
    before = {name: tensor.detach().clone() for name, tensor in model.trained.items()}
    delta, _ = A2.train(model, trainer(), Assignment(round, 3, 11, 3))
    whole, _ = ROLORA.train(toy_model(ROLORA, 3, seed=2), trainer(), Assignment(round, 3, 11, 3))
    name = FACTORS[0 if round % 2 else 1]
    axis = rank_axis(name)
    assert axis is not None
    moved = [k for k in range(3) if delta[name].select(axis, k).any()]
    assert len(moved) == 1
    assert len([k for k in range(3) if whole[name].select(axis, k).any()]) == 3
    assert torch.equal(delta[name].select(axis, moved[0]), whole[name].select(axis, moved[0]))
    for key, tensor in model.trained.items():
        torch.testing.assert_close(tensor.detach(), before[key] + delta.get(key, torch.zeros(())), rtol=0.0, atol=0.0)


@pytest.mark.judged
@pytest.mark.slow
def test_as_a_federation(tmp_path: Path) -> None:
    """With the whole budget it is RoLoRA bit for bit; with less, zeros travel unless `top-k` leaves them out."""
    rounds = QV | {"num-server-rounds": 2}
    rolora = federate(tmp_path / "rolora", rounds | {"strategy": "rolora"})
    whole = federate(tmp_path / "whole", rounds | {"strategy": "lora-a2", "lora-a2.units": 8})
    few = federate(tmp_path / "few", rounds | {"strategy": "lora-a2"})
    assert equal(whole.state().tensors, rolora.state().tensors)
    theirs = {number: sent(rolora.grid.of("train")[3 * number].reply) for number in (0, 1)}
    for number, exchange in enumerate(few.grid.of("train")):
        assert exchange.reply is not None
        up = sent(exchange.reply)
        axis = 1 if number < 3 else 0
        moved = sum(int(t.movedim(axis, 0).flatten(1).any(1).sum()) for n, t in up.items() if rank_axis(n) == axis)
        assert 0 < moved <= 2 * len(modules(up)) == 16
        assert raw_bytes(up) == raw_bytes(theirs[number // 3])
    assert max(few.rounds[2]["aggregation-error"].values()) < 1e-5
    numbers = [float((t != 0).sum()) for t in sent(few.grid.of("train")[0].reply).values()]
    total = sum(t.numel() for t in theirs[0].values())
    share = {"wrappers": "top-k", "top-k.fraction": 1.001 * sum(numbers) / total}
    sparse = federate(tmp_path / "sparse", rounds | share | {"strategy": "lora-a2", "num-server-rounds": 1})
    assert sparse.rounds[1]["bytes_up"] < 0.55 * few.rounds[1]["bytes_up"]
    first = sent(few.grid.of("train")[3].request)
    assert all(torch.equal(tensor, first[name]) for name, tensor in sparse.state().tensors.items())
