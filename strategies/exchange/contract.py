"""What a strategy is: the server's and the node's half of one algorithm, facing each other.

The defaults below are federated averaging. A strategy is a frozen dataclass in a file of `strategies/`;
its fields, made by `task.schema.option`, are its options. It is a Flower strategy too: `start` runs the
round loop in anybody's ServerApp. Instances hold no state, so one can be used again and again.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NoReturn

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from strategies.algebra.lowrank import truncated
from strategies.algebra.mean import WeightedSum
from strategies.algebra.tensors import Tensors, added, difference, snapshot
from strategies.exchange import rounds
from strategies.exchange.federation import Federation
from strategies.exchange.vocabulary import Entry, Metrics, Profile, State, Ticket, Update
from strategies.exchange.wrapper import Wrapper
from task.model import TunedModel
from task.seeds import derive
from task.train import Trainer

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]

IDENTITY = "one node: the state becomes what that node trained"
FIXED_POINT = "updates of zero leave the state as it is"
ORDER = "the order of updates does not matter"
WEIGHTS = "only the proportions of weights matter"
EQUAL_RANKS = "with equal ranks it is federated averaging"
EXACT = "the product of the factors becomes the weighted mean of the nodes' products"


@dataclass(frozen=True)
class Strategy(FlowerStrategy):
    """Federated averaging (McMahan et al., arXiv 1602.05629, Algorithm 1) of whatever the tuning trains."""

    wrappers: tuple[Wrapper, ...] = field(default=(), kw_only=True)

    tunings: ClassVar[frozenset[str] | None] = None  # tunings it is meant for; None: any
    ragged: ClassVar[bool] = False  # may nodes of one cohort hold different ranks?
    prunes: ClassVar[bool] = False  # may a node answer with fewer ranks than its ticket, and keep to them?
    mean: ClassVar[bool] = True  # is `combine` the weighted mean of the updates?
    laws: ClassVar[frozenset[str]] = frozenset({IDENTITY, FIXED_POINT, ORDER, WEIGHTS, EQUAL_RANKS})

    # ------------------------------------------------------------------ the server's half

    def initial(self, model: TunedModel) -> State:
        """The state before round 1: what the fresh model holds."""
        return State(snapshot(self.exchanged(model)))

    def assign(self, profiles: list[Profile], round: int, rounds: int, seed: int) -> dict[str, Ticket]:
        """A ticket for every node that is there, by name. Where ranks must be equal, the smallest budget rules."""
        budgets = {profile.name: profile.rank for profile in profiles}
        common = min(budgets.values(), default=0)
        return {
            name: Ticket(round, rounds, derive(seed, "train", round, name), own if self.ragged else common)
            for name, own in budgets.items()
        }

    def start_of(self, state: State, ticket: Ticket) -> State:
        """What the node of this ticket starts from. Pure: the server calls it again to check an update."""
        return State(truncated(state.tensors, ticket.rank), state.journal)

    def expected(self, start: State, ticket: Ticket) -> Tensors:
        """Tensors of the names, shapes and dtypes that an update to this start must have."""
        return {name: tensor for name, tensor in start.tensors.items() if self.trains(name, ticket.round)}

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        """One change of the state from the updates of a round, which are read once, as they come."""
        total = WeightedSum(state.tensors)
        for update in updates:
            total.add(update.delta, update.weight)
        return total.mean()

    def apply(self, state: State, combined: Tensors, round: int) -> State:
        """The state of the next round."""
        return State(added(state.tensors, combined), state.journal)

    # ------------------------------------------------------------------ both halves

    def trains(self, name: str, round: int) -> bool:
        """Does the exchanged tensor of this name change in this round? Updates hold those that do."""
        return True

    # ------------------------------------------------------------------ the node's half

    def exchanged(self, model: TunedModel) -> Mapping[str, torch.Tensor]:
        """The tensors of the model that this strategy exchanges, by their names on the wire."""
        return model.trained

    def install(self, model: TunedModel, start: State) -> None:
        """Make the model what the server holds: write tensors, replay entries in order, from the base on."""
        model.reset(model.trained.keys() - start.tensors.keys())  # they would keep another node's training
        model.write(start.tensors)
        for entry in start.journal:
            self.replay(model, entry)

    def replay(self, model: TunedModel, entry: Entry) -> None:
        """Change the base by one entry of the journal."""
        raise TypeError(f"the strategy '{self.name}' keeps no journal, but was sent an entry of round {entry.round}")

    def train(self, model: TunedModel, trainer: Trainer, ticket: Ticket) -> tuple[Tensors, Metrics]:
        """Train on the node's rows; returns the update (after - before) and what to report."""
        live = self.live(model, ticket)
        before = snapshot(live)
        metrics = trainer.fit(model, live)
        return difference(live, before), metrics

    def live(self, model: TunedModel, ticket: Ticket) -> dict[str, torch.Tensor]:
        """The tensors of the model that change in the ticket's round."""
        return {name: t for name, t in self.exchanged(model).items() if self.trains(name, ticket.round)}

    # ------------------------------------------------------------------ Flower's side

    @property
    def name(self) -> str:
        """The key it is chosen by: the name of its file."""
        return type(self).__module__.rsplit(".", 1)[-1].replace("_", "-")

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        federation: Federation | None = None,
    ) -> Result:
        """Run the federation. The arguments are Flower's, and one more.

        `initial_arrays` may be left out: the base and the tuning decide then. `train_config` holds the
        task's settings under their run-config keys (`tuning`, `learning-rate`, `data.name`, ...), `evaluate_config`
        what shall differ from them when nodes evaluate; they travel in every message, so nodes need no
        configuration of ours. `timeout` is in seconds, per round.

        Raises ConfigError for bad settings, RunFailed when the federation cannot go on.
        """
        return rounds.run(
            self,
            grid,
            initial_arrays=initial_arrays,
            num_rounds=num_rounds,
            timeout=timeout,
            train_config=dict(train_config or {}),
            evaluate_config=dict(evaluate_config or {}),
            evaluate_fn=evaluate_fn,
            federation=federation or Federation(),
        )

    def summary(self) -> None:
        """Log what this strategy is."""
        rounds.log_strategy(self)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Not how this strategy is driven; see `start`."""
        self._only_start()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Not how this strategy is driven; see `start`."""
        self._only_start()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Not how this strategy is driven; see `start`."""
        self._only_start()

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Not how this strategy is driven; see `start`."""
        self._only_start()

    def _only_start(self) -> NoReturn:
        """Flower's hooks see neither what a node was sent nor who it is, so they cannot carry these methods."""
        raise RuntimeError(f"'{self.name}' runs its own round loop: call start(grid, ...) instead of Flower's hooks")
