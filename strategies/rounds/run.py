"""One run in progress: what stays the same from round to round, and the objects that remember what does not."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Message

from strategies.exchange import compatibility
from strategies.exchange.callback import NodeReport, RoundReport
from strategies.exchange.federation import evaluated
from strategies.exchange.privacy import Mechanism, Plan
from strategies.exchange.types import RunFailed, State
from strategies.rounds import validation
from strategies.rounds.context import RunContext
from strategies.rounds.defence import row_limits
from strategies.rounds.dispatch import Dispatch
from strategies.rounds.handshake.node_registry import NodeRegistry

LOG = logging.getLogger("flwr")


@dataclass
class Run:
    """Everything that a round needs. Raises RunFailed if privacy allows no round."""

    context: RunContext
    registry: NodeRegistry
    first: int = field(init=False)  # round of this process
    dispatch: Dispatch = field(init=False)
    mechanism: Mechanism = field(init=False)
    doubted: set[str] = field(default_factory=set)  # nodes whose claimed rows were reported as too many

    def __post_init__(self) -> None:
        context, run_state = self.context, self.context.run_state
        self.first = run_state.round + 1
        self.dispatch = Dispatch(context, self.registry)
        self.mechanism = compatibility.mechanism(context.strategy, self._plan())
        if run_state.privacy:
            self.mechanism.restore(run_state.privacy)
        if spent := self.mechanism.exhausted():
            raise RunFailed(f"nothing left to do: {spent}")
        if promise := self.mechanism.promise():
            LOG.info("privacy: %s", promise)

    def _plan(self) -> Plan:
        """Return what the run intends, as far as privacy depends on it."""
        context, federation = self.context, self.context.federation
        return Plan(
            rounds=context.rounds,
            nodes=len(self.registry.present),
            fraction=federation.fraction_train,
            minimum=federation.min_train_nodes,
            seed=federation.seed,
            done=max(context.run_state.round, 0),
            config=context.config,
        )

    def report(self, number: int) -> RoundReport:
        """Return a new report; the handshake's traffic counts to the first round of this process."""
        report, handshake = RoundReport(number), self.registry.first
        if number == self.first:
            report.spent(handshake.bytes_up, handshake.bytes_down, handshake.bytes_base)
        return report

    def rows(self, claims: Mapping[str, int | float]) -> dict[str, int]:
        """Return the most rows that each node counts for, by name; log the nodes that count for less than they
        claim."""
        limits = row_limits.limits(claims, ratio := self.context.federation.max_weight_ratio)
        for name, limit in limits.items():
            if claims[name] > limit and name not in self.doubted:
                self.doubted.add(name)
                said = "node %s claims %d rows, above max-weight-ratio = %g times the median claim: it counts for %d"
                LOG.warning(said, name, claims[name], ratio, limit)
        return limits

    def remember_privacy(self) -> None:
        """Write what is spent before the messages that it is spent on leave."""
        self.context.run_state.privacy = self.mechanism.memory()
        if self.context.run_state.privacy and self.context.federation.checkpoint is not None:
            self.context.run_state.keep_privacy(self.context.federation.checkpoint)

    def due(self, number: int) -> bool:
        """Return whether the state is evaluated in this round."""
        return evaluated(number, self.context.rounds, self.context.federation.evaluate_every) or bool(
            self.mechanism.exhausted()
        )

    def check(self, reply: Message | None, line: NodeReport, state: State) -> None:
        """Raise Refused unless a node has installed what it was sent."""
        validation.check_installed(reply, self.dispatch.install_hashes[line.node])
        if line.catches_up:
            validation.check_proof(reply, self.dispatch.fingerprint(state))
