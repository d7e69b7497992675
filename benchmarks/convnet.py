"""A small convolutional network as a transformers model: two convolutions with pooling, and a linear layer.

As benchmarks.perceptron: a folder that `write` leaves has this file as its code, and no layer is a head, so that
`lora.targets = "all"` puts adapters on all three layers.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils.logging import disable_progress_bar

from task.seeds import derive


class ConvnetConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes: images of `num_channels` x `image_size` x `image_size`, then the channels of the convolutions."""

    model_type = "thistledown-convnet"

    image_size: int = 28
    num_channels: int = 1
    channels: list[int] | tuple[int, ...] = (16, 32)


class Convnet(PreTrainedModel):  # type: ignore[misc]
    """Convolutions of 3 x 3 with ReLU and pooling by 2; PyTorch's own initial values."""

    config_class = ConvnetConfig
    base_model_prefix = "body"
    main_input_name = "pixel_values"

    def __init__(self, config: ConvnetConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        size, inputs = config.image_size, config.num_channels
        for outputs in config.channels:
            layers += [nn.Conv2d(inputs, outputs, kernel_size=3), nn.ReLU(), nn.MaxPool2d(2)]
            size, inputs = (size - 2) // 2, outputs
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * size**2, config.num_labels))
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **_: Any
    ) -> ImageClassifierOutput:
        """`pixel_values` (B, C, H, W), `labels` (B,) int64; logits (B, num_labels), and the mean cross-entropy."""
        logits = self.body(pixel_values)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def _init_weights(self, module: nn.Module) -> None:
        """transformers draws a layer for other labels anew by this; PyTorch's rule, as in a fresh model."""
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()


def write(folder: Path, seed: int) -> None:
    """A base folder with an untrained network of ten labels, drawn from `seed`; it sees pixels from -1 to 1."""
    disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("convnet", seed))
        Convnet(ConvnetConfig(image_size=28, num_channels=1, num_labels=10)).save_pretrained(
            folder
        )  # this file beside it: see above
    processor = {
        "image_processor_type": "ViTImageProcessor",  # resize, rescale, normalise, and nothing else
        "size": {"height": 28, "width": 28},
        "image_mean": [0.5],
        "image_std": [0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor) + "\n")


AutoConfig.register(ConvnetConfig.model_type, ConvnetConfig)
AutoModelForImageClassification.register(ConvnetConfig, Convnet)
ConvnetConfig.register_for_auto_class()
Convnet.register_for_auto_class("AutoModelForImageClassification")
