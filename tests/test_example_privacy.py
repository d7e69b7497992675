"""DP-SGD on nodes: against a slow reference that clips the gradient of every row by itself, in float64."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import made
from in_process import SMALL, equal, federate
from laws import toy_model, trainer
from samples import language_base, write_table
from torch import nn

import strategies
from server_app.config import RunConfig
from strategies.algebra.accountant import Release
from strategies.exchange.types import Assignment
from strategies.rounds.handshake.resolve import resolve
from task.config import TaskConfig
from task.data.prepared import prepare
from task.data.rows import Rows
from task.kinds import registry as kinds
from task.models.finding import server_base
from task.models.model import TunedModel, tuned_model
from task.storage.store import server_store
from task.training import dp_sgd
from task.training.micro_batches import BatchLoss
from task.training.trainer import Trainer

ASSETS = Path(__file__).parents[2] / "shared" / "assets"
FEDAVG = strategies.load("fedavg")
ALL = {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 10, "local_steps": 3}  # every row in every step
READ: dict[str, list[object]] = {
    "text": ["say cold", "hot night day not cold", "three", "one two"] * 4,
    "label": ["a", "b"] * 8,
}
SAME = {"data.partitioner": "iid", "num-server-rounds": 2, "tuning": "bias", "wrappers": "example-privacy"}


def private_trainer(steps: dp_sgd.PrivateSteps, **settings: Any) -> Trainer:
    return replace(trainer(**(ALL | settings)), private=steps)


def steps(**options: Any) -> dp_sgd.PrivateSteps:
    chosen: dict[str, Any] = {"noise": 0.0, "clip": 0.3, "rate": 1.0, "steps": 10**6}
    return dp_sgd.PrivateSteps(**(chosen | options))


@pytest.mark.parametrize("clip", [0.01, 0.3, 1e6])
@pytest.mark.parametrize("penalised", [False, True])
def test_steps_without_noise_are_those_of_the_reference(clip: float, penalised: bool) -> None:
    model, local = toy_model(FEDAVG, 3, seed=2), private_trainer(steps(clip=clip))
    slow = copy.deepcopy(model.module).double()
    plain = [parameter for parameter in slow.parameters() if parameter.requires_grad]

    def penalty(live: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([tensor.square().sum() for tensor in live]).sum()

    for _ in range(3):
        total = [torch.zeros_like(parameter) for parameter in plain]
        for row in range(10):
            batch = local.rows.batch(torch.tensor([row]), "cpu")
            loss = slow(batch["pixel_values"].double(), batch["labels"]).loss
            gradients = torch.autograd.grad(loss, plain)
            length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
            for so_far, gradient in zip(total, gradients, strict=True):
                so_far += gradient * min(1.0, clip / length)
        extra = torch.autograd.grad(penalty(plain), plain) if penalised else [torch.zeros(())] * len(plain)
        with torch.no_grad():
            for parameter, so_far, more in zip(plain, total, extra, strict=True):
                parameter -= 0.5 * (so_far / 10 + more)
    live = list(model.trained.values())
    local.fit(model, penalty=(lambda: penalty(live)) if penalised else None)
    for name, parameter in slow.named_parameters():
        torch.testing.assert_close(
            dict(model.module.named_parameters())[name].double(), parameter, rtol=1e-3, atol=1e-5
        )


@pytest.mark.slow
def test_the_noise_has_the_moments_that_the_account_is_of() -> None:
    """A step moves every number by rate * noise * clip / batch-size times a standard normal; the clip is tiny."""
    local, drawn = private_trainer(steps(noise=1e6, clip=1e-6), local_steps=1, learning_rate=1.0), []
    for _ in range(200):
        model = toy_model(FEDAVG, 3, seed=2)
        before = {name: tensor.detach().clone() for name, tensor in model.trained.items()}
        local.fit(model)
        drawn += [(tensor.detach() - before[name]).flatten() * 10 for name, tensor in model.trained.items()]
    numbers = torch.cat(drawn).double()
    for power, (expected, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert abs(float((numbers**power).mean()) - expected) < 6 * math.sqrt(variance / len(numbers))


def test_rows_are_drawn_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 rows at rate 0.4 in 500 steps: the mean and variance of independent draws, and steps without any row."""
    sizes: list[int] = []
    inner = dp_sgd._gradients

    def seen(loss: Any, parameters: Any, batch: Any, rows: int) -> Any:
        sizes.append(rows)
        return inner(loss, parameters, batch, rows)

    monkeypatch.setattr(dp_sgd, "_gradients", seen)
    private_trainer(steps(clip=1e-9, rate=0.4), batch_size=4, local_steps=500).fit(toy_model(FEDAVG, 3, seed=2))
    drawn = torch.tensor([float(size) for size in sizes] + [0.0] * (500 - len(sizes)))
    assert abs(float(drawn.mean()) - 4) < 6 * math.sqrt(2.4 / 500)
    assert abs(float(drawn.var()) - 2.4) < 6 * 2.4 * math.sqrt(2 / 500)


