"""LoRA and DoRA: low-rank adapters on linear layers, by peft."""

from torch import nn

from task.config import TaskConfig
from task.tunings.trainable import Head, chosen, ends, linear_layers

# Linear layers whose weights these models read themselves, past an adapter: on an accelerator, or always.
OWN_READING = ("mamba2", "falcon_h1", "nemotron_h", "bamba", "granitemoehybrid", "zamba2")
BYPASSED = {
    **dict.fromkeys(("mamba", "falcon_mamba"), ("x_proj", "dt_proj", "out_proj")),
    **dict.fromkeys(OWN_READING, ("out_proj",)),
}


def lora(module: nn.Module, head: Head, config: TaskConfig, rank: int) -> nn.Module:
    """LoRA adapters (Hu et al., arXiv 2106.09685) of one rank on the targeted linear layers; a classifier's head too.

    peft scales the product of the factors by lora_alpha / r; alpha is set so that this is `lora.scaling`,
    whatever the rank. A node that trains fewer ranks puts smaller factors into the same layers.
    The product is zero at the start, so the model is the base. Saved as a peft folder.
    """
    return _adapted(module, head, config, rank, magnitudes=False)


def dora(module: nn.Module, head: Head, config: TaskConfig, rank: int) -> nn.Module:
    """DoRA (Liu et al., arXiv 2402.09353): W' = m (W + s B A) / ||W + s B A||, with norms over the inputs.

    The magnitude m starts at ||W||, so the model is the base, up to rounding. All nodes have the one rank of
    `lora.ranks`: slices of the factors mean little without the magnitudes that were learned with them. On the wire they
    are `<layer>.dora_A.weight`, so that nothing takes B A for all that changed. Saved as a peft folder.
    """
    return _adapted(module, head, config, config.lora.ranks[0], magnitudes=True)


def _adapted(module: nn.Module, head: Head, config: TaskConfig, rank: int, magnitudes: bool) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    linear, targets = linear_layers(module, head, config.tuning), config.lora.targets
    bypassed = BYPASSED.get(module.config.model_type, ())  # type: ignore[union-attr, arg-type]
    linear = [name for name in linear if not any(ends(name, ending) for ending in bypassed)]
    return get_peft_model(  # type: ignore[no-any-return]
        module,
        LoraConfig(
            r=rank,
            lora_alpha=config.lora.scaling * rank,
            lora_dropout=config.lora.dropout,
            target_modules=linear if targets == ("all-linear",) else chosen(linear, targets, "lora.targets"),
            modules_to_save=head.trained,
            bias="none",
            use_dora=magnitudes,
        ),
        autocast_adapter_dtype=True,
    )
