"""The base class of tunings. A tuning chooses what trains, and is applied to a new model.

A classifier's head always trains too: a new head must be learned, and a pretrained one must follow its features. The
output embedding of a causal language model is pretrained like the rest, and is often also the input embedding. It
trains only if the tuning says so.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import nn

from task import extensions

AUTO = "auto"  # in place of a rank: a trial on the node finds it
MAX_RANK = 1024  # the largest rank of an adapter
TRANSFORMERS, PEFT, OWN = "transformers", "peft", "own"  # formats of a saved folder; OWN: task.models.saving.restored


class TuningError(ValueError):
    """A tuning that does not fit a model. The message names keys of the configuration and layers of the base, so the
    server may hear all of it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.public = message


@dataclass(frozen=True)
class Head:
    """The names of a model's head modules. `along`: whether every tuning trains them too; `new`: whether the base has
    no head for these classes, so that it was drawn at random."""

    modules: list[str]
    along: bool
    new: bool = False

    @property
    def trained(self) -> list[str]:
        """Return the modules that every tuning trains."""
        return self.modules if self.along else []


class TaskKind(Protocol):
    """The attributes of a task kind (a file in task/kinds/) that a tuning may use."""

    @property
    def images(self) -> bool:
        """Whether the inputs are images; otherwise they are texts."""

    @property
    def peft_task_type(self) -> str:
        """peft's task type; empty: peft has none."""


@dataclass(frozen=True)
class Tuning(ABC):
    """A choice of what trains. Its options are fields made with `task.schema.option`.

    `table` is the configuration table of its options; empty: the tuning's name.
    """

    table: ClassVar[str] = ""
    adds: ClassVar[bool] = True  # adds tensors to the model
    in_place: ClassVar[bool] = False  # trains tensors of the base in place
    has_ranks: ClassVar[bool] = False  # trains pairs of factors whose rank is a node's budget
    on_linear_layers: ClassVar[bool] = False  # reaches only linear layers, not matrices stacked in one parameter
    soft_prompts: ClassVar[bool] = False  # puts learned tokens in front of a row
    transformers_loads: ClassVar[bool] = True  # transformers can load a folder that peft wrote
    recomputable: ClassVar[bool] = True  # works with gradient checkpointing
    running_statistics: ClassVar[bool] = False  # exchanges the running statistics of normalisation layers
    folds: ClassVar[bool] = False  # saved as the plain model: the trained tensors fold into its weights
    substitute: ClassVar[int] = 0  # position in the suggestions if another tuning does not fit; 0: never
    usual_adamw: ClassVar[tuple[float, float]] = (1e-5, 1e-1)  # smallest and largest usual learning rate
    usual_sgd: ClassVar[tuple[float, float]] = (1e-4, 1e2)
    new_head_adamw: ClassVar[float] = 1.0  # times the learning rate that a new head learns best at
    new_head_sgd: ClassVar[float] = 1.0

    @property
    def name(self) -> str:
        """Return the name of its file, which is the value of the key `tuning`."""
        return extensions.name_of(type(self))

    @abstractmethod
    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        """Return the model with `requires_grad` set on what trains and on nothing else.

        `module` is a new transformers model for `kind`, on the CPU. Random values must come from torch's global random
        state, which is the same on every machine. `rank` is the rank of all factors if `has_ranks`, else 0. Return
        `module`, changed, or peft's model around it. Raises TuningError if the tuning does not fit.
        """

    def problems(self) -> list[str]:
        """Return the problems between options that are each valid."""
        return []

    def budgets(self) -> tuple[int, ...]:
        """Return the ranks for nodes without a budget of their own, assigned in turn; (): a trial finds the rank."""
        return (0,)

    def candidates(self) -> tuple[int, ...]:
        """Return the ranks that a trial chooses from, ascending."""
        return ()

    def product_scale(self) -> float:
        """Return the factor on the product of a pair of factors when it is added to a weight."""
        return 1.0

    @property
    def starts_from_base(self) -> bool:
        """Return whether a run starts from tensors that the server computes from the base (`start`) and sends once."""
        return False

    @property
    def quantizable(self) -> bool:
        """Return whether the weights of the base's linear layers may be quantised: it trains none of them, and neither
        computes its start from them nor folds into them."""
        return not self.starts_from_base and not self.folds

    @property
    def moves_base(self) -> bool:
        """Return whether the base gives up the products of the factors that a run starts from, so that a node of
        smaller rank would lack them."""
        return False

    @property
    def has_reference(self) -> bool:
        """Return whether the base stays as it was inside the model, and computes its own answers if what the tuning
        adds is switched off (`task.tunings.parts.reference`)."""
        return self.adds and not self.moves_base

    def start(self, weights: Mapping[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
        """Return the tensors, by their names on the wire, that a run starts from; called on the server only.

        For what machines compute to different bits, such as an SVD. `weights` are those of the linear layers (outputs
        x inputs), by the layers' names.
        """
        return {}

    def saved_as(self, kind: TaskKind) -> str:
        """Return the format in which a tuned model of this task kind is saved: TRANSFORMERS, PEFT or OWN."""
        return PEFT

    def wire_name(self, name: str) -> str:
        """Return the name on the wire of a parameter; `name` is its name without peft's prefixes."""
        return name

    def saved_name(self, name: str) -> str:
        """Return the name, in a saved folder, of the tensor that peft calls `name`."""
        return name

    def saved(
        self, tensors: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        """Return the tensors of peft's folder, given those that it wrote, and settings that replace those in its
        adapter_config.json. `start` are the factors that the base gave up, if the folder names the base as it was."""
        return {self.saved_name(name): tensor for name, tensor in tensors.items()}, {}

    def folded(self, module: nn.Module, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the plain model's tensors with `trained` folded in, by name. Called only if `folds`."""
        return dict(trained)

    def usual_rates(self, optimizer: str) -> tuple[float, float]:
        """Return the smallest and the largest usual learning rate with an optimizer."""
        return self.usual_sgd if optimizer == "sgd" else self.usual_adamw

    def new_head_rate(self, optimizer: str) -> float:
        """Return the multiple of the learning rate at which a new head trains if `head-rate` does not say."""
        return self.new_head_sgd if optimizer == "sgd" else self.new_head_adamw