def test_a_step_without_rows_is_noise_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp_sgd, "uniform", lambda count: torch.ones(count))
    for noise, moved in ((0.0, False), (1.0, True)):
        model = toy_model(FEDAVG, 3, seed=2)
        before = model.trained["classifier.weight"].detach().clone()
        private_trainer(steps(noise=noise, rate=0.4), batch_size=4).fit(model)
        assert torch.equal(model.trained["classifier.weight"], before) != moved


def test_no_more_steps_are_done_than_were_paid_for() -> None:
    local = private_trainer(steps(noise=1.0, steps=4))
    said = local.fit(toy_model(FEDAVG, 3, seed=2))
    assert said == {"steps": 3}
    with pytest.raises(dp_sgd.Unpaid, match="3 private steps are asked for, and 1 of those paid for are left"):
        local.fit(toy_model(FEDAVG, 3, seed=2))


def test_rows_that_see_each_other_are_refused() -> None:
    model = toy_model(FEDAVG, 3, seed=2)
    model.module.m0.norm = nn.BatchNorm1d(5)
    model.trained["m0.norm.weight"] = model.module.m0.norm.weight
    with pytest.raises(ValueError, match="example-privacy cannot train this model"):
        private_trainer(steps()).fit(model)


def _check_gradients(options: dict[str, Any], count: int) -> None:
    """Every row's gradient is that of a batch of this row."""
    run, store = RunConfig.read(SMALL | options), server_store()
    task, base = resolve(run.task, store, 3), server_base(run.task.model, store)
    model = tuned_model(base, task, 4, "cpu")
    model.module.eval()  # dropout would differ
    generator = torch.Generator().manual_seed(0)
    for tensor in model.trained.values():  # B is zero in a fresh adapter, and A has no gradient then
        tensor.data.add_(torch.randn(tensor.shape, generator=generator) / 50)
    rows = prepare(task, base.folder, store).train
    parameters = [tensor for tensor in model.trained.values() if isinstance(tensor, nn.Parameter)]
    loss = BatchLoss(kinds.of(task), model.module)
    samples = dp_sgd._gradients(loss, parameters, rows.batch(torch.arange(count), "cpu"), count)
    for row in range(count):
        loss = model.module(**rows.batch(torch.tensor([row]), "cpu")).loss
        gradients = torch.autograd.grad(loss, parameters)
        near = 1e-4 * max(float(gradient.abs().max()) for gradient in gradients)  # float32, summed in another order
        for sample, gradient in zip(samples, gradients, strict=True):
            torch.testing.assert_close(sample[row], gradient, rtol=1e-3, atol=near)


@pytest.mark.parametrize("tuning", ["full", "lora", "bias", "prompt", "adapter"])
def test_gradients_of_rows_of_the_embedded_model(tuning: str) -> None:
    _check_gradients({"tuning": tuning}, 3)


@pytest.mark.first(1)
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_gradients_of_texts_of_different_lengths(tuning: str) -> None:
    """BERT: padding, and an embedding of places that all rows share."""
    news, base = ASSETS / "ag_news", ASSETS / "minilm-l6-v2"
    if not news.exists():
        pytest.skip("../shared/assets is not here")
    names = {"model.name": str(base), "data.name": str(news), "task.kind": "text-classification"}
    _check_gradients(names | {"tuning": tuning, "lora.targets": "query,value"}, 2)


def test_gradients_of_texts_that_a_language_model_reads(tmp_path: Path) -> None:
    """A token sees those before it, and none behind it."""
    base, rows = language_base(tmp_path / "llama"), write_table(tmp_path / "rows.jsonl", READ)
    names = {"model.name": str(base), "data.name": str(rows), "task.kind": "text-classification", "tuning": "full"}
    _check_gradients(names | {"data.test-split": "", "data.max-length": 16, "data.partitioner": "iid"}, 3)


