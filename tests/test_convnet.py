"""The small convolutional network as a base: adapters on all of its layers, and what it computes."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import conv2d, max_pool2d

from benchmarks.convnet import write
from task.config import Model, TaskConfig
from task.models.finding import server_base
from task.models.model import build
from task.storage.store import Store

OPTIONS = {"tuning": "lora", "lora.targets": "all", "lora.bias": "all", "data.labels": "|".join(map(str, range(10)))}


def test_adapters_and_biases_on_all_layers_and_the_stored_function(tmp_path: Path, store: Store) -> None:
    write(tmp_path / "convnet", seed=0)
    model = build(server_base(Model(name=str(tmp_path / "convnet")), store), TaskConfig.read(OPTIONS), 5, "cpu")
    shapes = {0: (16, 9), 3: (32, 144), 7: (10, 800)}
    expected = {}
    for layer, (outputs, inputs) in shapes.items():
        expected |= {f"body.{layer}.lora_A.weight": (5, inputs), f"body.{layer}.lora_B.weight": (outputs, 5)}
        expected[f"body.{layer}.bias"] = (outputs,)
    assert {name: tuple(tensor.shape) for name, tensor in model.trained.items()} == expected
    stored = load_file(tmp_path / "convnet" / "model.safetensors")
    hidden = pixels = torch.randn(4, 1, 28, 28)
    for layer in (0, 3):
        hidden = conv2d(hidden, stored[f"body.{layer}.weight"], stored[f"body.{layer}.bias"])
        hidden = max_pool2d(hidden.relu(), 2)
    logits = hidden.flatten(1) @ stored["body.7.weight"].T + stored["body.7.bias"]
    with torch.no_grad():  # fresh B is zero
        torch.testing.assert_close(model.module(pixel_values=pixels).logits, logits, rtol=1e-4, atol=1e-5)
