"""Prompt tuning: learned tokens in front of a text (by peft) or among the patches of an image."""

from dataclasses import dataclass

from torch import nn

from task.schema import option
from task.tunings.base import OWN, PEFT, Head, TaskKind, Tuning, TuningError
from task.tunings.parts.soft_prompts import with_soft_prompt
from task.tunings.parts.visual_prompts import with_visual_prompts


@dataclass(frozen=True)
class Prompt(Tuning):
    """For text, `prompt.tokens` learned embeddings in front of every row (Lester et al., arXiv 2104.08691); for images,
    visual prompts (`task.tunings.parts.visual_prompts`).

    They are drawn from the run's seed, so the model differs from the base at the start. A classifier that reads the
    first position of a row, such as BERT's, then reads the first learned token.
    """

    soft_prompts = True
    transformers_loads = False
    usual_adamw = (1e-4, 5e-1)
    usual_sgd = (1e-3, 1e2)

    tokens: int = option(10, low=1, high=4096, doc="learned tokens in front of a text, or of the patches of an image")
    deep: bool = option(True, doc="of images: in front of every block, not of the first alone")

    def apply(self, module: nn.Module, head: Head, kind: TaskKind, rank: int) -> nn.Module:
        if kind.images:
            return with_visual_prompts(module, head, self.tokens, self.deep)
        from peft import PromptTuningConfig
        from transformers.modeling_layers import GenericForSequenceClassification

        if isinstance(module, GenericForSequenceClassification):
            raise TuningError(
                "tuning = 'prompt' does not fit this classifier: it finds the last token of a row by the tokens, which "
                "it is not given behind learned embeddings; use tuning = 'prefix' or 'lora'"
            )
        width = module.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        shape = {"token_dim": width, "num_attention_heads": 1, "num_layers": 1}  # else peft would guess them
        return with_soft_prompt(module, head, kind, PromptTuningConfig, self.tokens, **shape)

    def saved_as(self, kind: TaskKind) -> str:
        return OWN if kind.images else PEFT