LONG = {"text": ["say " * 20, "one two", "hot night day not cold"] * 4, "label": ["a", "b", "a"] * 4}


@pytest.mark.parametrize(
    ("name", "settings", "fits"),
    [
        ("bert", {}, True),
        ("gpt2-classifier", {}, True),
        ("mpnet", {}, False),  # adds the mask to scores
        ("modernbert", {}, True),
        ("modernbert", {"local_attention": 8}, False),  # rows are longer than what its layers see
    ],
)
def test_models_whose_gradients_of_rows_would_be_others_are_refused(
    name: str, settings: dict[str, object], fits: bool, tmp_path: Path
) -> None:
    base = made(name, tmp_path / "base")
    about = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(about | settings))
    model, given, rows = _model_of(base, write_table(tmp_path / "rows.jsonl", LONG))
    private = Trainer(given, rows, 0, private=steps(rate=0.5))
    if fits:
        assert private.fit(model) == {"steps": 2}
    else:
        with pytest.raises(ValueError, match="its attention needs masks that gradients of single rows do not allow"):
            private.fit(model)


def _model_of(base: Path, table: Path) -> tuple[TunedModel, TaskConfig, Rows]:
    names = {"model.name": str(base), "data.name": str(table), "task.kind": "text-classification", "tuning": "full"}
    names |= {"data.test-split": "", "data.max-length": 32, "local-steps": 2, "batch-size": 4}
    run, store = RunConfig.read(SMALL | names | {"data.partitioner": "iid"}), server_store()
    task, found = resolve(run.task, store, 3), server_base(run.task.model, store)
    return tuned_model(found, task, 4, "cpu"), task, prepare(task, found.folder, store).train


# ---------------------------------------------------------------------- federations


@pytest.mark.slow
def test_switched_off_a_run_is_the_plain_one_bit_for_bit(tmp_path: Path) -> None:
    off = SAME | {"example-privacy.epsilon": 0.0, "example-privacy.clip": 0.0}
    assert equal(federate(tmp_path, off | {"wrappers": ""}).state().tensors, federate(tmp_path, off).state().tensors)


@pytest.mark.first(1)
@pytest.mark.parametrize("options", [{}, {"strategy": "rbla", "tuning": "lora", "lora.ranks": "2,4"}])
def test_a_run_reports_the_largest_epsilon_of_its_nodes(options: dict[str, Any], tmp_path: Path) -> None:
    outcome = federate(tmp_path, SAME | options)
    assert outcome.summary["status"] == "completed"
    epsilons = [line["epsilon"] for line in outcome.rounds]
    assert epsilons[0] == 0 < epsilons[1] < epsilons[2] <= 8
    assert epsilons[2] > 7.9
    for line in outcome.rounds[1:]:
        assert not any("train-loss" in node["metrics"] or node["refused"] for node in line["nodes"])


@pytest.mark.slow
def test_a_run_ends_when_every_node_has_spent_its_budget(tmp_path: Path) -> None:
    options = {"num-server-rounds": 9, "example-privacy.noise": 0.8, "example-privacy.epsilon": 8.0}
    outcome = federate(tmp_path, SAME | options)
    assert outcome.summary["status"] == "completed"
    assert "is spent on every connected node" in outcome.summary["stopped"]
    assert 1 <= outcome.summary["rounds"] < 9
    assert not any(node["refused"] for line in outcome.rounds for node in line["nodes"])


def test_an_assignment_limits_the_steps_to_those_paid_for() -> None:
    wrapper, assignment = strategies.load_wrapper("example-privacy"), Assignment(1, 2, 0, 3, noise=1.5)
    local = trainer(**ALL)
    wrapped = wrapper.training(local, assignment, {})
    payment = wrapper.payment(assignment, local.config, len(local.rows))
    assert payment is not None
    assert (payment.release, payment.times) == (Release(1.5, 1.0), 3)
    wrapped.fit(toy_model(FEDAVG, 3, seed=2))
    with pytest.raises(dp_sgd.Unpaid):
        wrapped.fit(toy_model(FEDAVG, 3, seed=2))
