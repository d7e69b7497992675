"""Tunings: which parameters train. Each is a function that marks (or adds) them on a fresh model.

A head always trains along: a fresh one must be learned, and a pretrained one must follow its features.
"""

from collections.abc import Callable, Iterable

from torch import nn

from task.config import Lora

Tuning = Callable[[nn.Module, list[str], Lora, int], nn.Module]


class TuningError(ValueError):
    """A tuning that does not fit a model."""


def full(module: nn.Module, head: list[str], lora: Lora, rank: int) -> nn.Module:
    """Everything trains."""
    return _mark(module, lambda name: True)


def bias(module: nn.Module, head: list[str], lora: Lora, rank: int) -> nn.Module:
    """Every bias term trains (BitFit; Ben Zaken et al., arXiv 2106.10199), and the head."""
    return _mark(module, lambda name: name.endswith("bias") or _inside(name, head))


def head(module: nn.Module, head: list[str], lora: Lora, rank: int) -> nn.Module:
    """Only the head trains (a linear probe)."""
    return _mark(module, lambda name: _inside(name, head))


def low_rank(module: nn.Module, head: list[str], lora: Lora, rank: int) -> nn.Module:
    """LoRA adapters (Hu et al., arXiv 2106.09685) of one rank on the targeted linear layers, and the head.

    peft scales the product of the factors by lora_alpha / r; alpha is set so that this is `lora.scaling`,
    whatever the rank. A node that trains fewer ranks puts smaller factors into the same layers.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=lora.scaling * rank,
        lora_dropout=lora.dropout,
        target_modules=_targets(module, head, lora.targets),
        modules_to_save=head,
        bias="none",
    )
    return get_peft_model(module, config, autocast_adapter_dtype=True)  # type: ignore[no-any-return]


TUNINGS: dict[str, Tuning] = {"full": full, "lora": low_rank, "bias": bias, "head": head}


def _targets(module: nn.Module, head: list[str], wanted: tuple[str, ...]) -> list[str]:
    """Full names of the linear layers that get adapters; the head is trained whole instead."""
    linear = [n for n, m in module.named_modules() if isinstance(m, nn.Linear) and not _inside(n, head)]
    if wanted == ("all-linear",):
        return linear
    unmatched = [ending for ending in wanted if not any(_ends(name, ending) for name in linear)]
    if unmatched:
        endings = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise TuningError(
            f"lora.targets: no linear layer ends in {', '.join(unmatched)}; there are {', '.join(endings)}"
        )
    return [name for name in linear if any(_ends(name, ending) for ending in wanted)]


def _mark(module: nn.Module, trains: Callable[[str], bool]) -> nn.Module:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trains(name))
    return module


def _inside(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)
