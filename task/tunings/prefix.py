"""Prefix tuning: learned keys and values in every attention layer of a text model, by peft."""

from dataclasses import dataclass

from torch import nn

from task.schema import option
from task.tunings.base import Head, TaskKind, Tuning, TuningError
from task.tunings.parts.soft_prompts import with_soft_prompt


@dataclass(frozen=True)
class Prefix(Tuning):
    """`prefix.tokens` learned keys and values in front of every row, in every attention layer (Li and Liang, arXiv
    2101.00190, without the network that computes them in training).

    They are drawn from the run's seed, so the model differs from the base at the start.
    """

    soft_prompts = True
    recomputable = False  # it reaches blocks as a cache, which they do not use when they are computed anew
    transformers_loads = False
    usual_adamw = (1e-5, 1e-1)
    usual_sgd = (1e-3, 1e2)

    tokens: int = option(10, low=1, high=4096, doc="learned keys and values in every attention layer")

    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        if kind.images:
            raise TuningError("tuning = 'prefix' is for text; for images use tuning = 'prompt' with prompt.deep = true")
        from peft import PrefixTuningConfig

        return with_soft_prompt(module, head, kind, PrefixTuningConfig, self.tokens)
