"""The settings of a task: everything a node needs to prepare data, build a model and train it.

They are part of every message; a node reads only the message and its own node config.
Settings of the server alone are in `server_app.config`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec

from task import extensions
from task.data.request import delimiter_problem, encoding_problem
from task.data.settings import EMBEDDED_DATA as EMBEDDED_DATA
from task.data.settings import MANY
from task.data.settings import Data as Data
from task.device import DEVICES
from task.model_settings import EMBEDDED_MODEL as EMBEDDED_MODEL
from task.model_settings import MISSING
from task.model_settings import Model as Model
from task.schema import ConfigError, build, chosen, group, option, read, schema
from task.tunings import registry as tunings
from task.tunings.base import Tuning

KINDS = "task.kinds"  # the package of task kinds
HEAD_RATE = 0.1  # the largest learning rate that a new head gets by default
CLASS_MEANS = "ncm"  # value of head-init
IN_8_BITS = ("adamw-8bit", "paged-adamw-8bit")  # optimizers of bitsandbytes


def lacks_rouge(rows: int) -> list[str]:
    """Return why the answers to so many rows cannot be scored on this machine."""
    missing = "needs the package rouge-score, which is not installed here: pip install 'thistledown[rouge]'"
    return [f"evaluate-generations = {rows} {missing}"] if find_spec("rouge_score") is None else []


def is_date(text: str) -> bool:
    """Return whether a text is a date of the form YYYY-MM-DD."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


class TaskKind(ABC):
    """The parts of a task kind that a configuration uses. `task.kinds.base` has the whole class."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Return the name of its file, which is the value of `task.kind`."""

    @abstractmethod
    def problems(self, config: "TaskConfig") -> list[str]:
        """Return the conflicts between this kind and the settings, one sentence each."""

    @abstractmethod
    def shaping(self, data: Data) -> Data:
        """Return the data settings that shape the model; all others at their defaults."""


class Kinds:
    """The task kinds by name. Their files import this one, so they are imported when they are asked for."""

    @staticmethod
    def names() -> list[str]:
        """Return the names of all task kinds."""
        return extensions.names(KINDS)

    @staticmethod
    def load(name: str) -> type[TaskKind]:
        """Return the class of a task kind. Raises ConfigError if there is none of this name."""
        return extensions.load(KINDS, name, TaskKind)  # type: ignore[type-abstract]


@dataclass(frozen=True)
class Task:
    kind: TaskKind = chosen(Kinds, "image-classification", doc="what is learned: the name of a file in task/kinds/")


