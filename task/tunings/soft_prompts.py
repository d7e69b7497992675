"""Soft prompts and prefixes of text models, by peft."""

from typing import Any

from torch import nn

from task.config import CAUSAL, TaskConfig
from task.tunings.trainable import Head, TuningError
from task.tunings.visual_prompts import visual_prompts


def prompt(module: nn.Module, head: Head, config: TaskConfig, rank: int) -> nn.Module:
    """Of text, `prompt.tokens` learned embeddings in front of every row (Lester et al., arXiv 2104.08691); of images,
    visual prompts (`task.tunings.visual_prompts`).

    Drawn from the run's seed: the model is not the base at the start. A classifier such as BERT's, which reads at the
    first place of a row, reads there at the first learned token. Saved as a peft folder.
    """
    if config.task.kind == "image-classification":
        return visual_prompts(module, head, config, rank)
    from peft import PromptTuningConfig
    from transformers.modeling_layers import GenericForSequenceClassification

    if isinstance(module, GenericForSequenceClassification):
        raise TuningError(
            "tuning = 'prompt' does not fit this classifier: it finds the last token of a row by the tokens, which it "
            "is not given behind learned embeddings; use tuning = 'prefix' or 'lora'"
        )
    width = module.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    shape = {"token_dim": width, "num_attention_heads": 1, "num_layers": 1}  # peft would guess, and needs the first
    return _peft(module, head, config, PromptTuningConfig, config.prompt.tokens, **shape)


def prefix(module: nn.Module, head: Head, config: TaskConfig, rank: int) -> nn.Module:
    """`prefix.tokens` learned keys and values in front of every row, in every attention layer of a text model (Li and
    Liang, arXiv 2101.00190, without the network that they are computed by while training).

    Drawn from the run's seed: the model is not the base at the start. Saved as a peft folder.
    """
    if config.task.kind == "image-classification":
        raise TuningError("tuning = 'prefix' is for text; for images use tuning = 'prompt' with prompt.deep = true")
    from peft import PrefixTuningConfig

    return _peft(module, head, config, PrefixTuningConfig, config.prefix.tokens)


def _peft(module: nn.Module, head: Head, config: TaskConfig, method: Any, tokens: int, **shape: int) -> nn.Module:
    from peft import get_peft_model

    kind = "CAUSAL_LM" if config.task.kind == CAUSAL else "SEQ_CLS"
    module.requires_grad_(False)
    return get_peft_model(  # type: ignore[no-any-return]
        module, method(task_type=kind, num_virtual_tokens=tokens, modules_to_save=[*head.trained], **shape)
    )
