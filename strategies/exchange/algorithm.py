"""The server's and the node's half of one algorithm, in one file. The defaults are federated averaging.

Algorithms use torch and plain values: neither this file nor its subclasses know of messages.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from strategies.algebra.lowrank import truncated, zero_ranks_above
from strategies.algebra.mean import WeightedSum
from strategies.algebra.robust import Settle
from strategies.algebra.tensors import Tensors, added, change_since, corner, norm, snapshot
from strategies.exchange.types import Assignment, Entry, Metrics, Profile, State, Update
from task import extensions
from task.config import TaskConfig
from task.models.model import TunedModel
from task.seeds import derive
from task.storage.paging import paged_out
from task.training.trainer import Trainer

IDENTITY = "one node: the state becomes what that node trained"
FIXED_POINT = "updates of zero leave the state as it is"
ORDER = "the order of updates does not matter"
WEIGHTS = "only the proportions of weights matter"
EQUAL_RANKS = "with equal ranks it is federated averaging"
PRODUCTS = "it combines products of factors, and single numbers of a factor have no median"
EXACT = "the product of the factors becomes the weighted mean of the nodes' products"


DECLARED = {
    "combine": "is_weighted_mean",
    "combine_by": "has_combine_by",
    "replay": "writes_base",
}  # methods and their declarations


@dataclass(frozen=True)
class Algorithm:
    """Federated averaging (McMahan et al., arXiv 1602.05629, Algorithm 1) of whatever the tuning trains."""

    needs_ranks: ClassVar[bool] = False  # only for tunings that train pairs of factors (`has_ranks`)
    needs_in_place: ClassVar[bool] = False  # only for tunings that train the base's own tensors (`in_place`)
    heterogeneous_ranks: ClassVar[bool] = False  # whether nodes of one cohort may have different ranks
    prunes: ClassVar[bool] = False  # whether a node may answer with fewer ranks than its assignment, and keep to them
    is_weighted_mean: ClassVar[bool] = True  # whether `combine` is the weighted mean of the updates
    has_combine_by: ClassVar[bool] = False  # whether it has its own `combine_by`, for order statistics
    additive_across_rounds: ClassVar[bool] = (
        True  # whether a node's updates add up, so that what one leaves out may come in the next
    )
    exchanges_tensors: ClassVar[bool] = True  # whether nodes send changes of the model's own tensors, by name
    gradients: ClassVar[bool] = True  # whether a node learns from its rows by `Trainer.fit` alone
    personalized: ClassVar[bool] = False  # whether every node ends with a model of its own, which only it can score
    laws: ClassVar[frozenset[str]] = frozenset({IDENTITY, FIXED_POINT, ORDER, WEIGHTS, EQUAL_RANKS})

    def __init_subclass__(cls) -> None:
        """Raise TypeError for a class that overrides a rule without declaring what it is: wrappers depend on the
        declaration."""
        super().__init_subclass__()
        for method, declaration in DECLARED.items():
            if method in vars(cls) and declaration not in vars(cls):
                raise TypeError(f"{cls.__name__} has a {method} of its own: it must say whether {declaration} is true")

    @property
    def writes_base(self) -> bool:
        """Return whether a run changes frozen weights of the base, which must then not be quantised."""
        return False

    def problems(self, config: TaskConfig) -> list[str]:
        """Return the conflicts between this strategy's options and the task's settings."""
        return []

    @property
    def name(self) -> str:
        """Return the key of the strategy: the name of its file."""
        return extensions.name_of(type(self))

    # ------------------------------------------------------------------ the server's half

    def initial(self, model: TunedModel) -> State:
        """Return the state before round 1: the initial values of the model."""
        return State(snapshot(self.exchanged(model)))

    def assign(self, profiles: list[Profile], round: int, rounds: int, seed: int) -> dict[str, Assignment]:
        """Return an assignment for every node that is connected, by name. If ranks must be equal, the smallest rank
        budget applies to all."""
        budgets = {profile.name: profile.rank for profile in profiles}
        common = min(budgets.values(), default=0)
        return {
            name: Assignment(
                round, rounds, derive(seed, "train", round, name), own if self.heterogeneous_ranks else common
            )
            for name, own in budgets.items()
        }

    def begin(self, state: State, round: int, rank: int) -> State:
        """Return the state that a round starts from; `rank` is the largest that any node trains in it.

        If ranks are equal, the slices beyond it are set to zero, because every node trains without them.
        """
        if self.heterogeneous_ranks or not rank:
            return state
        return replace(state, tensors=zero_ranks_above(state.tensors, rank))

    def start_of(self, state: State, assignment: Assignment) -> State:
        """Return what the node of this assignment starts from. Pure: the server calls it again to validate an
        update."""
        return State(truncated(state.tensors, assignment.rank), state.journal)

    def expected(self, state: State, assignment: Assignment) -> Tensors:
        """Return tensors of the names, shapes and dtypes that an update of this assignment must have."""
        start = self.start_of(state, assignment)
        return {name: tensor for name, tensor in start.tensors.items() if self.trains(name, assignment.round)}

    def refusal(self, state: State, update: Update) -> str:
        """Return why an update of the expected names, shapes and dtypes is not valid; empty if it is."""
        return ""

    def trained(self, state: State, update: Update) -> Tensors:
        """Return the tensors that the node had after training, given its update."""
        return added(self.start_of(state, update.assignment).tensors, update.delta)

    def length(self, delta: Tensors) -> float:
        """Return the Euclidean norm of all floating tensors as one vector: how far an update would move a model."""
        return norm(tensor for tensor in delta.values() if tensor.is_floating_point())

    def lengths(self, state: State, update: Update) -> dict[str, float]:
        """Return the lengths of an update by what they measure, to be compared with other nodes and rounds."""
        rest = [delta for delta in update.delta.values() if not delta.is_floating_point()]
        return {"norm": self.length(update.delta)} | ({"norm of whole numbers": norm(rest)} if rest else {})

    def comparable(self, state: State, update: Update) -> Tensors:
        """Return the numbers of an update that mean the same for all nodes of a round, if there are any. They may be
        leading corners of tensors as large as the state's."""
        return update.delta

    def shortened(self, delta: Tensors, share: float) -> Tensors:
        """Return an update in the same direction, `share` as far; its `length` is that share of the old one."""
        return {n: (t.double() * share).to(t.dtype) if t.is_floating_point() else t for n, t in delta.items()}

    def apart(self, config: TaskConfig) -> str:
        """Return why the same place in different nodes' updates does not mean the same, so that no order statistic may
        replace the mean (`combine_by`); empty if it does."""
        if self.is_weighted_mean or self.has_combine_by:
            return ""
        return "it has a rule of its own (combine), without a robust variant (combine_by)"

    @property
    def fixed_step(self) -> str:
        """Return why the state must change exactly as `combine` says, so that no server optimizer may take another
        step; empty if `apply` adds the change and any other step along it is valid too."""
        return ""

    def combine_by(self, settle: Settle, state: State, updates: Iterable[Update]) -> Tensors:
        """Return one change of the state in which `settle` replaces, for every number, the mean over the nodes that
        have it. All nodes count alike; a node that lacks a number left it unchanged, as in the mean."""
        return settle(state.tensors, (update.delta for update in updates)).over_all(state.tensors)

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        """Return one change of the state from the updates of a round. The updates are read once, as they arrive."""
        total = WeightedSum(state.tensors)
        for update in updates:
            total.add(update.delta, update.weight)
        return total.mean()

    def apply(self, state: State, combined: Tensors, round: int) -> State:
        """Return the state of the next round.

        The strategy keeps or changes the tensors that only the server has (`State.server`): start from `state`, by
        `dataclasses.replace`.
        """
        return replace(state, tensors=added(state.tensors, combined))

    # ------------------------------------------------------------------ both halves

    def trains(self, name: str, round: int) -> bool:
        """Return whether the exchanged tensor of this name changes in this round. Updates contain the tensors that
        do."""
        return True

    # ------------------------------------------------------------------ the node's half

    def private(self, model: TunedModel) -> Mapping[str, torch.Tensor]:
        """Return the tensors that stay on a node from one of its rounds to the next."""
        return {}

    def restore(self, model: TunedModel, kept: Tensors) -> None:
        """Put what `private` gave after the node's last round back into its model, after `install`. Factors may have
        fewer ranks than the model's."""
        for name, tensor in kept.items():
            corner(model.trained[name].data, tensor.shape).copy_(tensor)

    def exchanged(self, model: TunedModel) -> Mapping[str, torch.Tensor]:
        """Return the model's tensors that this strategy exchanges, by their names on the wire."""
        return model.trained

    def install(self, model: TunedModel, start: State) -> None:
        """Copy the server's state into a model that has replayed the journal."""
        own = model.trained.keys() - start.tensors.keys()
        model.reset(own)  # else they would keep another node's training
        if start.rank:  # factors that stay get the rank of the factors that arrive
            model.write(truncated({name: model.trained[name] for name in own}, start.rank))
        model.write(start.tensors)

    def replay(self, model: TunedModel, entry: Entry) -> None:
        """Apply one entry of the journal to the base weights (`TunedModel.base_weight`)."""
        raise TypeError(f"the strategy '{self.name}' keeps no journal, but was sent an entry of round {entry.round}")

    def train(self, model: TunedModel, trainer: Trainer, assignment: Assignment) -> tuple[Tensors, Metrics]:
        """Train on the node's rows. Return the update (after - before) and the metrics to report."""
        live = self.live(model, assignment)
        before = paged_out(live)
        metrics = trainer.fit(model, live)
        return change_since(before, live), metrics

    def live(self, model: TunedModel, assignment: Assignment) -> dict[str, torch.Tensor]:
        """Return the tensors of the model that change in the assignment's round."""
        return {name: t for name, t in self.exchanged(model).items() if self.trains(name, assignment.round)}
