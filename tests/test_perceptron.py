"""The perceptron as a base: what a folder of it holds, what trains on it, and what it computes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.perceptron import write
from task.config import Model, TaskConfig
from task.data.encoding.images import ImageEncoder
from task.data.encoding.processors import Plain
from task.models.base import Base, fingerprint
from task.models.finding import server_base
from task.models.model import build
from task.storage.store import Store

SIZES = [(12, 64), (7, 12), (10, 7)]  # outputs x inputs of the three layers


@pytest.fixture
def base(tmp_path: Path, store: Store) -> Base:
    folder = tmp_path / "perceptron"
    write(folder, seed=0, hidden_sizes=(12, 7), image_size=8)
    return server_base(Model(name=str(folder)), store)


def config(tuning: str = "lora", labels: int = 10) -> TaskConfig:
    return TaskConfig.read({"tuning": tuning, "data.labels": "|".join(map(str, range(labels)))})


def test_adapters_on_all_three_layers_and_nothing_else(base: Base) -> None:
    trained = build(base, config(), 5, "cpu").trained
    expected = {}
    for layer, (outputs, inputs) in zip((0, 2, 4), SIZES, strict=True):
        expected |= {f"body.{layer}.lora_A.weight": (5, inputs), f"body.{layer}.lora_B.weight": (outputs, 5)}
    assert {name: tuple(tensor.shape) for name, tensor in trained.items()} == expected


def test_full_tuning_trains_weights_and_biases(base: Base) -> None:
    trained = build(base, config("full"), 0, "cpu").trained
    assert sum(tensor.numel() for tensor in trained.values()) == sum(o * i + o for o, i in SIZES)


def test_it_computes_relu_layers_of_the_stored_weights(base: Base) -> None:
    stored = load_file(base.folder / "model.safetensors")
    pixels, labels = torch.randn(6, 1, 8, 8), torch.arange(6)
    hidden = pixels.flatten(1)
    for layer in (0, 2, 4):
        hidden = hidden.relu() if layer else hidden
        hidden = hidden @ stored[f"body.{layer}.weight"].T + stored[f"body.{layer}.bias"]
    with torch.no_grad():
        output = build(base, config(), 5, "cpu").module(pixel_values=pixels, labels=labels)  # fresh B is zero
    assert output.logits.allclose(hidden, atol=1e-6)
    assert float(output.loss) == pytest.approx(float(torch.nn.functional.cross_entropy(hidden, labels)), rel=1e-5)


def test_other_labels_get_an_output_layer_of_their_own(base: Base) -> None:
    trained = build(base, config(labels=3), 5, "cpu").trained
    assert trained["body.4.weight"].shape == (3, 7)
    assert 0 < float(trained["body.4.weight"].abs().max()) <= 7**-0.5  # PyTorch's own initial values
    assert "body.4.lora_A.weight" not in trained


def test_a_seed_gives_the_same_folder(base: Base, tmp_path: Path, store: Store) -> None:
    for seed, same in ((0, True), (1, False)):
        write(tmp_path / str(seed), seed, hidden_sizes=(12, 7), image_size=8)
        assert (fingerprint(tmp_path / str(seed), store) == base.fingerprint) is same


def test_images_come_as_it_wants_them(base: Base) -> None:
    encoder = ImageEncoder.of(base.folder, "image")
    assert isinstance(encoder.look, Plain)
    assert (encoder.look.channels, encoder.look.height, encoder.look.width) == (1, 8, 8)
    assert (encoder.look.mean, encoder.look.std) == ((0.5,), (0.5,))
