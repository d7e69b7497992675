"""The traffic of a run, computed by packing the messages of every round."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from flwr.app import MetricRecord, RecordDict

from server_app.config import RunConfig
from strategies.algebra.tensors import Tensors
from strategies.exchange import head_rounds
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import BASE_POSITION, Assignment, Entry, Profile, State, Update
from strategies.protocol import instructions, wire
from strategies.protocol.install_hash import expected as expected_hash
from strategies.protocol.replies import INSTALLED
from strategies.rounds.run_state import RunState
from task.config import TaskConfig
from task.models.base import Base


@dataclass(frozen=True)
class Cost:
    """The bytes of one node's messages in a round, as Flower encodes their records."""

    down: int
    up: int


@dataclass(frozen=True)
class Leg:
    """Rounds with equal traffic: the rank of every node by name, and the cost of a node by rank."""

    rounds: tuple[int, ...]
    ranks: Mapping[str, int]
    costs: Mapping[int, Cost]


@dataclass(frozen=True)
class Traffic:
    """Measures the messages of a run; messages of the same shape are packed once."""

    run: RunConfig
    task: TaskConfig
    base: Base
    known: dict[object, Cost] = field(default_factory=dict)

    @property
    def left_out(self) -> bool:
        """Return whether the strategy puts something into the base whose size is unknown and not counted."""
        return _keeps_journal(self.run.strategy) and not _updates_become_entries(self.run.strategy)

    def legs(self, profiles: Sequence[Profile], state: State) -> list[Leg]:
        """Return all rounds, grouped by cost, for nodes that take part in all of them.

        The journal entries of all rounds are assumed to be as large as that of the first round.
        """
        found: dict[object, Leg] = {}
        for number, ranks, costs in self._rounds(profiles, state):
            form = (tuple(ranks.items()), tuple(costs.items()))
            leg = found.get(form, Leg((), ranks, costs))
            found[form] = replace(leg, rounds=(*leg.rounds, number))
        return list(found.values())

    def _rounds(
        self, profiles: Sequence[Profile], state: State
    ) -> Iterator[tuple[int, dict[str, int], dict[int, Cost]]]:
        strategy, rounds, built, position = (
            self.run.strategy,
            self.run.server.num_server_rounds,
            state.rank,
            BASE_POSITION,
        )
        entry: Entry | None = None
        for number in range(1, rounds + 1):
            assignments = strategy.assign(list(profiles), number, rounds, self.task.seed)
            ranks = {name: min(assignment.rank, state.rank) for name, assignment in assignments.items()}
            state = strategy.begin(head_rounds.begun(state, self.task, number), number, max(ranks.values()))
            assignments_by_rank = {
                rank: Assignment(number, rounds, self.task.seed, rank) for rank in sorted({*ranks.values()})
            }
            yield (
                number,
                ranks,
                {r: self._cost(state, assignment, position, built) for r, assignment in assignments_by_rank.items()},
            )
            position = state.positions[-1]
            if number == self.task.rounds_of_head + 1 and _updates_become_entries(strategy):
                entry = self._entry(state, assignments)
            if entry is not None:
                state = replace(state, journal=(*state.journal, replace(entry, round=number)))

    def _entry(self, state: State, assignments: Mapping[str, Assignment]) -> Entry | None:
        """Return the journal entry of a round of random updates, or None if there is none."""
        strategy, server = self.run.strategy, self.run.server
        cohort = max(round(server.fraction_train * len(assignments)), server.min_train_nodes, 1)
        updates = []
        for name, assignment in list(assignments.items())[:cohort]:
            assignment = replace(assignment, rank=min(assignment.rank, state.rank))
            delta = _filled(State(strategy.expected(state, assignment)), assignment.seed).tensors
            updates.append(Update(name, assignment, delta, 1.0))
        after = strategy.apply(state, strategy.combine(state, iter(updates)), 1).journal[len(state.journal) :]
        return after[0] if after else None

    def _cost(self, state: State, assignment: Assignment, position: str, built: int) -> Cost:
        strategy = self.run.strategy
        share, expected = strategy.start_of(state, assignment).after(position), strategy.expected(state, assignment)
        form = (*_forms(share.tensors), *(_forms(entry.tensors) for entry in share.journal), "up", *_forms(expected))
        if form not in self.known:
            records = wire.pack(_filled(share))
            records["instructions"] = instructions.write(
                self.task, strategy, self.base.fingerprint, built, RunState().token
            )
            records["assignment"] = instructions.write_assignment(assignment)
            self.known[form] = Cost(wire.size(records), wire.size(_reply(strategy, expected, assignment)))
        return self.known[form]


def _updates_become_entries(strategy: Strategy) -> bool:
    return _keeps_journal(strategy) and type(strategy).apply is not Strategy.apply


def _keeps_journal(strategy: Strategy) -> bool:
    return type(strategy).replay is not Strategy.replay


def _reply(strategy: Strategy, expected: Tensors, assignment: Assignment) -> RecordDict:
    delta = _filled(State(dict(expected))).tensors
    for wrapper in strategy.wrappers:
        delta = wrapper.encode(delta, assignment, {})
    reply = wire.pack(State(delta))
    numbers = {"num-examples": 1, "server-round": 1, "seconds": 1.0, "train-loss": 1.0, "steps": 1}
    reply["metrics"] = MetricRecord({**numbers, INSTALLED: expected_hash({}, BASE_POSITION, "")})
    return reply


def _forms(tensors: Tensors) -> tuple[object, ...]:
    return tuple((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())


def _filled(state: State, seed: int = 0) -> State:
    """Return the state with random values, because equal chunks would be counted once. Integers are not changed."""
    noise = torch.Generator().manual_seed(seed)

    def other(tensor: torch.Tensor) -> torch.Tensor:
        random = torch.rand(tensor.shape, generator=noise)
        return random.to(tensor.dtype) if tensor.is_floating_point() else tensor

    return replace(state, tensors={name: other(tensor) for name, tensor in state.tensors.items()})
