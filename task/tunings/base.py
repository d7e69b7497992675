"""What a tuning is: the choice of what trains, applied to a fresh model.

A classifier's head always trains too: a fresh one must be learned, and a pretrained one must follow its features. The
output embedding of a causal language model is pretrained like the rest, and often is the input embedding as well; it
does not train unless the tuning says so.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import nn

AUTO = "auto"  # instead of a rank: found by a trial on the node
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
    """The names of the modules that a model ends in; `along`: whether every tuning trains them too."""

    modules: list[str]
    along: bool

    @property
    def trained(self) -> list[str]:
        """The modules that every tuning trains."""
        return self.modules if self.along else []


class TaskKind(Protocol):
    """What a tuning may ask of the task kind, which is a file in task/kinds/."""

    @property
    def images(self) -> bool:
        """Whether the inputs are images; else texts."""

    @property
    def peft_task_type(self) -> str:
        """What peft calls it; empty: it has no word."""


@dataclass(frozen=True)
class Tuning(ABC):
    """A choice of what trains. Its options are fields made by `task.schema.option`.

    `table` is the table of the configuration that holds the options; empty: one of the tuning's name.
    """

    table: ClassVar[str] = ""
    adds: ClassVar[bool] = True  # adds tensors to the model, beside those of the base
    in_place: ClassVar[bool] = False  # trains tensors of the base where they are
    has_ranks: ClassVar[bool] = False  # trains pairs of factors whose rank is a node's budget
    on_linear_layers: ClassVar[bool] = False  # reaches linear layers alone, not matrices stacked in one parameter
    soft_prompts: ClassVar[bool] = False  # puts learned tokens in front of a row
    transformers_loads: ClassVar[bool] = True  # transformers alone loads its folder, if peft wrote that
    running_statistics: ClassVar[bool] = False  # exchanges the running statistics of normalisation layers
    folds: ClassVar[bool] = False  # is saved as the plain model that what trains folds into
    substitute: ClassVar[int] = 0  # place among those to suggest where another does not fit; 0: never
    usual_adamw: ClassVar[tuple[float, float]] = (1e-5, 1e-1)  # smallest and largest usual learning rate
    usual_sgd: ClassVar[tuple[float, float]] = (1e-4, 1e2)

    @property
    def name(self) -> str:
        """The name of its file, which is the value of the key `tuning`."""
        return type(self).__module__.rsplit(".", 1)[-1].replace("_", "-")

    @abstractmethod
    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        """Return the model with `requires_grad` set on what trains and on nothing else.

        `module` is a fresh model of transformers for `kind`, on the CPU. What is drawn must come from
        torch's global random state, which is the same on every machine. `rank` is that of all factors (`has_ranks`),
        else 0. Return `module`, changed, or peft's model around it. Raises TuningError where the tuning does not fit.
        """

    def problems(self) -> list[str]:
        """Return what is wrong between options that are each fine by themselves."""
        return []

    def budgets(self) -> tuple[int, ...]:
        """Return the ranks of nodes that have no budget of their own, dealt in turn; (): found by a trial."""
        return (0,)

    def candidates(self) -> tuple[int, ...]:
        """Return the ranks that a trial chooses from, ascending."""
        return ()

    def product_scale(self) -> float:
        """Return what the product of a pair of factors is multiplied by before it is added to a weight."""
        return 1.0

    def saved_as(self, kind: TaskKind) -> str:
        """Return the format that a tuned model of this kind of task is saved in: TRANSFORMERS, PEFT or OWN."""
        return PEFT

    def wire_name(self, name: str) -> str:
        """Return the name on the wire of a parameter that is called `name` once peft's wrapping is removed."""
        return name

    def saved_name(self, name: str) -> str:
        """Return the name in a saved folder of a tensor that peft calls `name`."""
        return name

    def folded(self, module: nn.Module, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the tensors of the plain model that `trained` folds into, by name; asked only where `folds`."""
        return dict(trained)

    def usual_rates(self, optimizer: str) -> tuple[float, float]:
        """Return the smallest and the largest usual learning rate with an optimizer."""
        return self.usual_sgd if optimizer == "sgd" else self.usual_adamw
