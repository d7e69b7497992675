"""Send each node its start of a round, with the part of the journal that it lacks, or with the weights."""

from dataclasses import dataclass, field, replace

from flwr.app import RecordDict

from strategies.algebra.tensors import Tensors
from strategies.exchange.callback import NodeReport, RoundReport
from strategies.exchange.types import Assignment, Profile, State
from strategies.protocol import install_hash, instructions, journal, wire
from strategies.rounds import messaging
from strategies.rounds.context import RunContext
from strategies.rounds.handshake.node_registry import NodeRegistry
from task.config import TaskConfig
from task.models.model import TunedModel


@dataclass
class Dispatch:
    """The sender of a run's messages."""

    context: RunContext
    registry: NodeRegistry
    base_weight_bytes: int = 0  # of the weights that the journal changes, once it has an entry
    fingerprints: dict[str, str] = field(default_factory=dict)  # of the newest weights, by their journal position
    weights: dict[str, Tensors] = field(default_factory=dict)  # while they are sent, by their journal position
    install_hashes: dict[str, int] = field(default_factory=dict)  # that the nodes just sent to must report, by name

    def send(
        self,
        kind: str,
        number: int,
        state: State,
        pairs: list[tuple[Profile, Assignment]],
        report: RoundReport,
        cohort: int,
    ) -> list[messaging.Sent]:
        """Send one message per node, encoded once per distinct content, and fill in the lines of the report. `cohort`
        is how many nodes take part according to their assignments."""
        packed: dict[tuple[int, str, bool], messaging.Payload] = {}
        base, run_state = self.context.base.fingerprint, self.context.run_state
        instruction = instructions.write(
            self._config(kind), self.context.strategy, base, run_state.rank, run_state.token
        )
        sent, by_rank = [], dict[int, int]()
        self.install_hashes = {}
        for profile, assignment in pairs:
            share = self._share(profile, assignment, state)
            content = (assignment.rank, share.since, bool(share.base_weights))
            if content not in packed:
                packed[content] = messaging.Payload.of(wire.pack(share), share.numbers)
            if assignment.rank not in by_rank:
                by_rank[assignment.rank] = install_hash.expected(share.tensors, share.positions[-1], base)
            self.install_hashes[profile.name] = by_rank[assignment.rank]
            line = NodeReport(profile.name, assignment.rank, journal=-1 if share.base_weights else len(share.journal))
            written = instructions.write_assignment(assignment, prove=line.catches_up, cohort=cohort)
            own = RecordDict({"instructions": instruction, "assignment": written})
            item = messaging.send(self.context.grid, profile.node_id, kind, str(number), packed[content], own)
            line.bytes_down = item.bytes
            report.nodes.append(line)
            report.bytes_down += item.bytes
            report.parameters_down += item.numbers
            sent.append(item)
        self.weights.clear()
        return sent

    def fingerprint(self, state: State) -> str:
        """Return the fingerprint of the weights that a node has when it has this state."""
        position = state.positions[-1]
        if position not in self.fingerprints:
            self.fingerprints = {position: journal.fingerprint(self._held(state))}
        return self.fingerprints[position]

    def _config(self, kind: str) -> TaskConfig:
        config = self.context.config
        if kind != "evaluate":
            return config
        return replace(self.context.evaluate_config, data=config.data)

    def _share(self, profile: Profile, assignment: Assignment, state: State) -> State:
        """Return what this node is sent: the part of the journal that it lacks, or the weights, whichever is
        smaller."""
        share = self.registry.share(profile, assignment, state)
        if not share.journal or share.journal_bytes <= self._least_bytes(state):
            return share
        position = state.positions[-1]
        if position not in self.weights:
            self.weights[position] = journal.base_weights_of(self._held(state))
        return State(share.tensors, (), position, self.weights[position])

    def _least_bytes(self, state: State) -> int:
        """Return how many bytes the weights that the journal changes take."""
        if not self.base_weight_bytes:
            self.base_weight_bytes = journal.base_weight_bytes(self._held(state))
        return self.base_weight_bytes

    def _held(self, state: State) -> TunedModel:
        context = self.context
        return journal.held(context.strategy, context.base, context.config, state, context.federation.device)