@dataclass(frozen=True)
class TaskConfig:
    """All settings of the task that a node receives. Field names are run-config keys in Python spelling."""

    task: Task = group(Task)
    model: Model = group(Model)
    data: Data = group(Data)
    tuning: Tuning = chosen(tunings, "lora", doc="what trains: the name of a file in task/tunings/")
    seed: int = option(0, low=0, doc="everything random that is public follows from it")
    threads: int = option(1, low=1, high=1024, doc="torch threads of every process; equal counts give equal bits")
    portable: bool = option(
        False,
        doc="the same bits on every x86-64 processor, by slow kernels that all have; needs device = 'cpu'",
    )
    device: str = option(
        "auto", choices=DEVICES, doc="auto, cpu, cuda, mps or xpu; a node's own `device` in its node config goes first"
    )
    evaluate: str = option(
        "server", choices=("server", "nodes", "both"), doc="who measures quality: server, nodes or both"
    )
    evaluate_generations: int = option(
        0,
        low=0,
        high=MANY,
        doc="held-out rows that the model answers by greedy generation, before training and at the end; 0: none",
    )
    learning_rate: float = option(0.005, low=0.0, doc="of the local optimiser")
    learning_rate_min: float = option(
        0.0, low=0.0, doc="of the last round, to which the rate falls by a cosine; 0: all rounds have the same"
    )
    warmup_rounds: int = option(
        0, low=0, high=MANY, doc="first rounds, in which the rate rises to learning-rate in equal steps"
    )
    local_epochs: int = option(3, low=1, high=MANY, doc="passes over a node's data in a round")
    local_steps: int = option(0, low=0, high=1000 * MANY, doc="steps in a round instead of epochs; 0: use local-epochs")
    batch_size: int = option(16, low=1, high=MANY, doc="rows in a local step")
    micro_batch_size: int = option(
        0,
        low=0,
        high=MANY,
        doc="rows of a step in memory at a time, adding up gradients; 0: all, or fewer if memory runs out",
    )
    group_by_length: bool = option(False, doc="texts: a step has rows of similar length, so that less is filled up")
    packing: bool = option(
        False,
        doc="causal-lm: rows of a step follow one another in packs of up to data.max-length; none attends to another",
    )
    gradient_checkpointing: bool = option(False, doc="keep block inputs alone, and make the rest anew for gradients")
    precision: str = option(
        "model",
        choices=("model", "bfloat16", "auto"),
        doc="of products in steps and scores: that of the model, bfloat16 (autocast), or auto: whichever is faster",
    )
    optimizer: str = option(
        "adamw",
        choices=("adamw", "sgd", *IN_8_BITS),
        doc="adamw, sgd; adamw-8bit, paged-adamw-8bit: moments in 8 bits, by bitsandbytes",
    )
    head_rate: float = option(
        0.0,
        low=0.0,
        doc="multiple of learning-rate for a classifier's head; 0: the tuning's own if the head is new, else 1",
    )
    head_init: str = option(
        "base",
        choices=("base", CLASS_MEANS),
        doc="a classifier's head before it trains: of the base, drawn if it has none; ncm: class means, from round 1",
    )
    head_rounds: int = option(
        0, low=0, high=MANY, doc="first rounds in which a classifier's head trains alone, and nothing else is sent"
    )
    body_dropout: bool = option(
        True,
        doc="whether the body uses dropout while a classifier's head trains alone; false: features are computed once",
    )
    momentum: float = option(0.0, low=0.0, high=0.999, doc="of sgd")
    nesterov: bool = option(False, doc="of sgd: look ahead along the momentum")
    weight_decay: float = option(0.0, low=0.0, doc="of the local optimiser")
    max_grad_norm: float = option(0.0, low=0.0, doc="clip the gradient to this norm; 0: do not clip")

    @classmethod
    def read(cls, flat: Mapping[str, object]) -> "TaskConfig":
        """Return the configuration of flat keys, all of the task. Raises ConfigError with every problem."""
        values, problems = read(flat, schema(cls))
        config = build(cls, values)
        if problems := problems + config.problems():
            raise ConfigError(problems)
        return config

    def shaping(self) -> "TaskConfig":
        """Return the settings that shape a model; all others at their defaults, so that they cause no rebuild."""
        return TaskConfig(
            task=self.task,
            model=self.model,
            data=self.task.kind.shaping(self.data),
            tuning=self.tuning,
            seed=self.seed,
        )

    def rate(self, round: int, rounds: int) -> float:
        """Return the learning rate of a round from 1 to `rounds`: equal steps up to `learning-rate` after the warm-up,
        then half a cosine down to `learning-rate-min` in the last; constant if that is 0."""
        warm = self.warmup_rounds
        if round <= warm:
            return self.learning_rate * round / (warm + 1)
        least = self.learning_rate_min or self.learning_rate
        share = (1 + math.cos(math.pi * (round - 1 - warm) / max(1, rounds - 1 - warm))) / 2
        return least + (self.learning_rate - least) * share

    def generates(self, round: int, rounds: int) -> bool:
        """Return whether rows are answered by generation after this round: before training, and after the last."""
        return bool(self.evaluate_generations) and round in (0, rounds)

    @property
    def rows_at_once(self) -> int:
        """Return the number of rows of a step that are in memory at a time."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size)

    @property
    def rounds_of_head(self) -> int:
        """Return the number of first rounds in which nothing but the head changes: the one that makes it from class
        means, and those in which it trains alone."""
        return self.head_rounds + int(self.head_init == CLASS_MEANS)

    def rate_of_head(self, new: bool) -> float:
        """Return the learning rate of a classifier's head, which is `new` if the base has none for these classes.

        Unless `head-rate` says otherwise, the head of the base trains at the rate of the rest. A new head trains at the
        tuning's multiple of it, up to HEAD_RATE: beyond it, single steps of AdamW overturn a head.
        """
        if self.head_rate or not new:
            return self.learning_rate * (self.head_rate or 1.0)
        return max(self.learning_rate, min(self.learning_rate * self.tuning.new_head_rate(self.optimizer), HEAD_RATE))

    def _without_ids(self) -> list[str]:
        """Return why rows cannot be divided by their clients."""
        partitioner = self.data.partitioner
        if not partitioner.needs_ids:
            return []
        needs, found = f"data.partitioner = '{partitioner.name}' needs", []
        if not self.data.id_column:
            found.append(f"{needs} data.id-column, the column that names a row's client")
        if self.data.name == EMBEDDED_DATA:
            found.append(f"{needs} data with an id column; the digits have none")
        return found

    def problems(self) -> list[str]:
        """Return the problems between options that are each valid."""
        found = self.task.kind.problems(self)
        found += filter(None, (delimiter_problem(self.data.delimiter), encoding_problem(self.data.encoding)))
        if self.data.date and not is_date(self.data.date):
            found.append(f"data.date = '{self.data.date:.40}' is not a date, such as '2026-01-31'")
        found += self._without_ids()
        found += self.tuning.problems()
        found += self.model.problems()
        if self.model.quantized and not self.tuning.quantizable:
            found.append(
                f"tuning = '{self.tuning.name}' changes or reads the weights that model.quantization = "
                f"'{self.model.quantization}' rounds; use tuning = 'lora', with lora.init = 'default'"
            )
        if self.gradient_checkpointing and not self.tuning.recomputable:
            found.append(
                f"tuning = '{self.tuning.name}' does not go with gradient-checkpointing = true; use tuning = 'lora'"
            )
        if self.learning_rate_min > self.learning_rate:
            found.append(
                f"learning-rate-min = {self.learning_rate_min:g} is above learning-rate = {self.learning_rate:g}; the "
                "rate falls to it, from the first round to the last"
            )
        if self.optimizer in IN_8_BITS and find_spec("bitsandbytes") is None:
            found.append(f"optimizer = '{self.optimizer}' {MISSING}")
        if self.evaluate_generations and self.evaluate != "server":  # a node needs no package for what it does not do
            found += lacks_rouge(self.evaluate_generations)
        if self.portable and self.device != "cpu":
            found.append(f"portable = true is for processors, and device = '{self.device}'; set device = 'cpu'")
        if self.optimizer != "sgd" and self.momentum:
            found.append("momentum is an option of optimizer = 'sgd'; adamw has its own")
        if self.nesterov and not (self.optimizer == "sgd" and self.momentum):
            found.append("nesterov = true looks ahead along the momentum: set optimizer = 'sgd' and momentum above 0")
        if self.data.validation_fraction + self.data.test_fraction >= 1:
            found.append("data.validation-fraction and data.test-fraction leave no rows to train on")
        if self.evaluate != "server" and not self.data.holdout:
            found.append(f"evaluate = '{self.evaluate}' needs data.holdout above 0: rows that nodes keep for it")
        return found
