"""Micro-batches: the gradient of a batch a few rows at a time, and fewer rows where memory runs out."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import QV, equal, federate
from laws import toy_model, trainer
from samples import language_base
from test_causal import ROWS, based, flat, prepared
from test_example_privacy import FEDAVG, private_trainer, steps

import strategies
from strategies.exchange.types import Assignment
from task.config import TaskConfig
from task.data.rows import IGNORED, Rows
from task.kinds import registry
from task.models.base import Base
from task.models.model import build
from task.training.batches import Unsuited, batches
from task.training.micro_batches import check_separable, mean_loss
from task.training.mixed_precision import Masters
from task.training.trainer import Trainer

LONG: dict[str, list[object]] = ROWS | {"output": ["three", "day " * 9, "not cold", "hot night day two"] * 6}
SLOW_STEP = {"optimizer": "sgd", "learning-rate": 1e-3, "local-steps": 1, "batch-size": 7}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return based(language_base(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def rows(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Completions of 2 to 10 tokens."""
    return prepared(tmp_path_factory.mktemp("rows"), base.folder, LONG)


def settings(**options: object) -> TaskConfig:
    named = {name.replace("__", ".").replace("_", "-"): value for name, value in options.items()}
    return TaskConfig.read(flat(Path("given")) | SLOW_STEP | {"tuning": "full"} | named)


def fitted(base: Base, rows: Rows, config: TaskConfig, **more: Any) -> tuple[dict[str, torch.Tensor], float]:
    """The gradients of a step, and the loss."""
    model = build(base, config, 4, "cpu")
    told = Trainer(config, rows, 3, **more).fit(model)
    gradients = {name: tensor.grad for name, tensor in model.trained.items() if tensor.grad is not None}
    return gradients, told["train-loss"]


# ------------------------------------------------------------------------------------------- the same gradient
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_gradients_of_parts_add_up(size: int, tuning: str, base: Base, rows: Rows) -> None:
    whole, loss = fitted(base, rows, settings(tuning=tuning))
    found, parts_loss = fitted(base, rows, settings(tuning=tuning, micro_batch_size=size))
    assert parts_loss == pytest.approx(loss, rel=1e-6)
    assert found.keys() == whole.keys()
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * largest)
    assert equal(found, whole) == (size == 100)


@pytest.mark.judged
def test_every_token_of_a_batch_counts_the_same(base: Base, rows: Rows) -> None:
    """Against a slow reference in float64: sums over tokens, divided by the tokens of the batch. A mean of the means of
    rows, as in trainers that divide the loss by the number of parts, is another gradient."""
    config = settings(micro_batch_size=2)
    found, loss = fitted(base, rows, config)
    model = build(base, config, 4, "cpu").module.double()
    (positions,) = batches(config, len(rows), 3)
    total, by_row, tokens = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
    for position in positions:
        batch = rows.batch([int(position)])
        labels = batch.pop("labels")[0, 1:]
        logits = model(**batch).logits[0, :-1]
        own = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        count = int((labels != IGNORED).sum())
        total, by_row, tokens = total + own, by_row + own / count, tokens + count
    assert loss == pytest.approx(float(total.detach()) / tokens, rel=1e-5)
    named = dict(model.named_parameters())
    names = [name for name in found if name in named]
    assert len(names) == len(named)
    right = torch.autograd.grad(total / tokens, [named[name] for name in names], retain_graph=True)
    wrong = torch.autograd.grad(by_row / len(positions), [named[name] for name in names])
    for name, gradient in zip(names, right, strict=True):
        torch.testing.assert_close(found[name].double(), gradient, rtol=1e-3, atol=1e-6)
    apart = max(float((one - other).abs().max() / one.abs().max()) for one, other in zip(right, wrong, strict=True))
    assert apart > 0.1


def test_a_part_without_labels_counts_nothing() -> None:
    toy = toy_model(FEDAVG, 3, seed=2).module
    parts = [trainer().rows.batch([0, 1]), trainer().rows.batch([2, 3])]
    alone = float(mean_loss(registry.of(trainer().config), toy, parts[:1]))
    parts[1]["labels"] = torch.full((2,), IGNORED)
    assert float(mean_loss(registry.of(trainer().config), toy, parts)) == alone


def test_penalties_are_added_once(base: Base, rows: Rows) -> None:
    def penalty(live: Any) -> Callable[[], torch.Tensor]:
        return lambda: torch.stack([10 * tensor.sum() for tensor in live.values()]).sum()

    plain, _ = fitted(base, rows, settings())
    found, _ = fitted(base, rows, settings(micro_batch_size=2), regularisers=(penalty,))
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient + 10, rtol=1e-4, atol=1e-4)


