"""A bound on the length of updates, for every strategy: what it measures, what it shortens, and a run with a liar."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st
from in_process import equal, federate, retold, suiting
from laws import FACTORS, Plan, loaded, plans, scene, variants
from tiers import examples

import strategies
from strategies.algebra.tensors import Tensors
from strategies.exchange.compatibility import problems as incompatibilities
from strategies.exchange.types import Assignment, Refused, Update
from strategies.ferret import COUNTS, NUMBERS, SCALES
from task.config import TaskConfig

EXAMPLES = examples(40)
PLAIN = strategies.load("fedavg")


def bounded(action: str, bound: float, delta: Tensors) -> Tensors:
    update = Update("0", Assignment(1, 3, 9, 0), delta, 1.0)
    return strategies.load_wrapper("norm-bound", bound=bound, action=action).admitted(PLAIN, update).delta


@EXAMPLES
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8), st.floats(1e-3, 1e6))
def test_a_longer_update_is_shortened_and_a_shorter_one_is_not(values: list[float], bound: float) -> None:
    sent = {"a": torch.tensor(values), "b": torch.tensor(values[:1], dtype=torch.float64), "n": torch.tensor([9])}
    length = math.sqrt(sum(float(np.float32(v)) ** 2 for v in values) + float(np.float32(values[0])) ** 2)
    found = bounded("clip", bound, sent)
    assert found["n"].item() == 9
    for name in ("a", "b"):
        wanted = sent[name].double() * min(1.0, bound / length if length else 1.0)
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-5, atol=1e-30)
    if length < bound * (1 - 1e-9):
        assert equal(found, sent)


def test_a_longer_update_is_refused_where_that_is_asked() -> None:
    sent = {"w": torch.full((4,), 3.0)}
    assert equal(bounded("refuse", 6.0, sent), sent)
    with pytest.raises(Refused, match=r"its norm is 6, more than norm-bound\.bound = 5\.9"):
        bounded("refuse", 5.9, sent)


# ---------------------------------------------------------------------- what a strategy's updates measure


@pytest.mark.parametrize("name", strategies.names())
@EXAMPLES
@given(plan=plans(), share=st.floats(0.01, 1.0))
def test_a_shortened_update_is_that_much_shorter(name: str, plan: Plan, share: float) -> None:
    for strategy in variants(name):
        drawn = scene(strategy, plan)
        for update in drawn.updates:
            length, shorter = strategy.length(update.delta), strategy.shortened(update.delta, share)
            assert strategy.length(shorter) == pytest.approx(share * length, rel=1e-5)
            assert {n: (t.shape, t.dtype) for n, t in shorter.items()} == {
                n: (t.shape, t.dtype) for n, t in update.delta.items()
            }
            assert not strategy.refusal(drawn.state, replace(update, delta=shorter))


@EXAMPLES
@given(plans(), st.floats(0.01, 1.0))
def test_what_stacks_is_as_long_as_its_product(plan: Plan, share: float) -> None:
    """FLoRA's nodes send factors whole; A is long before anything is learned."""
    strategy = loaded("flora")
    for update in scene(strategy, plan).updates:
        b, a, head = (update.delta[name].double().numpy() for name in (*FACTORS, "classifier.weight"))
        length = math.sqrt(np.linalg.norm(b @ a) ** 2 + np.linalg.norm(head) ** 2)
        assert strategy.length(update.delta) == pytest.approx(length, rel=1e-6)
        shorter = strategy.shortened(update.delta, share)
        product = shorter[FACTORS[0]].double() @ shorter[FACTORS[1]].double()
        torch.testing.assert_close(product.numpy(), share * (b @ a), rtol=1e-5, atol=1e-6)
        nothing = {name: tensor if name == FACTORS[1] else torch.zeros_like(tensor) for name, tensor in shorter.items()}
        assert strategy.length(nothing) == 0


@pytest.mark.parametrize("seeds", ["fresh", "shared", "pool"])
def test_coordinates_are_measured_with_their_scales(seeds: str) -> None:
    strategy = strategies.load("ferret", coordinates=8, block=256, seeds=seeds)
    drawn = scene(strategy, Plan((1, 1), (0, 1), (1, 1), 3))
    given = drawn.updates[0].delta
    scales = np.repeat(given[SCALES].double().numpy(), given[COUNTS].numpy())
    assert strategy.length(given) == pytest.approx(np.linalg.norm(given[NUMBERS].double().numpy() * scales))


def test_of_seeded_directions_the_totals_count() -> None:
    strategy = variants("fedkseed")[1]
    delta = {"totals": torch.ones(4), "amplitudes": torch.full((4,), 1e6), "draws": torch.full((4,), 50.0)}
    shorter = strategy.shortened(delta, 0.5)
    assert strategy.length(delta) == 2
    assert equal(shorter, delta | {"totals": torch.full((4,), 0.5)})


# ---------------------------------------------------------------------- runs


def longer(reply: Message) -> Message:
    """A hundred times as far, in the right form."""

    def stretched(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * 100 if tensor.is_floating_point() else tensor

    return retold(reply, lambda tensors: {name: stretched(name, tensor) for name, tensor in tensors.items()})


@pytest.mark.slow
@pytest.mark.parametrize("name", strategies.names())
def test_a_long_update_is_refused_in_a_run_of_any_strategy(name: str, tmp_path: Path) -> None:
    """The bound is ten times what the longest honest node sends."""
    lengths: list[float] = []
    strategy = loaded(name)

    def measured(partition: int, kind: str, reply: Message) -> Message:
        if kind == "train":
            from strategies.protocol import wire

            lengths.append(strategy.length(wire.unpack(reply.content).tensors))
        return reply

    def lying(partition: int, kind: str, reply: Message) -> Message:
        return longer(reply) if (partition, kind) == (1, "train") else reply

    options = {"strategy": name, "lora.ranks": "2,4,8", "local-steps": 2, **suiting(name)}
    federate(tmp_path / "honest", options, spoil=measured)
    assert len(lengths) == 3
    bound = {"wrappers": "norm-bound", "norm-bound.bound": 10 * max(lengths), "norm-bound.action": "refuse"}
    lines = federate(tmp_path / "lies", options | bound, spoil=lying).rounds[1]["nodes"]
    refused = {line["node"]: line["refused"] for line in lines if line["refused"]}
    assert list(refused) == ["1"]
    assert "more than norm-bound.bound" in refused["1"]


@pytest.mark.parametrize("name", strategies.names())
@pytest.mark.parametrize("wrappers", [("norm-bound",), ("norm-bound", "half"), ("half", "norm-bound")])
def test_it_goes_round_every_strategy_in_any_place(name: str, wrappers: tuple[str, ...]) -> None:
    strategy = strategies.load(name, [strategies.load_wrapper(wrapper) for wrapper in wrappers])
    tuning = "bias" if strategy.needs_in_place else "lora"
    config = TaskConfig.read({"tuning": tuning, "optimizer": "sgd", "evaluate": "nodes"})
    narrow = [strategies.load_wrapper(wrapper) for wrapper in wrappers if wrapper != "norm-bound"]
    alone = incompatibilities(strategies.load(name, narrow), config)  # a strategy may refuse 'half' itself
    assert incompatibilities(strategy, config) == alone
    assert not alone or narrow
