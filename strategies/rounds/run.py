"""One run in progress: what stays the same from round to round, and who remembers what does not."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import Grid

from strategies.exchange import compatibility
from strategies.exchange.federation import Federation, NodeReport, RoundReport, evaluated
from strategies.exchange.privacy import Mechanism, Plan
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import RunFailed, State
from strategies.rounds import validation
from strategies.rounds.defence import row_limits
from strategies.rounds.dispatch import Dispatch
from strategies.rounds.handshake.node_registry import NodeRegistry
from strategies.rounds.handshake.opening import Opening
from strategies.rounds.run_state import RunState

LOG = logging.getLogger("flwr")


@dataclass
class Run:
    """Everything that a round needs. Raises RunFailed where privacy allows no round."""

    strategy: Strategy
    grid: Grid
    opening: Opening
    federation: Federation
    run_state: RunState
    rounds: int
    timeout: float  # seconds, per round
    evaluate_config: dict[str, object]
    evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None
    first: int = field(init=False)  # round of this process
    registry: NodeRegistry = field(init=False)
    dispatch: Dispatch = field(init=False)
    mechanism: Mechanism = field(init=False)
    doubted: set[str] = field(default_factory=set)  # nodes whose claims of rows were said to be too large

    def __post_init__(self) -> None:
        self.first = self.run_state.round + 1
        self.registry = NodeRegistry(
            self.strategy, self.grid, self.opening, self.federation, self.timeout, self.run_state
        )
        self.dispatch = Dispatch(
            self.strategy, self.grid, self.opening, self.registry, self.evaluate_config, self.run_state
        )
        held, nodes = self.federation, len(self.registry.present)
        done, config = max(self.run_state.round, 0), self.opening.config
        plan = Plan(self.rounds, nodes, held.fraction_train, held.min_train_nodes, held.seed, done, config)
        self.mechanism = compatibility.mechanism(self.strategy, plan)
        if self.run_state.privacy:
            self.mechanism.restore(self.run_state.privacy)
        if spent := self.mechanism.exhausted():
            raise RunFailed(f"nothing left to do: {spent}")
        if promise := self.mechanism.promise():
            LOG.info("privacy: %s", promise)

    def report(self, number: int) -> RoundReport:
        """A new one; what was spent on meeting the nodes counts to the first round of this process."""
        report, handshake = RoundReport(number), self.opening.handshake
        if number == self.first:
            report.spent(handshake.bytes_up, handshake.bytes_down, handshake.bytes_base)
        return report

    def rows(self, claims: Mapping[str, int | float]) -> dict[str, int]:
        """Return the most rows that each node counts for, by name; say of whom less is believed than it claims."""
        limits = row_limits.limits(claims, ratio := self.federation.max_weight_ratio)
        for name, limit in limits.items():
            if claims[name] > limit and name not in self.doubted:
                self.doubted.add(name)
                said = "node %s claims %d rows, above max-weight-ratio = %g times the median claim: it counts for %d"
                LOG.warning(said, name, claims[name], ratio, limit)
        return limits

    def remember_privacy(self) -> None:
        """Keep what is spent, before what it is spent on leaves."""
        self.run_state.privacy = self.mechanism.memory()
        if self.run_state.privacy and self.federation.checkpoint is not None:
            self.run_state.keep_privacy(self.federation.checkpoint)

    def due(self, number: int) -> bool:
        """Is the state evaluated in this round?"""
        return evaluated(number, self.rounds, self.federation.evaluate_every) or bool(self.mechanism.exhausted())

    def check(self, reply: Message | None, line: NodeReport, state: State) -> None:
        """Raise Refused unless a node stands where it was sent."""
        validation.check_installed(reply, self.dispatch.install_hashes[line.node])
        if line.catches_up:
            validation.check_proof(reply, self.dispatch.fingerprint(state))
