"""Gradient checkpointing: less is kept for the backward pass, and every bit stays."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, data, made, settings
from in_process import QV, equal, federate
from tuned import Sample, samples

import strategies
from strategies.exchange.compatibility import problems
from strategies.exchange.dry_run import rehearse
from task.config import TaskConfig
from task.data.prepared import prepare
from task.data.rows import Rows
from task.models.base import Base
from task.models.model import build
from task.schema import ConfigError
from task.storage.store import Store
from task.training.batches import Unsuited
from task.training.checkpointing import checkpointed
from task.training.dry_run import DryRunError
from task.training.trainer import Trainer
from task.training.uncached import uncached
from task.tunings import registry

RECOMPUTABLE = [name for name in registry.names() if registry.load(name).recomputable]
UNSUPPORTED = ("albert", "convnext", "mpnet", "resnet", "mobilenet-v2", "xlnet")  # as transformers says of its classes
CONVOLUTIONS = ("resnet", "mobilenet-v2")  # without linear layers


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, words: Path) -> dict[str, Sample]:
    return samples(tmp_path_factory.mktemp("kinds"), words)


def stepped(base: Base, config: TaskConfig, rows: Rows, on: bool) -> dict[str, torch.Tensor]:
    """What has trained after two steps, and the gradients of the last."""
    config = replace(config, gradient_checkpointing=on, local_steps=2, batch_size=3)
    rank = max(config.tuning.budgets() or config.tuning.candidates())
    model = build(base, config, rank, "cpu")
    Trainer(config, rows, 7).fit(model)
    gradients = {f"gradient of {name}": t.grad for name, t in model.trained.items() if t.grad is not None}
    return {name: tensor.detach() for name, tensor in {**model.trained, **gradients}.items()}


# ------------------------------------------------------------------------------------------- the same bits
@pytest.mark.parametrize("tuning", RECOMPUTABLE)
def test_every_tuning_trains_to_the_same_bits(kinds: dict[str, Sample], tuning: str) -> None:
    sample = kinds["vit" if tuning in ("bias", "prompt", "ssf") else "llama"]
    model, also = sample.build(tuning), sample.build(tuning)
    torch.manual_seed(1)
    model.module.train()(**sample.batch()).loss.backward()
    torch.manual_seed(1)
    with checkpointed(also.module, True):
        also.module.train()(**sample.batch()).loss.backward()
    for name, tensor in model.trained.items():
        if tensor.grad is not None:
            assert torch.equal(also.trained[name].grad, tensor.grad), name  # type: ignore[arg-type]
    assert any(tensor.grad is not None for tensor in model.trained.values())


@pytest.mark.first(2)
@pytest.mark.parametrize("name", ["gpt2", *(name for name in ARCHITECTURES if name != "gpt2")])
def test_every_architecture_trains_to_the_same_bits_with_dropout(tmp_path: Path, name: str) -> None:
    made(name, tmp_path / name)
    files, store = data(tmp_path), Store(tmp_path / "store")
    tuning = "full" if name in CONVOLUTIONS else "lora"
    config = settings(name, tmp_path / name, files[ARCHITECTURES[name].kind], tuning, **{"lora.dropout": 0.3})
    base = Base(str(tmp_path / name), tmp_path / name, "")
    rows = prepare(config, base.folder, store).train
    if name in UNSUPPORTED:
        with pytest.raises(Unsuited, match="transformers does not support it for this model"):
            stepped(base, config, rows, True)
        return
    off, on = (stepped(base, config, rows, choice) for choice in (False, True))
    assert equal(on, off)
    assert not equal(stepped(base, replace(config, seed=1), rows, True), off)


@pytest.mark.slow
def test_a_federation_has_the_same_bits(tmp_path: Path) -> None:
    options = QV | {"lora.dropout": 0.2, "num-server-rounds": 2}
    off = federate(tmp_path / "off", options)
    on = federate(tmp_path / "on", options | {"gradient-checkpointing": True})
    assert equal(on.state().tensors, off.state().tensors)


def test_less_is_kept(kinds: dict[str, Sample]) -> None:
    model, kept = kinds["llama"].build("lora"), {False: 0, True: 0}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[on] += tensor.nbytes
        return tensor

    for on in kept:
        with checkpointed(model.module, on), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.module.train()(**kinds["llama"].batch())
    assert kept[True] < 0.6 * kept[False]
    assert not any(getattr(layer, "gradient_checkpointing", False) for layer in model.module.modules())


# ------------------------------------------------------------------------------------------- what is refused
def test_what_does_not_go_with_it_is_refused() -> None:
    wanted: dict[str, Any] = {"gradient-checkpointing": True}
    with pytest.raises(ConfigError, match="'prefix' does not go with gradient-checkpointing = true"):
        TaskConfig.read(wanted | {"tuning": "prefix"})
    config = TaskConfig.read(wanted)
    private = strategies.load("fedavg", [strategies.load_wrapper("example-privacy", clip=1.0)])
    assert any("example-privacy takes gradients row by row" in said for said in problems(private, config))
    (said,) = [said for said in problems(strategies.load("fedkseed"), config) if "checkpointing" in said]
    assert said == "strategy = 'fedkseed' has no gradients: set gradient-checkpointing = false"


def test_models_without_it_are_refused_before_a_run(tmp_path: Path) -> None:
    made("resnet", tmp_path / "resnet")
    files = data(tmp_path)
    config = settings(
        "resnet", tmp_path / "resnet", files[ARCHITECTURES["resnet"].kind], "full", **{"gradient-checkpointing": True}
    )
    base = Base("resnet", tmp_path / "resnet", "")
    rows = prepare(config, base.folder, Store(tmp_path / "store")).train
    with pytest.raises(DryRunError, match="gradient-checkpointing = true: transformers does not support it"):
        rehearse(strategies.load("fedavg"), config, base, rows, "cpu")


def test_training_leaves_the_cache_as_it_was(kinds: dict[str, Sample]) -> None:
    """And goes without: the cache of keys and values only helps to generate."""
    module, seen = kinds["llama"].build("lora").module, []
    module.register_forward_hook(lambda module, given, output: seen.append(output.past_key_values))
    assert module.config.use_cache
    with uncached(module):
        module(**kinds["llama"].batch())
    module(**kinds["llama"].batch())
    assert module.config.use_cache
    assert seen[0] is None
    assert seen[1] is not None
