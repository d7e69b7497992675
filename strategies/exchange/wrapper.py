"""Wrappers: what is applied to every update, whatever the strategy, such as compression and privacy.

A wrapper is one frozen dataclass in one file of `strategies/wrappers/`; its options are made by `task.schema.option`.
It has a half on the node and a half on the server. Nodes apply the wrappers in order; the server undoes them in
reverse.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from strategies.algebra.tensors import Tensors
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.federation import Federation
from strategies.exchange.privacy import Mechanism, Payment, Plan
from strategies.exchange.types import Assignment, State, Update
from task import extensions
from task.config import TaskConfig
from task.training.trainer import Trainer

SERVER, NODE = "server", "node"


@dataclass(frozen=True)
class Wrapper:
    """The identity; subclasses override what they need."""

    additive_across_rounds: ClassVar[bool] = (
        True  # whether the same place of what it sends means the same, round after round
    )
    encodes: ClassVar[bool] = False  # whether it changes what is sent: it has `encode`, `encoded_spec` and `decode`
    leaves_out: ClassVar[bool] = False  # whether it sends some numbers of an update and leaves out the others
    combines: ClassVar[bool] = False  # whether it decides how updates combine: it has `combine`
    privacy: ClassVar[str] = ""  # who adds the noise that its `mechanism` accounts for: SERVER or NODE
    sends_code: ClassVar[bool] = False  # whether it sends a code, which no wrapper after it may change
    needs_weighted_mean: ClassVar[bool] = False  # whether it acts on the weighted mean of updates
    must_be_first: ClassVar[bool] = False  # whether its input must be the update itself

    @property
    def name(self) -> str:
        """Return the key of a wrapper: the name of its file."""
        return extensions.name_of(type(self))

    @property
    def hides_metrics(self) -> bool:
        """Return whether the metrics of training stay on the node."""
        return False

    def problems(
        self, strategy: Algorithm, config: TaskConfig, federation: Federation | None, inner: Sequence["Wrapper"]
    ) -> list[str]:
        """Return the conflicts between this wrapper's options and the strategy, the task's settings, the federation
        (None: not known yet) and `inner`, the wrappers that are applied before it."""
        return []

    def penalty(self, live: Mapping[str, torch.Tensor]) -> Callable[[], torch.Tensor] | None:
        """On the node: return the penalty that is added to every loss while the tensors `live` train; None: no
        penalty."""
        return None

    def training(self, trainer: Trainer, assignment: Assignment, client_state: Tensors) -> Trainer:
        """On the node: return the trainer that the strategy uses. `client_state` is the one that `encode` gets
        later."""
        return trainer

    def payment(self, assignment: Assignment, config: TaskConfig, rows: int) -> Payment | None:
        """On the node: return the privacy cost of a message that is computed from so many rows; None: no privacy covers
        it. Raises Refused for an assignment that lacks what is needed."""
        return None

    def encode(self, update: Tensors, assignment: Assignment, client_state: Tensors) -> Tensors:
        """On the node: return what is sent instead of `update`. `client_state` is this wrapper's memory on the node,
        empty in the first round; changes to it stay for the next round. It never leaves the node."""
        return update

    def encoded_spec(self, like: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """On the server: return tensors of the names, shapes and dtypes that `encode` makes of an update like this one.
        They hold no numbers and may be on the device `meta`, as may the tensors of `like`."""
        return like

    def decode(self, sent: Tensors, like: Mapping[str, torch.Tensor]) -> Tensors:
        """On the server: return an update like `like`. Undo `encode` as far as possible. `sent` is known to have the
        names, shapes and dtypes of `encoded_spec(like)` and to be finite. Raise Refused for anything else that is
        wrong."""
        return sent

    def admitted(self, strategy: Algorithm, update: Update) -> Update:
        """On the server: return the update to combine, after all wrappers are undone. Raises Refused."""
        return update

    def combine(self, strategy: Algorithm, state: State, updates: Iterable[Update]) -> Tensors:
        """On the server: return one change of the state from the updates of a round, instead of the strategy's own
        rule. Only one of a run's wrappers may have such a rule."""
        raise NotImplementedError

    def mechanism(self, plan: Plan) -> Mechanism | None:
        """On the server: return the privacy mechanism of a run with this plan. Raises ConfigError if there can be
        none."""
        return None
