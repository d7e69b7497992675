"""DoRA: low-rank factors and a magnitude for every output of a linear layer, by peft."""

from dataclasses import dataclass

from torch import nn

from task.tunings.base import Head, TaskKind
from task.tunings.parts.low_rank import DEFAULT, LowRank

MAGNITUDE = "lora_magnitude_vector"  # peft's name of the magnitudes


@dataclass(frozen=True)
class Dora(LowRank):
    """DoRA (Liu et al., arXiv 2402.09353): W' = m (W + s B A) / ||W + s B A||, with norms over the inputs.

    The magnitude m starts at ||W||, so the model is the base, up to rounding. All nodes have the same rank, the one of
    `lora.ranks`: slices of the factors mean little without the magnitudes learned with them. On the wire the factors
    are named `<layer>.dora_A.weight`, so that nothing takes B A for the whole change.
    """

    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        return self.adapted(module, head, self.ranks[0], use_dora=True)

    def problems(self) -> list[str]:
        found = super().problems()
        if len(self.ranks) != 1:
            found.append("tuning = 'dora' has one rank for all nodes; lora.ranks must be one number, such as '8'")
        if self.init != DEFAULT:
            found.append("lora.init is for tuning = 'lora'; with tuning = 'dora' set lora.init = 'default'")
        return found

    def wire_name(self, name: str) -> str:
        return name.replace(".lora_", ".dora_")

    def saved_name(self, name: str) -> str:
        """Return a name that both peft and transformers know. With peft's own name transformers silently ignores the
        magnitudes, and computes something else."""
        return f"{name}.weight" if name.endswith(MAGNITUDE) else name
