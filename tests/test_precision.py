"""Steps in fewer bits: products in bfloat16, and moments of the optimizer in 8 bits."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from in_process import equal
from samples import language_base
from test_causal import based, flat, prepared

import strategies
from strategies.exchange.compatibility import problems
from task.config import IN_8_BITS, TaskConfig
from task.data.rows import Rows
from task.models.base import Base
from task.models.model import TunedModel, build
from task.schema import ConfigError
from task.storage.store import Store
from task.training import chosen_precision
from task.training.chosen_precision import in_chosen_precision
from task.training.mixed_precision import autocast
from task.training.trainer import Trainer, evaluate


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return based(language_base(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def rows(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return prepared(tmp_path_factory.mktemp("rows"), base.folder)


def trained(base: Base, rows: Rows, **options: object) -> tuple[TunedModel, float]:
    """The model after three steps, and the loss of training."""
    named = {name.replace("_", "-"): value for name, value in options.items()}
    config = TaskConfig.read(flat(Path("given")) | {"local-steps": 3, "learning-rate": 0.01} | named)
    model = build(base, config, 4, "cpu")
    return model, Trainer(config, rows, 0).fit(model)["train-loss"]


# ------------------------------------------------------------------------------------------- bfloat16
@pytest.mark.judged
def test_products_are_in_bfloat16_and_everything_else_as_it_was(base: Base, rows: Rows) -> None:
    plain, loss = trained(base, rows, optimizer="sgd")
    mixed, also = trained(base, rows, optimizer="sgd", precision="bfloat16")
    assert also == pytest.approx(loss, rel=0.02)
    assert {tensor.dtype for tensor in (*mixed.trained.values(), *mixed.frozen.values())} == {torch.float32}
    for name, tensor in plain.trained.items():
        gradient, near = tensor.grad, mixed.trained[name].grad
        assert gradient is not None
        assert near is not None
        assert near.dtype == torch.float32
        assert float((near - gradient).norm()) <= 0.1 * float(gradient.norm()) + 1e-6
    assert not equal(dict(mixed.trained), dict(plain.trained))


def chosen(base: Base, rows: Rows, store: Store, **options: object) -> str:
    """What `auto` stands for."""
    config = TaskConfig.read(flat(Path("given")) | {"precision": "auto"} | options)
    return in_chosen_precision(config, build(base, config, 4, "cpu"), rows, store).precision


def test_auto_needs_a_device_that_multiplies_in_bfloat16(
    base: Base, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen_precision, "multiplies_bfloat16", lambda device: False)
    monkeypatch.setattr(chosen_precision, "seconds", None)  # so nothing is timed
    assert chosen(base, rows, Store(tmp_path)) == "model"
    assert isinstance(autocast("model", "cpu"), nullcontext)
    assert isinstance(autocast("bfloat16", "cpu"), torch.autocast)


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, "bfloat16"), (0.95, "model"), (1.5, "model")])
def test_auto_is_what_takes_less_time_and_stays_so(
    base: Base, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, expected: str
) -> None:
    monkeypatch.setattr(chosen_precision, "multiplies_bfloat16", lambda device: True)
    monkeypatch.setattr(chosen_precision, "seconds", lambda *_: (1.0, ratio))
    assert chosen(base, rows, Store(tmp_path)) == expected
    monkeypatch.setattr(chosen_precision, "seconds", lambda *_: (1.0, 2.0 - ratio))  # the machine is busy now
    assert chosen(base, rows, Store(tmp_path)) == expected
    assert chosen(base, rows, Store(tmp_path), **{"model.dtype": "bfloat16"}) == "model"


def test_timing_steps_changes_nothing(base: Base, rows: Rows) -> None:
    config = TaskConfig.read(flat(Path("given")))
    model = build(base, config, 4, "cpu")
    before = {name: tensor.detach().clone() for name, tensor in model.trained.items()}
    state = torch.get_rng_state()
    assert min(chosen_precision.seconds(config, model, rows)) > 0
    assert equal(dict(model.trained), before)
    assert all(tensor.grad is None for tensor in model.trained.values())
    assert torch.equal(torch.get_rng_state(), state)


def test_scores_have_the_precision_of_steps_in_every_thread(base: Base, rows: Rows) -> None:
    model = build(base, TaskConfig.read(flat(Path("given"))), 4, "cpu")
    exact, rounded = (evaluate(model, rows, "cpu", precision=name)["loss"] for name in ("model", "bfloat16"))
    assert exact != rounded
    assert evaluate(model, rows, "cpu", 2, "bfloat16")["loss"] == rounded
    assert evaluate(model, rows, "cpu", 2)["loss"] == exact


def test_what_rounding_would_spoil_is_refused() -> None:
    config = TaskConfig.read({"precision": "auto"})
    private = strategies.load("fedavg", [strategies.load_wrapper("example-privacy", clip=1.0)])
    assert "precision = 'auto' rounds gradients of rows; example-privacy needs 'model'" in problems(private, config)
    assert any("which precision rounds" in said for said in problems(strategies.load("fedkseed"), config))


# ------------------------------------------------------------------------------------------- 8 bits
@pytest.mark.parametrize("optimizer", IN_8_BITS)
def test_moments_in_8_bits_step_nearly_alike(base: Base, rows: Rows, optimizer: str) -> None:
    pytest.importorskip("bitsandbytes")
    plain, loss = trained(base, rows, weight_decay=0.01)
    found, also = trained(base, rows, weight_decay=0.01, optimizer=optimizer)
    assert also == pytest.approx(loss, rel=1e-3)
    for name, tensor in plain.trained.items():
        torch.testing.assert_close(found.trained[name], tensor, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("optimizer", IN_8_BITS)
def test_moments_of_large_tensors_have_8_bits(optimizer: str) -> None:
    pytest.importorskip("bitsandbytes")
    config = TaskConfig.read({"optimizer": optimizer})
    large, small = torch.nn.Parameter(torch.randn(128, 64)), torch.nn.Parameter(torch.randn(8))
    made = Trainer(config, rows=None, seed=0)._optimizer([large, small], [0.01, 0.1])  # type: ignore[arg-type]
    for parameter in (large, small):
        parameter.grad = torch.ones_like(parameter)
    before = small.detach().clone()
    made.step()
    assert {tensor.dtype for tensor in made.state[large].values() if getattr(tensor, "numel", int)() == 8192} == {
        torch.uint8
    }
    torch.testing.assert_close(small.detach(), before - 0.1, rtol=1e-3, atol=1e-4)


def test_where_bitsandbytes_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("task.config.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"'adamw-8bit' needs the package .*: pip install 'thistledown\[quantization\]'"
    ):
        TaskConfig.read({"optimizer": "adamw-8bit"})
    with pytest.raises(ConfigError, match="momentum is an option of optimizer = 'sgd'"):
        TaskConfig.read({"optimizer": "paged-adamw-8bit", "momentum": 0.9})
