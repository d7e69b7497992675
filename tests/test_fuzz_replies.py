"""Thousands of damaged replies at the real door: each is refused with its cause, or is an update that does no harm."""

import math
import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from fuzzing import GONE, Tried, many
from hypothesis import strategies as st
from laws import SAID, Plan, Scene, scene, variants
from mutations import Mutation, mutations

import strategies
from strategies.algebra.lowrank import truncated
from strategies.algebra.tensors import Tensors
from strategies.exchange import compatibility
from strategies.exchange.compatibility import problems as incompatibilities
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Refused, State, Update
from strategies.exchange.wrapper import Wrapper
from strategies.protocol import wire
from strategies.rounds import validation
from task.config import TaskConfig
from thistledown.simulation.grid import through_wire

ALL = int(os.environ.get("FUZZ_REPLIES", "2700"))  # mutated replies, over all cases; `make fuzz` asks for 30,000
ROWS = 100
SLOWEST, LARGEST = 2.0, 200  # seconds of a core for one reply; MiB that the process may grow by over all of one case
CHAINS = [
    *([name] for name in ["", *strategies.wrapper_names()]),
    ["norm-bound", "top-k", "half"],
    ["median", "quantize"],
]


def cases() -> Iterator[tuple[Strategy, str]]:
    """Every variant of every strategy, bare and in every chain of CHAINS that fits it."""
    for name in strategies.names():
        for chain_of in CHAINS:
            around = [_wrapper(wrapper) for wrapper in chain_of if wrapper]
            for strategy in variants(name, around):
                tuning = "bias" if strategy.needs_in_place else "lora"
                evaluate = "nodes" if strategy.personalized else "server"
                if not incompatibilities(
                    strategy, TaskConfig.read({"tuning": tuning, "optimizer": "sgd", "evaluate": evaluate})
                ):
                    yield strategy, ",".join([str(replace(strategy, wrappers=()).to_flat()), *chain_of])


def _wrapper(name: str) -> Wrapper:
    """Without error feedback, which not every strategy allows; it stays on the node."""
    keys = strategies.option_keys(wrappers=[name])
    return strategies.load_wrapper(name, **({"feedback": False} if f"{name}.feedback" in keys else {}))


def _case(strategy: Strategy, said: str) -> Any:
    """A case of the table; strategies other than fedavg are tried with wrappers in the slow tier only."""
    quick = not strategy.wrappers or strategy.name == "fedavg"
    return pytest.param(strategy, id=said, marks=() if quick else pytest.mark.slow)


CASES = list(cases())
TRIED = Tried("replies")
EXAMPLES = -(-ALL // len(CASES))


@dataclass(frozen=True)
class Case:
    """A round of three nodes, of which the first is the one that is damaged."""

    drawn: Scene
    good: RecordDict

    @classmethod
    def of(cls, strategy: Strategy) -> "Case":
        drawn = scene(strategy, Plan((3, 2, 3), (0, 1, 2), (ROWS, 20, 30), 4))
        sent: Tensors = drawn.updates[0].delta
        for wrapper in strategy.wrappers:
            sent = wrapper.encode(sent, replace(drawn.updates[0].assignment, noise=1.0), {})
        records = wire.pack(State(sent))
        records["metrics"] = MetricRecord({"num-examples": ROWS, "server-round": 1, "train-loss": 0.5} | SAID)
        return cls(drawn, records)

    def accepted(self, changes: list[Mutation]) -> Update | str:
        """The update, or why there is none. Raises nothing, whatever came."""
        question = Message(RecordDict(), dst_node_id=3, message_type="train")
        question.metadata.__dict__["_message_id"] = "question"
        reply = through_wire(Message(RecordDict(dict(self.good)), reply_to=question))
        for number, change in enumerate(changes):
            with suppress(*(GONE if number else ())):
                change.apply(reply.content)
        update = self.drawn.updates[0]
        try:
            return validation.validate_update(
                self.drawn.strategy, through_wire(reply), update.node, update.assignment, self.drawn.state, ROWS
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
    assert (update.node, update.assignment.round, update.assignment.seed) == ("0", 1, sent.assignment.seed)
    assert 0 < update.assignment.rank <= sent.assignment.rank or update.assignment.rank == sent.assignment.rank
    assert 0 < update.weight <= ROWS
    assert all(math.isfinite(value) for value in update.metrics.values())
    expected = truncated(strategy.expected(case.drawn.state, update.assignment), update.assignment.rank)
    assert {n: (t.shape, t.dtype) for n, t in update.delta.items()} == {
        n: (t.shape, t.dtype) for n, t in expected.items()
    }
    assert_finite(update.delta)
    assert all(float(tensor.double().abs().max()) <= validation.LARGEST for tensor in update.delta.values())
    combined = compatibility.combination(strategy)(case.drawn.state, iter([update, *case.drawn.updates[1:]]))
    after = strategy.apply(case.drawn.state, combined, 1)
    assert_finite(after.tensors)
    for entry in after.journal:
        assert_finite(entry.tensors)


def assert_finite(tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        assert bool(torch.isfinite(tensor).all()), name


@pytest.mark.fewer
@pytest.mark.parametrize("strategy", [_case(strategy, said) for strategy, said in CASES])
def test_a_damaged_reply_is_refused_or_does_no_harm(strategy: Strategy) -> None:
    case, seen = Case.of(strategy), TRIED.case()
    assert isinstance(case.accepted([]), Update)

    @many(EXAMPLES, zlib.crc32(str(strategy).encode()), st.lists(mutations(), min_size=1, max_size=2))
    def damage(changes: list[Mutation]) -> None:
        began = time.process_time()
        outcome = case.accepted(changes)
        seen.saw("refused" if isinstance(outcome, str) else "harmless", time.process_time() - began)
        if isinstance(outcome, str):
            assert_named(outcome, changes)
        else:
            assert_sound(case, outcome)

    assert seen.outcomes.total() >= EXAMPLES
    assert seen.outcomes["refused"] > EXAMPLES / 4
    seen.close(SLOWEST, LARGEST)


@pytest.mark.fewer
def test_so_many_were_tried() -> None:
    """Last: the count, over all cases."""
    TRIED.assert_all(len(CASES), ALL)