def test_gradients_in_16_bits_are_summed_in_32() -> None:
    """In bfloat16 a sum of 257 ones is 256."""
    own = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    masters = Masters([own])
    for _ in range(300):
        own.sum().backward()  # type: ignore[no-untyped-call]
        masters.take_gradients()
    (copy,) = masters.parameters
    assert copy.grad is not None
    assert copy.grad.tolist() == [300.0] * 3


# ------------------------------------------------------------------------------------------- other steps
@pytest.mark.parametrize("size", [1, 3])
def test_private_steps_clip_rows_whatever_the_parts(size: int) -> None:
    plain, parts = toy_model(FEDAVG, 3, seed=2), toy_model(FEDAVG, 3, seed=2)
    private_trainer(steps(clip=0.05)).fit(plain)
    private_trainer(steps(clip=0.05), micro_batch_size=size).fit(parts)
    for name, tensor in plain.trained.items():
        torch.testing.assert_close(parts.trained[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["fedkseed", "scaffold", "fedprox", "sa-fedlora"])
def test_strategies_take_the_same_steps_in_parts(name: str) -> None:
    strategy = strategies.load(name)
    sgd = {"optimizer": "sgd", "learning_rate": 0.01, "batch_size": 5, "local_steps": 4}
    whole, parts = toy_model(strategy, 3, seed=2), toy_model(strategy, 3, seed=2)
    assignment = Assignment(round=1, rounds=1, seed=5, rank=3)
    _, told = strategy.train(whole, trainer(**sgd), assignment)
    _, also = strategy.train(parts, trainer(**sgd, micro_batch_size=2), assignment)
    assert also["train-loss"] == pytest.approx(told["train-loss"], rel=1e-4)
    for key, tensor in whole.trained.items():
        torch.testing.assert_close(parts.trained[key], tensor, rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------------------------- what does not add up
def test_a_loss_that_balances_experts_is_refused() -> None:
    module = torch.nn.Linear(2, 2)
    module.config = type("Shape", (), {"output_router_logits": True})()  # type: ignore[assignment]
    check_separable(module, TaskConfig.read({"micro-batch-size": 16}))
    with pytest.raises(Unsuited, match="balances its experts"):
        check_separable(module, TaskConfig.read({"micro-batch-size": 8}))


def test_the_names_of_other_trainers_are_answered() -> None:
    for name in ("gradient-accumulation-steps", "accumulate-grad-batches", "max-physical-batch-size"):
        with pytest.raises(ValueError, match=r"did you mean 'micro-batch-size'\?"):
            TaskConfig.read({name: 2})


# ------------------------------------------------------------------------------------------- memory runs out
@pytest.mark.slow
@pytest.mark.usefixtures("toys")
def test_a_node_out_of_memory_takes_fewer_rows_at_its_rank(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = QV | {"strategy": "greedy", "num-server-rounds": 2, "greedy.fits": 8, "lora.ranks": "4"}
    with caplog.at_level(logging.WARNING, "flwr"):
        found = federate(tmp_path / "found", options | {"greedy.rows": 2})
    said = [record.message for record in caplog.records if "memory ran out" in record.message]
    assert len(said) == 3 * 2  # from 8 to 4 to 2 rows, in the first round; the second begins with 2
    assert "tries again with 4 rows of a step at a time" in said[0]
    nodes = [line for entry in found.rounds[1:] for line in entry["nodes"]]
    assert [(line["rank"], line["refused"]) for line in nodes] == [(4, "")] * 6
    assert [line["metrics"]["micro-batch-size"] for line in nodes] == [2] * 6
    chosen = federate(tmp_path / "chosen", options | {"micro-batch-size": 2})
    assert equal(found.state().tensors, chosen.state().tensors)
    after = federate(tmp_path / "after", options)  # another run in this process finds nothing out from the first
    assert not any("micro-batch-size" in line["metrics"] for entry in after.rounds[1:] for line in entry["nodes"])


@pytest.mark.slow
@pytest.mark.usefixtures("toys")
def test_a_single_row_that_is_too_much_lowers_the_rank(tmp_path: Path) -> None:
    outcome = federate(
        tmp_path,
        QV | {"strategy": "greedy", "num-server-rounds": 2, "greedy.fits": 2, "lora.ranks": "4", "batch-size": 2},
    )
    assert [{line["rank"] for line in entry["nodes"]} for entry in outcome.rounds[1:]] == [{4}, {2}]
    assert outcome.rounds[1]["failed"]
    assert math.isfinite(outcome.rounds[2]["train-loss"])
