"""Wrappers: what they do to an update, what comes back, in which order, and what it costs on the wire."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

import strategies
from strategies.algebra.tensors import Tensors
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.compatibility import problems as incompatibilities
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment, Refused, State
from strategies.exchange.wrapper import NODE, SERVER, Wrapper
from strategies.protocol import wire
from strategies.rounds import validation
from task.config import TaskConfig
from thistledown.simulation.grid import through_wire

ASSIGNMENT = Assignment(1, 3, 9, 2, noise=1.0)
NORMAL = {"bfloat16": (2.0**-8, 2.0**-126, 3e38), "float16": (2.0**-11, 2.0**-14, 65_504.0)}  # error, smallest, largest


def travel(wrapper: Wrapper, update: Tensors) -> Tensors:
    return wrapper.decode(wrapper.encode(update, ASSIGNMENT, {}), update)


def accepted(strategy: Strategy, sent: Tensors, start: Tensors) -> Tensors:
    """What the server makes of `sent` in a reply to `start`. Raises Refused."""
    question = Message(RecordDict(), dst_node_id=3, message_type="train")
    question.metadata.__dict__["_message_id"] = "question"
    records = wire.pack(State(sent))
    records["metrics"] = MetricRecord({"num-examples": 4, "server-round": 1})
    reply = through_wire(Message(records, reply_to=question))
    return validation.validate_update(strategy, reply, "0", ASSIGNMENT, State(start)).delta


# ---------------------------------------------------------------------- any wrapper


@pytest.mark.parametrize("name", strategies.wrapper_names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_validation_accepts_what_any_wrapper_sends(name, dtype):
    wrapper = strategies.load_wrapper(name)
    strategy = strategies.load("fedavg", wrappers=[wrapper])
    update = {"w": (torch.randn(4, 3) / 8).to(dtype), "b": torch.zeros(2, dtype=dtype)}
    back = accepted(strategy, wrapper.encode(update, ASSIGNMENT, {}), update)
    assert {n: (t.shape, t.dtype) for n, t in back.items()} == {n: (t.shape, t.dtype) for n, t in update.items()}


@pytest.mark.parametrize("name", strategies.wrapper_names())
def test_a_wrapper_changes_neither_its_argument_nor_itself(name):
    wrapper = strategies.load_wrapper(name)
    update = {"w": torch.randn(4, 3)}
    before = update["w"].clone()
    travel(wrapper, update)
    assert torch.equal(update["w"], before)
    assert wrapper == strategies.load_wrapper(name)
    assert wrapper.name == name


# ---------------------------------------------------------------------- half


@pytest.mark.parametrize("dtype", NORMAL)
@given(value=st.floats(-60_000, 60_000), wide=st.sampled_from([torch.float32, torch.float64]))
def test_half_rounds_by_no_more_than_it_says(dtype, value, wide):
    error, smallest, _ = NORMAL[dtype]
    update = {"w": torch.tensor([value], dtype=wide)}
    back = travel(strategies.load_wrapper("half", dtype=dtype), update)["w"]
    assert back.dtype == wide
    assert abs(back.item() - update["w"].item()) <= error * max(abs(update["w"].item()), smallest)


@pytest.mark.parametrize("dtype", NORMAL)
def test_half_carries_its_largest_number(dtype):
    largest = NORMAL[dtype][2]
    back = travel(strategies.load_wrapper("half", dtype=dtype), {"w": torch.tensor([largest, -largest])})["w"]
    assert bool(torch.isfinite(back).all())


def test_half_keeps_zeros_and_leaves_narrow_dtypes_alone():
    update = {
        "zero": torch.zeros(3),
        "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(),
        "count": torch.tensor([2**40 + 1]),
        "flag": torch.tensor([True]),
    }
    back = travel(strategies.load_wrapper("half"), update)
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in update.items())


@pytest.mark.parametrize("dtype", NORMAL)
def test_half_takes_half_the_bytes(dtype):
    half = strategies.load_wrapper("half", dtype=dtype)
    update = {f"layer.{i}.lora_{f}.weight": torch.randn(8, 64) for i in range(12) for f in "AB"}
    plain, sent = (wire.size(wire.pack(State(tensors))) for tensors in (update, half.encode(update, ASSIGNMENT, {})))
    assert sent < 0.52 * plain


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.float64, torch.float32),
        (torch.int16, torch.float32),
        (torch.bfloat16, torch.float16),
        (torch.bfloat16, torch.int64),
        (torch.bfloat16, torch.bool),
        (torch.float32, torch.bfloat16),
    ],
)
def test_the_wrong_dtype_is_not_made_right(sent, expected):
    strategy = strategies.load("fedavg", wrappers=[strategies.load_wrapper("half")])
    with pytest.raises(Refused, match="dtype"):
        accepted(strategy, {"w": torch.ones(3).to(sent)}, {"w": torch.ones(3).to(expected)})


def test_tensors_nobody_asked_for_are_refused_and_do_not_crash_half():
    strategy = strategies.load("fedavg", wrappers=[strategies.load_wrapper("half")])
    with pytest.raises(Refused, match="not asked for"):
        accepted(strategy, {"strange": torch.ones(3).bfloat16()}, {})


def test_half_is_sent_in_the_instructions_and_rebuilt():
    strategy = strategies.load("fedprox", wrappers=[strategies.load_wrapper("half", dtype="float16")], mu=0.5)
    flat = strategy.to_flat()
    assert flat == {"strategy": "fedprox", "fedprox.mu": 0.5, "wrappers": "half", "half.dtype": "float16"}


# ---------------------------------------------------------------------- chains


@dataclass(frozen=True)
class Plus(Wrapper):
    """Adds on the node, takes away on the server."""

    encodes = True

    amount: float = 1.0

    def encode(self, update: Tensors, assignment: Assignment, kept: Tensors) -> Tensors:
        return {name: tensor + self.amount for name, tensor in update.items()}

    def decode(self, sent: Tensors, like: Mapping[str, torch.Tensor]) -> Tensors:
        return {name: tensor - self.amount for name, tensor in sent.items()}


@dataclass(frozen=True)
class Twice(Wrapper):
    """Doubles on the node, halves on the server."""

    encodes = True

    def encode(self, update: Tensors, assignment: Assignment, kept: Tensors) -> Tensors:
        return {name: tensor * 2 for name, tensor in update.items()}

    def decode(self, sent: Tensors, like: Mapping[str, torch.Tensor]) -> Tensors:
        return {name: tensor / 2 for name, tensor in sent.items()}


@dataclass(frozen=True)
class Central(Wrapper):
    """Acts on the mean."""

    needs_weighted_mean = True


@pytest.mark.parametrize("chain", [(Plus(), Twice()), (Twice(), Plus()), (Plus(3.0), Twice(), Plus(0.5))])
def test_wrappers_are_decoded_last_to_first(chain):
    update = {"w": torch.tensor([1.0, -2.0, 0.5])}
    sent = update
    for wrapper in chain:
        sent = wrapper.encode(sent, ASSIGNMENT, {})
    strategy = replace(strategies.load("fedavg"), wrappers=chain)
    assert torch.equal(accepted(strategy, sent, update)["w"], update["w"])
    assert not torch.equal(accepted(replace(strategy, wrappers=chain[::-1]), sent, update)["w"], update["w"])


@pytest.mark.parametrize("name", strategies.names())
def test_a_wrapper_of_means_needs_a_strategy_that_takes_the_mean(name):
    strategy = strategies.load(name, wrappers=[Central()])
    tuning = "bias" if strategy.needs_in_place else "lora"
    evaluate = "nodes" if strategy.personalized else "server"
    found = incompatibilities(strategy, TaskConfig.read({"tuning": tuning, "optimizer": "sgd", "evaluate": evaluate}))
    assert bool(found) != strategy.is_weighted_mean
    assert all("mean of updates" in problem and name in problem for problem in found)


@pytest.mark.parametrize("name", strategies.wrapper_names())
def test_what_a_wrapper_declares_is_what_it_does(name: str) -> None:
    wrapper = strategies.wrapper_class(name)
    own = {method for method in vars(Wrapper) if getattr(wrapper, method) is not getattr(Wrapper, method)}
    assert wrapper.encodes == ({"encode", "encoded_spec", "decode"} & own != set())
    assert wrapper.combines == ("combine" in own)
    assert bool(wrapper.privacy) == ("mechanism" in own)
    assert wrapper.privacy in ("", SERVER, NODE)


@pytest.mark.parametrize("name", strategies.names())
def test_what_a_strategy_declares_is_what_it_does(name: str) -> None:
    strategy = strategies.strategy_class(name)
    assert strategy.has_combine_by == (strategy.combine_by is not Algorithm.combine_by)
    assert strategy.is_weighted_mean == (strategy.combine is Algorithm.combine)
