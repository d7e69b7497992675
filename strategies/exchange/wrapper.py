"""What goes round every update, whatever the strategy: compression, privacy.

A wrapper is one frozen dataclass in one file of `strategies/wrappers/`, its options made by
`task.schema.option`. It has a half on the node and a half on the server. On the way up the chain is
applied in order; the server undoes it in reverse.
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
from task.config import TaskConfig
from task.training.trainer import Trainer

SERVER, NODE = "server", "node"


@dataclass(frozen=True)
class Wrapper:
    """The identity; subclasses replace what they need."""

    additive_across_rounds: ClassVar[bool] = (
        True  # of what it sends: do numbers of one place belong together, round after round?
    )
    encodes: ClassVar[bool] = False  # whether it changes what is sent: it has `encode`, `encoded_spec` and `decode`
    combines: ClassVar[bool] = False  # whether it says how updates combine: it has `combine`
    privacy: ClassVar[str] = ""  # who adds the noise that its `mechanism` accounts for: SERVER or NODE
    sends_code: ClassVar[bool] = False  # whether it sends a code, which no wrapper after it may change
    needs_weighted_mean: ClassVar[bool] = False  # whether it acts on the weighted mean of updates
    must_be_first: ClassVar[bool] = False  # whether what it is given must be the update itself

    @property
    def name(self) -> str:
        """The key of a wrapper: the name of its file."""
        return type(self).__module__.rsplit(".", 1)[-1].replace("_", "-")

    @property
    def hides_metrics(self) -> bool:
        """Whether what training measures stays on the node."""
        return False

    def problems(
        self, strategy: Algorithm, config: TaskConfig, federation: Federation | None, inner: Sequence["Wrapper"]
    ) -> list[str]:
        """Return what does not fit: this wrapper's options, the strategy, the task's settings, the federation (None:
        not known yet) and `inner`, the wrappers that go first, nearer to the update."""
        return []

    def penalty(self, live: Mapping[str, torch.Tensor]) -> Callable[[], torch.Tensor] | None:
        """On the node: what is added to every loss while the tensors `live` train from where they are; or nothing."""
        return None

    def training(self, trainer: Trainer, assignment: Assignment, client_state: Tensors) -> Trainer:
        """On the node: what the strategy trains with. `kept` as in `encode`, which comes after."""
        return trainer

    def payment(self, assignment: Assignment, config: TaskConfig, rows: int) -> Payment | None:
        """On the node: what a message that is made of so many rows costs in privacy; None: no privacy covers it.
        Raises Refused for a ticket that lacks what is needed."""
        return None

    def encode(self, update: Tensors, assignment: Assignment, client_state: Tensors) -> Tensors:
        """On the node: what is sent instead of `update`. `kept` is what this wrapper has left on this node in earlier
        rounds, empty in the first; what is in it afterwards stays there for the next. It never leaves the node."""
        return update

    def encoded_spec(self, like: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """On the server: tensors of the names, shapes and dtypes that `encode` makes of an update like this one.
        They hold no numbers, and may be on the device `meta`; so may those of `like`."""
        return like

    def decode(self, sent: Tensors, like: Mapping[str, torch.Tensor]) -> Tensors:
        """On the server: an update like `like` again. Undo `encode` as far as it can be
        undone. `sent` is known to have the names, shapes and dtypes of `encoded_spec(like)` and to be finite. Raise
        Refused for anything else that is wrong."""
        return sent

    def admitted(self, strategy: Algorithm, update: Update) -> Update:
        """On the server: what an update counts as, once all wrappers are undone. Raises Refused."""
        return update

    def combine(self, strategy: Algorithm, state: State, updates: Iterable[Update]) -> Tensors:
        """On the server: one change of the state from the updates of a round, instead of the strategy's own rule. One
        wrapper of a chain may have such a rule."""
        raise NotImplementedError

    def mechanism(self, plan: Plan) -> Mechanism | None:
        """On the server: what guards or counts privacy in a run of this plan. Raises ConfigError where it cannot."""
        return None
