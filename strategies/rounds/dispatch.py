"""What each node is sent in a round: its start, with the part of the journal that it lacks, or the weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flwr.app import RecordDict
from flwr.serverapp import Grid

from strategies.algebra.tensors import Tensors
from strategies.exchange.federation import NodeLine, Round
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Profile, State, Ticket
from strategies.protocol import install_hash, instructions, journal, wire
from strategies.rounds import messaging
from strategies.rounds.handshake.node_registry import Roll
from strategies.rounds.handshake.opening import Opening
from strategies.rounds.run_state import Session
from task.config import TaskConfig
from task.models.model import TunedModel
from task.schema import flatten


@dataclass
class Dispatch:
    """Sends the messages of a run."""

    strategy: Strategy
    grid: Grid
    opening: Opening
    roll: Roll
    evaluate_config: Mapping[str, object]
    session: Session
    ground_bytes: int = 0  # of the weights that the journal changes, once it has an entry
    fingerprints: dict[str, str] = field(default_factory=dict)  # of the newest weights, by their mark
    weights: dict[str, Tensors] = field(default_factory=dict)  # while they are sent, by their mark
    echoes: dict[str, int] = field(default_factory=dict)  # what the nodes just sent to shall say, by name

    def send(
        self, kind: str, number: int, state: State, pairs: list[tuple[Profile, Ticket]], report: Round, cohort: int
    ) -> list[messaging.Sent]:
        """One message a node, encoded once per distinct content; fills in the lines of the report. `cohort` is how many
        nodes they are told take part."""
        packed: dict[tuple[int, str, bool], messaging.Parcel] = {}
        base, session = self.opening.base.fingerprint, self.session
        instruction = instructions.write(self._config(kind), self.strategy, base, session.rank, session.token)
        sent, by_rank = [], dict[int, int]()
        self.echoes = {}
        for profile, ticket in pairs:
            share = self._share(profile, ticket, state)
            content = (ticket.rank, share.since, bool(share.ground))
            if content not in packed:
                packed[content] = messaging.Parcel.of(wire.pack(share), share.numbers)
            if ticket.rank not in by_rank:
                by_rank[ticket.rank] = install_hash.expected(share.tensors, share.marks[-1], base)
            self.echoes[profile.name] = by_rank[ticket.rank]
            line = NodeLine(profile.name, ticket.rank, journal=-1 if share.ground else len(share.journal))
            written = instructions.write_ticket(ticket, prove=line.catches_up, cohort=cohort)
            own = RecordDict({"order": instruction, "ticket": written})
            item = messaging.send(self.grid, profile.node_id, kind, str(number), packed[content], own)
            line.bytes_down = item.bytes
            report.nodes.append(line)
            report.bytes_down += item.bytes
            report.parameters_down += item.numbers
            sent.append(item)
        self.weights.clear()
        return sent

    def fingerprint(self, state: State) -> str:
        """Of the weights that a node stands on when it has this state."""
        mark = state.marks[-1]
        if mark not in self.fingerprints:
            self.fingerprints = {mark: journal.fingerprint(self._held(state))}
        return self.fingerprints[mark]

    def _config(self, kind: str) -> TaskConfig:
        config = self.opening.config
        if kind != "evaluate":
            return config
        return replace(TaskConfig.read({**flatten(config), **self.evaluate_config}), data=config.data)

    def _share(self, profile: Profile, ticket: Ticket, state: State) -> State:
        """What this node is sent: the part of the journal that it lacks, or the weights, whichever is smaller."""
        share = self.roll.share(profile, ticket, state)
        if not share.journal or share.journal_bytes <= self._least_bytes(state):
            return share
        mark = state.marks[-1]
        if mark not in self.weights:
            self.weights[mark] = journal.grounded(self._held(state))
        return State(share.tensors, (), mark, self.weights[mark])

    def _least_bytes(self, state: State) -> int:
        """How many bytes the weights are that the journal changes."""
        if not self.ground_bytes:
            self.ground_bytes = journal.ground_bytes(self._held(state))
        return self.ground_bytes

    def _held(self, state: State) -> TunedModel:
        opening, device = self.opening, self.roll.federation.device
        return journal.held(self.strategy, opening.base, opening.config, state, device)
