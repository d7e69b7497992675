"""One of five nodes lies in every round, in the right form: no strategy's run ends in NaN, overflow or failure.

`make fuzz` lets every strategy be lied to in all ways over 50 rounds.
"""

import math
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict
from fuzzing import GONE
from in_process import Spoil, federate, retold, suiting
from mutations import payloads, several

import strategies
from strategies.algebra.tensors import Tensors
from strategies.ferret import COUNTS
from strategies.rounds import validation

ROUNDS = int(os.environ.get("FUZZ_LIES", "12"))
LIAR = 1
FIVE: dict[str, Any] = {
    "simulation.num-supernodes": 5,
    "evaluate-every": 4,
    "lora.ranks": "8,4,2",
    "lora.targets": "q_proj,v_proj",
}
Lie = Callable[[int], Callable[[Message], Message]]  # by round


def mutated(name: str) -> Lie:
    """Bytes of the update are overwritten, cut out or put in: what the door lets through is any number in the form."""
    ways, chosen = several(payloads(), 200, 0), random.Random(0)  # without a guard flora does not survive these

    def at(round: int) -> Callable[[Message], Message]:
        def lie(reply: Message) -> Message:
            content = RecordDict(dict(reply.content))
            with suppress(*GONE):
                chosen.choice(ways).apply(content)
                reply.content = content
            return reply

        return lie

    return at


def growing(name: str) -> Lie:
    """One and a half times as long in every round, as it trained."""
    return lambda round: lambda reply: retold(reply, lambda tensors: _scaled(tensors, min(1.5**round, 1e12)))


def largest(name: str) -> Lie:
    """Every number is the largest that the form allows, with signs of its own."""
    source = torch.Generator().manual_seed(len(name))

    def full(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == COUNTS:
            return tensor
        if not tensor.is_floating_point():
            return torch.full_like(tensor, torch.iinfo(tensor.dtype).max)
        signs = torch.randint(0, 2, tensor.shape, generator=source) * 2 - 1
        return (signs.abs() if name == "scales" else signs).to(tensor.dtype) * validation.LARGEST

    return lambda round: lambda reply: retold(reply, lambda ts: {name: full(name, t) for name, t in ts.items()})


def mixed(name: str) -> Lie:
    """One after the other; what is refused leaves no trace, so each goes on as if it were alone."""
    ways = [lie(name) for lie in (mutated, growing, largest)]
    return lambda round: ways[round % 3](1 + round // 3)


def _scaled(tensors: Tensors, factor: float) -> Tensors:
    return {
        name: (t.double() * factor).clamp(-validation.LARGEST, validation.LARGEST).to(t.dtype)
        if t.is_floating_point()
        else t
        for name, t in tensors.items()
    }


LIES: dict[str, Callable[[str], Lie]] = {"mutated": mutated, "growing": growing, "largest": largest, "mixed": mixed}
SUITE = [("flora", "mutated"), ("hetlora", "largest"), ("fedavg", "largest"), ("ferret", "growing")]
EVERY = [(name, "mixed") for name in strategies.names()]


def told_by(lie: Lie) -> Spoil:
    rounds = 0

    def spoil(partition: int, kind: str, reply: Message) -> Message:
        nonlocal rounds
        if (partition, kind) != (LIAR, "train") or not reply.has_content():
            return reply
        rounds += 1
        return lie(rounds)(reply)

    return spoil


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lie"), EVERY if "FUZZ_LIES" in os.environ else SUITE)
def test_a_run_outlives_a_liar(name: str, lie: str, tmp_path: Path) -> None:
    options = FIVE | {"strategy": name, "num-server-rounds": ROUNDS, **suiting(name)}
    outcome = federate(tmp_path, options, spoil=told_by(LIES[lie](name)))
    assert outcome.summary["status"] == "completed"
    lines = outcome.rounds
    assert not any(line["failed"] for line in lines)
    assert not any(own["refused"] for line in lines[1:] for own in line["nodes"] if own["node"] != str(LIAR))
    measured = [line[key] for line in lines for key in ("loss", "nodes-loss") if key in line]
    assert measured
    assert all(math.isfinite(loss) and loss < 1e3 for loss in measured)
    state = outcome.state()
    for tensors in (state.tensors, *(entry.tensors for entry in state.journal)):
        for tensor in tensors.values():
            assert bool(torch.isfinite(tensor.float()).all())
    believed = sum(not own["refused"] for line in lines[1:] for own in line["nodes"] if own["node"] == str(LIAR))
    print(f"{name}, {lie}: {believed} of {ROUNDS} lies believed, loss {measured[0]:.2f} to {measured[-1]:.2f}")
