"""Normalisation layers that keep running statistics: a small ResNet."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from strategies.algebra.tensors import snapshot
from task.config import Data, TaskConfig
from task.data.rows import Pixels, Rows
from task.models.base import Base
from task.models.model import TunedModel, build
from task.training.trainer import Trainer
from task.tunings import registry


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder: Path = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=2
    )
    ResNetForImageClassification(config).save_pretrained(folder)
    return Base("resnet", folder, "resnet")


def fitted(base: Base, tuning: str) -> tuple[TunedModel, dict[str, torch.Tensor]]:
    """A model after two steps, and its running statistics from before."""
    numbers = np.random.default_rng(5)
    pixels = Pixels(numbers.integers(0, 256, (8, 1, 32, 32), dtype=np.uint8), 1 / 255, (0.5,), (0.5,))
    rows = Rows(pixels, numbers.integers(0, 2, 8), ("a", "b"))
    config = TaskConfig(tuning=registry.load(tuning)(), data=Data(labels=("a", "b")), batch_size=4, local_steps=2)
    model = build(base, config, 0, "cpu")
    before = snapshot(statistics(model))
    Trainer(config, rows, seed=1).fit(model)
    return model, before


def statistics(model: TunedModel) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.module.named_buffers() if "running" in name}


@pytest.mark.parametrize("tuning", ["head", "bias"])
def test_they_rest_where_they_are_not_exchanged(base: Base, tuning: str) -> None:
    model, before = fitted(base, tuning)
    assert before
    assert not before.keys() & model.trained.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in statistics(model).items())


def test_they_move_and_are_exchanged_under_full_tuning(base: Base) -> None:
    model, before = fitted(base, "full")
    assert before.keys() <= model.trained.keys()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in statistics(model).items())
