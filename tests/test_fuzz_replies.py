"""Thousands of damaged replies at the real door: each is refused with its cause, or is an update that does no harm."""

import math
import re
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_process import through_wire
from laws import SMALL, Plan, Scene, scene
from mutations import Mutation, mutations

import strategies
from strategies.algebra.lowrank import truncated
from strategies.algebra.tensors import Tensors
from strategies.exchange import chain, door, wire
from strategies.exchange.vocabulary import Refused, State, Update

EXAMPLES = 180
GONE = (AttributeError, KeyError, TypeError, ValueError, IndexError, zlib.error)  # what an earlier change has destroyed
ROWS = 100
WRAPPED: list[tuple[str, dict[str, object], str]] = [
    ("fedavg", {}, ""),
    ("fedavg", {}, "half"),
    ("fedavg", {}, "quantize"),
    ("fedavg", {}, "top-k"),
    ("fedavg", {}, "norm-bound,top-k,half"),
    ("fedavg", {}, "median"),
    ("rbla", {}, ""),
    ("rbla", {}, "quantize"),
    ("hetlora", {}, "half"),
    ("flora", {}, ""),
    ("fedex-lora", {}, ""),
    ("flex-lora", {}, "quantize"),
    ("ferret", {}, ""),
    ("ferret", {"seeds": "pool"}, ""),
    ("fedkseed", {"pro": True}, ""),
]


@dataclass(frozen=True)
class Case:
    """A round of three nodes, of which the first is the one that is damaged."""

    drawn: Scene
    good: RecordDict

    @classmethod
    def of(cls, name: str, options: dict[str, object], wrappers: str) -> "Case":
        around = [strategies.load_wrapper(wrapper) for wrapper in wrappers.split(",") if wrapper]
        strategy = strategies.load(name, around, **SMALL.get(name, {}), **options)
        drawn = scene(strategy, Plan((3, 2, 3), (0, 1, 2), (ROWS, 20, 30), 4))
        sent: Tensors = drawn.updates[0].delta
        for wrapper in around:
            sent = wrapper.outgoing(sent, drawn.updates[0].ticket, {})
        records = wire.pack(State(sent))
        records["metrics"] = MetricRecord({"num-examples": ROWS, "server-round": 1, "train-loss": 0.5})
        return cls(drawn, records)

    def admitted(self, changes: list[Mutation]) -> Update | str:
        """The update, or why there is none. Raises nothing, whatever came."""
        question = Message(RecordDict(), dst_node_id=3, message_type="train")
        question.metadata.__dict__["_message_id"] = "question"
        reply = through_wire(Message(RecordDict(dict(self.good)), reply_to=question))
        for number, change in enumerate(changes):
            with suppress(*(GONE if number else ())):
                change.apply(reply.content)
        update = self.drawn.updates[0]
        try:
            return door.admit_update(
                self.drawn.strategy, through_wire(reply), update.node, update.ticket, self.drawn.state, ROWS
            )
        except Refused as reason:
            return str(reason)


def assert_named(reason: str, changes: list[Mutation]) -> None:
    """One of the changes is what the reason speaks of; and a log can hold it."""
    assert any(re.search(change.says, reason) for change in changes), reason
    assert len(reason) < 1000
    assert reason.isprintable()


def assert_sound(case: Case, update: Update) -> None:
    """An update of the right form, and the state that comes of it is finite."""
    sent, strategy = case.drawn.updates[0], case.drawn.strategy
    assert (update.node, update.ticket.round, update.ticket.seed) == ("0", 1, sent.ticket.seed)
    assert 0 < update.ticket.rank <= sent.ticket.rank or update.ticket.rank == sent.ticket.rank
    assert 0 < update.weight <= ROWS
    assert all(math.isfinite(value) for value in update.metrics.values())
    expected = truncated(strategy.expected(case.drawn.state, update.ticket), update.ticket.rank)
    assert {n: (t.shape, t.dtype) for n, t in update.delta.items()} == {
        n: (t.shape, t.dtype) for n, t in expected.items()
    }
    assert_finite(update.delta)
    assert all(float(tensor.double().abs().max()) <= door.LARGEST for tensor in update.delta.values())
    combined = chain.rule(strategy)(case.drawn.state, iter([update, *case.drawn.updates[1:]]))
    after = strategy.apply(case.drawn.state, combined, 1)
    assert_finite(after.tensors)
    for entry in after.journal:
        assert_finite(entry.tensors)


def assert_finite(tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        assert bool(torch.isfinite(tensor).all()), name


@pytest.mark.parametrize(("name", "options", "wrappers"), WRAPPED, ids=lambda value: str(value) or "bare")
def test_a_damaged_reply_is_refused_or_does_no_harm(name: str, options: dict[str, object], wrappers: str) -> None:
    """15 times 180 of them are 2,700."""
    case, outcomes = Case.of(name, options, wrappers), Counter[str]()
    assert isinstance(case.admitted([]), Update)

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(mutations(), min_size=1, max_size=2))
    def damage(changes: list[Mutation]) -> None:
        outcome = case.admitted(changes)
        outcomes[type(outcome).__name__] += 1
        if isinstance(outcome, str):
            assert_named(outcome, changes)
        else:
            assert_sound(case, outcome)

    damage()
    assert outcomes.total() >= EXAMPLES
    assert outcomes["str"] > EXAMPLES / 3
    assert outcomes["Update"] > 0
