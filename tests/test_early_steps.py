"""Steps in the middle of a backward pass: gradients of full tuning are not all in memory at once, and every bit
stays."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, data, made, settings
from in_process import equal
from test_checkpointing import UNSUPPORTED
from tuned import Sample, samples

from client_app.trial import copies
from task.config import TaskConfig
from task.data.prepared import prepare
from task.data.rows import Rows
from task.models.base import Base
from task.models.model import TunedModel, build
from task.storage.store import Store
from task.training import trainer
from task.training.trainer import Trainer, steps_early


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, words: Path) -> dict[str, Sample]:
    return samples(tmp_path_factory.mktemp("kinds"), words)


def fitted(
    base: Base, config: TaskConfig, rows: Rows, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[TunedModel, dict[str, float]]:
    """The model after three steps in which at most `waiting` bytes of gradients wait, and the metrics."""
    monkeypatch.setattr(trainer, "LARGE", waiting)
    model = build(base, replace(config, local_steps=3, batch_size=3), 4, "cpu")
    return model, Trainer(model.config, rows, 7).fit(model)


def check_same(base: Base, config: TaskConfig, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise AssertionError if steps tensor by tensor end on other bits than steps of all tensors together."""
    (early, said), (late, also) = (fitted(base, config, rows, waiting, monkeypatch) for waiting in (1, 2**62))
    assert steps_early(early.config)
    assert equal(dict(early.trained), dict(late.trained))
    assert said == also
    parameters = [tensor for tensor in early.trained.values() if isinstance(tensor, torch.nn.Parameter)]
    assert all(parameter.grad is None for parameter in parameters)  # so they were freed, and not all at the end


# ------------------------------------------------------------------------------------------- the same bits
@pytest.mark.first(2)
@pytest.mark.parametrize("name", ["gpt2", *(name for name in ARCHITECTURES if name != "gpt2")])
def test_every_architecture_trains_to_the_same_bits(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made(name, tmp_path / name)
    files, store = data(tmp_path), Store(tmp_path / "store")
    config = settings(name, tmp_path / name, files[ARCHITECTURES[name].kind], "full")
    base = Base(str(tmp_path / name), tmp_path / name, "")
    rows = prepare(config, base.folder, store).train
    for recomputing in (False, True)[: 1 if name in UNSUPPORTED else 2]:
        check_same(base, replace(config, gradient_checkpointing=recomputing), rows, monkeypatch)


@pytest.mark.parametrize("tuning", ["full", "head"])
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight-decay": 0.01},
        {"optimizer": "adamw", "weight-decay": 0.01},
        {"optimizer": "sgd", "model.dtype": "bfloat16"},
        {"optimizer": "adamw", "precision": "bfloat16"},
    ],
)
def test_every_optimizer_ends_on_the_same_bits(
    kinds: dict[str, Sample], tuning: str, options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = kinds["llama"]
    config = sample.config(tuning, **options)
    rows = prepare(config, sample.base.folder, Store(tmp_path)).train
    check_same(sample.base, config, rows, monkeypatch)


def test_penalties_are_part_of_early_steps(
    kinds: dict[str, Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = kinds["llama"]
    config = replace(sample.config("full", optimizer="sgd"), local_steps=2)
    rows = prepare(config, sample.base.folder, Store(tmp_path)).train
    ended = []
    for waiting in (1, 2**62):
        monkeypatch.setattr(trainer, "LARGE", waiting)
        model = build(sample.base, config, 0, "cpu")
        Trainer(config, rows, 7, regularisers=(lambda live: lambda: sum(t.square().sum() for t in live.values()),)).fit(
            model
        )
        ended.append(dict(model.trained))
    assert equal(*ended)


# ------------------------------------------------------------------------------------------- what waits
def test_no_more_than_this_waits(kinds: dict[str, Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = kinds["llama"]
    config = sample.config("full", optimizer="sgd")
    rows = prepare(config, sample.base.folder, Store(tmp_path)).train
    model = build(sample.base, replace(config, local_steps=1), 0, "cpu")
    parameters = [tensor for tensor in model.trained.values() if isinstance(tensor, torch.nn.Parameter)]
    waiting: list[int] = []

    def look(parameter: torch.Tensor) -> None:
        waiting.append(sum(own.grad.nbytes for own in parameters if own.grad is not None))

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(look)  # it runs before the trainer's own
    sizes = sorted(parameter.nbytes for parameter in parameters)
    limit = sizes[-1]
    monkeypatch.setattr(trainer, "LARGE", limit)
    Trainer(model.config, rows, 7).fit(model)
    assert limit <= max(waiting) < 2 * limit < sum(sizes)


def test_gradients_that_are_needed_together_wait(kinds: dict[str, Sample]) -> None:
    full = kinds["llama"].config("full", **{"max-grad-norm": 0.0})
    assert steps_early(full)
    together = [
        replace(full, max_grad_norm=1.0),
        replace(full, micro_batch_size=1, batch_size=4),
        kinds["llama"].config("lora", **{"max-grad-norm": 0.0}),
    ]
    assert not any(steps_early(config) for config in together)
    assert [copies(config) for config in together[:2]] == [copies(full) + 1] * 2
