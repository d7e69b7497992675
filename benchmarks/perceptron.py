"""A multilayer perceptron as a transformers model, so that a folder with one is a base like any other.

transformers has none. A folder that `write` leaves has this file as its code, so `model.trust-remote-code = true` loads
it in any process; in a process that imports this file, `AutoModelForImageClassification` loads it without.
Every linear layer belongs to the pretrained body. So there is no head that trains whole, and `lora.targets =
"all-linear"` puts adapters on all layers, the output layer among them.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils.logging import disable_progress_bar

from task.seeds import derive


class PerceptronConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes: images of `num_channels` x `image_size` x `image_size`, then the widths of the hidden layers."""

    model_type = "thistledown-perceptron"

    image_size: int = 28
    num_channels: int = 1
    hidden_sizes: list[int] | tuple[int, ...] = (200, 200)


class Perceptron(PreTrainedModel):  # type: ignore[misc]
    """Linear layers with ReLU between them; PyTorch's own initial values."""

    config_class = PerceptronConfig
    base_model_prefix = "body"
    main_input_name = "pixel_values"

    def __init__(self, config: PerceptronConfig) -> None:
        super().__init__(config)
        sizes = [config.num_channels * config.image_size**2, *config.hidden_sizes, config.num_labels]
        layers = [part for inputs, outputs in pairwise(sizes) for part in (nn.Linear(inputs, outputs), nn.ReLU())]
        self.body = nn.Sequential(*layers[:-1])
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **_: Any
    ) -> ImageClassifierOutput:
        """`pixel_values` (B, C, H, W), `labels` (B,) int64; logits (B, num_labels), and the mean cross-entropy."""
        logits = self.body(pixel_values.flatten(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def _init_weights(self, module: nn.Module) -> None:
        """transformers draws a layer for other labels anew by this; PyTorch's rule, as in a fresh model."""
        if isinstance(module, nn.Linear):
            module.reset_parameters()


def write(
    folder: Path,
    seed: int,
    hidden_sizes: tuple[int, ...] = (200, 200),
    image_size: int = 28,
    mean: float = 0.5,
    std: float = 0.5,
) -> None:
    """A base folder with an untrained perceptron of ten labels, drawn from `seed`. Of pixels from 0 to 1, `mean` is
    subtracted, and the rest divided by `std`: it sees -1 to 1 if nothing else is said."""
    disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("perceptron", seed))
        config = PerceptronConfig(image_size=image_size, hidden_sizes=hidden_sizes, num_labels=10)
        Perceptron(config).save_pretrained(folder)  # this file beside it: see below
    processor = {"do_rescale": True, "do_normalize": True, "image_mean": [mean], "image_std": [std]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor) + "\n")


AutoConfig.register(PerceptronConfig.model_type, PerceptronConfig)
AutoModelForImageClassification.register(PerceptronConfig, Perceptron)
PerceptronConfig.register_for_auto_class()
Perceptron.register_for_auto_class("AutoModelForImageClassification")
