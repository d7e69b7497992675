"""What the dry run finds that a round would fail with, what it says, and what it leaves as it was."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, data, made, settings
from in_process import InProcessGrid, federate

import client_app
import strategies
from strategies.exchange.dry_run import rehearse
from strategies.exchange.replay import merge_products
from strategies.exchange.types import Entry, RunFailed
from task.config import TaskConfig
from task.data.extremes import stretched
from task.data.prepared import prepare
from task.data.rows import Rows, Tokens
from task.data.stand_in import stand_in
from task.models.base import Base
from task.models.model import TunedModel, build
from task.storage.store import Store
from task.training.batches import TooFewRows, batches, per_epoch
from task.training.dry_run import DryRunError, dry_run
from task.training.dry_run_work import too_large
from task.training.trainer import Trainer
from thistledown.commands.check import check
from thistledown.settings import Settings

APP = Path(__file__).parent.parent
Case = tuple[Base, TaskConfig, Rows]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """A base, its settings and its rows, by the name of an architecture."""
    folder = tmp_path_factory.mktemp("dry")
    rows = data(folder)

    def found(name: str, tuning: str = "full", **options: Any) -> Case:
        place = folder / name
        if not place.exists():
            made(name, place)
        kind = ARCHITECTURES[name].kind
        flat = {key.replace("__", ".").replace("_", "-"): value for key, value in options.items()}
        config = settings(name, place, rows[kind], tuning, **flat)
        return Base(str(place), place, ""), config, prepare(config, place, Store(folder / "store")).train

    return found


# ------------------------------------------------------------------------------------------- what it finds
LONG = {"data__max_length": 64}
FOUND = [
    ("roberta", "full", LONG, "more than the 63 tokens that the model reads; set data.max-length = 63"),
    ("mpnet", "lora", LONG, "set data.max-length = 62"),
    ("longformer", "head", LONG, "set data.max-length = 63"),
    ("bert", "prompt", {"data__max_length": 60, "prompt__tokens": 10}, "54 tokens .* with tuning = 'prompt'"),
    ("bert", "prefix", LONG | {"prefix__tokens": 1}, "63 tokens .* with tuning = 'prefix'; set .* = 63"),
    ("gpt2", "prompt", LONG | {"prompt__tokens": 3}, "61 tokens .* with tuning = 'prompt'; set .* = 61"),
    ("opt", "prompt", LONG | {"prompt__tokens": 3}, "61 tokens .* with tuning = 'prompt'; set .* = 61"),
    ("falcon", "prefix", {}, "tuning = 'prefix' does not fit this model .*; use tuning = 'lora'"),
    ("lfm2", "prefix", {}, "tuning = 'prefix' does not fit this model .*; use tuning = 'lora'"),
    ("mobilenet-v2", "full", {"batch_size": 4, "micro_batch_size": 2}, "normalises .*; set micro-batch-size = 0"),
    ("mobilenet-v2", "full", {"batch_size": 1}, "batch-size = 1: this model normalises over the rows of a batch"),
]  # fmt: skip


@pytest.mark.first(4)
@pytest.mark.parametrize(("name", "tuning", "options", "said"), FOUND)
def test_what_a_round_would_fail_with(
    case: Callable[..., Case], name: str, tuning: str, options: dict[str, Any], said: str
) -> None:
    base, config, rows = case(name, tuning, **options)
    with pytest.raises(DryRunError, match=said):
        rehearse(strategies.load("fedavg"), config, base, rows, "cpu")
    with pytest.raises(DryRunError, match=said):
        rehearse(strategies.load("fedavg"), config, base, stand_in(config, base.folder), "cpu")


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("name", "tuning"), [("deberta-v2", "lora"), ("t5", "lora"), ("bart", "head"), ("xlnet", "norm"), ("mpnet", "lora")]
)
def test_models_that_privacy_of_rows_cannot_train(case: Callable[..., Case], name: str, tuning: str) -> None:
    private = strategies.load("fedavg", [strategies.load_wrapper("example-privacy")])
    base, config, rows = case(name, tuning)
    with pytest.raises(DryRunError, match=r"example-privacy cannot train this model: .*; use local-privacy or central"):
        rehearse(private, config, base, rows, "cpu")
    rehearse(strategies.load("fedavg"), config, base, rows, "cpu")


def test_models_whose_rows_see_each_other_have_no_privacy_of_rows(case: Callable[..., Case]) -> None:
    private = strategies.load("fedavg", [strategies.load_wrapper("example-privacy")])
    base, config, rows = case("resnet", "full")
    with pytest.raises(DryRunError, match=r"^example-privacy cannot train this model: BatchNorm cannot support [^.]*$"):
        rehearse(private, config, base, rows, "cpu")


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["mobilevit", "resnet", "convnext", "vit", "clip"])
def test_images_come_in_the_dtype_of_the_model(case: Callable[..., Case], name: str, dtype: str) -> None:
    base, config, rows = case(name, "full", model__dtype=dtype)
    model = build(base, config, 0, "cpu")
    assert np.isfinite(Trainer(config, rows, 0).fit(model)["train-loss"])


@pytest.mark.parametrize("name", ["bert", "vit", "distilbert"])
def test_models_that_privacy_of_rows_can_train(case: Callable[..., Case], name: str) -> None:
    base, config, rows = case(name, "lora")
    rehearse(strategies.load("fedavg", [strategies.load_wrapper("example-privacy")]), config, base, rows, "cpu")


@pytest.mark.parametrize(("dtype", "cure"), [("float32", "learning-rate = 0.05"), ("float16", "bfloat16")])
def test_numbers_that_overflow(case: Callable[..., Case], dtype: str, cure: str) -> None:
    base, config, rows = case("bert", "full", model__dtype=dtype)
    model = build(base, config, 0, "cpu")
    model.trained["bert.embeddings.word_embeddings.weight"].data.fill_(float("inf"))
    with pytest.raises(DryRunError, match=f"is not a finite number with model.dtype = '{dtype}'; .*{cure}"):
        dry_run(model, Trainer(config, rows, 0))


def test_a_row_that_depends_on_its_neighbour(case: Callable[..., Case]) -> None:
    base, config, rows = case("gpt2-classifier", "full")
    model = build(base, config, 0, "cpu")
    model.module.config.pad_token_id = 5  # type: ignore[union-attr, assignment]
    with pytest.raises(DryRunError, match=r"a row's logits depend on the other row of the batch, by .*pad_token_id"):
        dry_run(model, Trainer(config, rows, 0))


def test_tokens_without_embeddings(case: Callable[..., Case]) -> None:
    base, config, rows = case("llama", "lora")
    model = build(base, config, 2, "cpu")
    model.module.get_input_embeddings().num_embeddings = 20  # type: ignore[operator]
    with pytest.raises(DryRunError, match=r"the tokenizer makes the token \d+, and the model has 20 embeddings"):
        dry_run(model, Trainer(config, rows, 0))


# ------------------------------------------------------------------------------------------- rows
@pytest.mark.parametrize("length", [2, 3, 5, 8, 20])
def test_a_row_is_stretched_between_its_ends(length: int) -> None:
    tokens = Tokens(np.array([1, 7, 8, 2, 1, 2], np.int32), np.array([0, 4, 6]), 0)
    found: Any = stretched(Rows(tokens, np.zeros(2, np.int64), (), indices=np.arange(2)), length).inputs
    first = found.ids[: found.offsets[1]].tolist()
    assert len(first) == length
    assert (first[0], first[-1], first.count(1), first.count(2)) == (1, 2, 1, 1)
    assert found.ids[found.offsets[1] :].tolist() == [1, 2]


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_rows_stand_in_where_there_are_none(case: Callable[..., Case], name: str) -> None:
    base, config, rows = case(name)
    stood = stand_in(config, base.folder)
    assert (len(stood), stood.batch([0, 1]).keys()) == (2, rows.batch([0, 1]).keys())
    if name != "vit":
        assert int(stood.lengths.max()) == config.data.max_length


# ------------------------------------------------------------------------------------------- what it leaves
def test_random_numbers_go_on_as_before(case: Callable[..., Case]) -> None:
    base, config, rows = case("bert", "lora", lora__dropout=0.5)
    before = torch.get_rng_state()
    rehearse(strategies.load("fedavg"), config, base, rows, "cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_what_would_take_minutes_is_left_out_and_said(case: Callable[..., Case]) -> None:
    base, config, _ = case("bert", "head", data__max_length=32)
    model = build(base, config, 0, "cpu")
    assert too_large(model, config) == ""
    wide = torch.nn.Parameter(torch.empty(10**6, 10**5, device="meta"))
    model.module.register_parameter("wide", wide)
    assert "was not run once before the run: its 100,000,0" in too_large(model, config)


def test_what_stays_frozen_of_a_mixture_is_said(case: Callable[..., Case]) -> None:
    base, config, _ = case("mixtral", "lora")
    (said,) = build(base, config, 2, "cpu").notices
    assert "leaves 9,216 of " in said
    assert "such as the experts of a mixture" in said


def test_layers_that_no_gradient_reaches_are_said(case: Callable[..., Case]) -> None:
    base, config, rows = case("siglip", "lora")
    model = build(base, config, 2, "cpu")
    (said,) = dry_run(model, Trainer(config, rows, 0))
    assert re.search(r"no gradient reaches \d+ of \d+ tensors that train, such as 'vision_model\.head\.", said)


def test_a_last_row_alone_is_said(case: Callable[..., Case]) -> None:
    base, config, rows = case("resnet", "full")
    said = rehearse(strategies.load("fedavg"), config, base, rows, "cpu")
    assert any("a last row alone joins the batch before" in sentence for sentence in said)
    base, config, rows = case("resnet", "norm")
    assert rehearse(strategies.load("fedavg"), config, base, rows, "cpu") == ()


# ------------------------------------------------------------------------------------------- check, servers and nodes
def explained(tmp_path: Path, config: TaskConfig, *more: str) -> str:
    lines: list[str] = []
    flat = {"task.kind": config.task.kind.name, "model.name": config.model.name, "data.name": config.data.name}
    given = [f"{key}='{value}'" for key, value in flat.items()]
    own = [
        "data.max-length=24",
        "data.test-split=''",
        "data.partitioner='iid'",
        "simulation.num-supernodes=2",
        "data.labels='x|y|z'",
    ]
    check(Settings.read(APP, None, [" ".join([*given, *own, *more])], tmp_path), lines.append)
    return "\n".join(lines)


def test_check_says_it(case: Callable[..., Case], tmp_path: Path) -> None:
    _, config, _ = case("roberta", "head")
    with pytest.raises(ValueError, match=r"set data\.max-length = 63"):
        explained(tmp_path, config, "tuning='head'", "data.max-length=64")
    assert "trains " in explained(tmp_path, config, "tuning='head'", "data.max-length=63")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
@pytest.mark.parametrize("key", ["device", "server-device"])
def test_check_says_that_this_machine_lacks_a_device(case: Callable[..., Case], tmp_path: Path, key: str) -> None:
    _, config, _ = case("bert", "head")
    with pytest.raises(ValueError, match="device 'cuda': torch finds none on this machine, but cpu"):
        explained(tmp_path, config, f"{key}='cuda'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_devices_of_nodes_elsewhere_are_theirs(case: Callable[..., Case], tmp_path: Path) -> None:
    _, config, _ = case("bert", "head")
    said = explained(tmp_path, config, "device='cuda'", "data.partitioner='none'", "evaluate='nodes'")
    notice = "device 'cuda': torch finds none on this machine, but cpu; nodes report their devices when the run starts"
    assert f"notice    {notice}" in said


def test_a_run_does_not_start(case: Callable[..., Case], tmp_path: Path) -> None:
    _, config, _ = case("falcon", "prefix")
    grid = InProcessGrid(client_app.app, 2)
    with pytest.raises(DryRunError, match="tuning = 'prefix' does not fit this model"):
        federate(tmp_path, run(config), grid)
    assert grid.log == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
@pytest.mark.parametrize("reports", [True, False])
def test_nodes_without_the_device_are_left_out_with_the_reason(
    case: Callable[..., Case], tmp_path: Path, reports: bool
) -> None:
    _, config, _ = case("bert", "head")
    grid = InProcessGrid(client_app.app, 2, {n: {"policy.reports.machine": reports} for n in (0, 1)})
    with pytest.raises(RunFailed, match=r"0 of 2 nodes can take part.*device 'cuda': torch finds none"):
        federate(tmp_path, run(config, device="cuda"), grid)
    assert {kind for _, kind in grid.log} == {"query.profile"}


def run(config: TaskConfig, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "task.kind": config.task.kind.name, "model.name": config.model.name, "data.name": config.data.name,
        "tuning": config.tuning.name, "data.test-split": "", "data.partitioner": "iid", "data.max-length": 24,
        "data.train-rows": 0, "data.validation-rows": 0, "data.test-rows": 0, "data.validation-fraction": 0.2,
        "data.test-fraction": 0.2, "lora.ranks": "2", "simulation.num-supernodes": 2,
    }  # fmt: skip
    return options | more


def test_nodes_with_rows_of_their_own_run_the_model_before_the_first_round(
    case: Callable[..., Case], tmp_path: Path
) -> None:
    """One has an image that cannot be prepared; that is known before it is asked to train."""
    _, config, _ = case("vit", "head")
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    for path, brightest in ((good, 255), (bad, 256)):
        path.write_text("".join(f'{{"image": [[0, {brightest}]], "label": "{label}"}}\n' for label in "xy"))
    grid = InProcessGrid(client_app.app, 2, {0: {"data-path": str(good)}, 1: {"data-path": str(bad)}})
    outcome = federate(tmp_path, run(config, **{"data.partitioner": "none", "data.labels": "x|y|z"}), grid)
    assert [exchange.partition for exchange in grid.of("query.rehearsal")] == [0, 1]
    assert {exchange.partition for exchange in grid.of("train")} == {0}
    assert not outcome.rounds[1]["nodes"][0]["refused"]


# ------------------------------------------------------------------------------------------- batches
@pytest.mark.parametrize(("rows", "least", "sizes"), [(9, 1, [4, 4, 1]), (9, 2, [4, 5]), (8, 2, [4, 4]), (3, 2, [3])])
def test_a_last_row_alone_joins_the_batch_before(rows: int, least: int, sizes: list[int]) -> None:
    config = TaskConfig.read({"batch-size": 4, "local-epochs": 2})
    found = list(batches(config, rows, 0, least))
    assert [len(batch) for batch in found] == 2 * sizes
    assert per_epoch(config, rows, least) == len(sizes)
    epochs = [torch.cat(found[: len(sizes)]), torch.cat(found[len(sizes) :])]
    assert all(sorted(epoch.tolist()) == list(range(rows)) for epoch in epochs)


def test_models_with_statistics_of_batches_train_on_every_number_of_rows(case: Callable[..., Case]) -> None:
    base, config, rows = case("mobilenet-v2", "full", batch_size=4, local_steps=0, local_epochs=1)
    assert len(rows) >= 5
    told = Trainer(config, rows.select(range(5)), 0).fit(build(base, config, 0, "cpu"))
    assert told["steps"] == 1
    assert np.isfinite(told["train-loss"])
    with pytest.raises(TooFewRows, match="needs 2; there is 1"):
        Trainer(config, rows.select([0]), 0).fit(build(base, config, 0, "cpu"))


# ------------------------------------------------------------------------------------------- 16 bits
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_steps_in_16_bits_are_those_of_32_rounded(case: Callable[..., Case], dtype: str, optimizer: str) -> None:
    base, config, rows = case("bert", "full", model__dtype=dtype, optimizer=optimizer, local_steps=20)
    model = build(base, config, 0, "cpu")
    told = Trainer(config, rows, 0).fit(model)
    assert np.isfinite(told["train-loss"])
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.trained.values())
    assert {tensor.dtype for tensor in model.trained.values()} == {getattr(torch, dtype)}


def test_steps_that_16_bits_cannot_hold_add_up(case: Callable[..., Case]) -> None:
    """Each is less than half of what bfloat16 can hold beside a weight of one."""
    base, config, rows = case("bert", "norm", model__dtype="bfloat16", learning_rate=0.001, local_steps=40)
    model = build(base, config, 0, "cpu")
    before = {name: tensor.detach().clone() for name, tensor in model.trained.items() if name.endswith("norm.weight")}
    before |= {name: tensor.detach().clone() for name, tensor in model.trained.items() if "LayerNorm.weight" in name}
    Trainer(config, rows, 0).fit(model)
    assert before
    assert any(not torch.equal(model.trained[name], tensor) for name, tensor in before.items())


# ------------------------------------------------------------------------------------------- GPT-2's layers
@pytest.mark.parametrize("name", ["gpt2", "gpt2-classifier", "llama"])
def test_products_go_into_weights_as_they_lie(case: Callable[..., Case], name: str) -> None:
    """What adapters add to a model's output is what their products add once they are merged, square layers included."""
    base, config, rows = case(name, "lora")
    model = build(base, config, 2, "cpu")
    assert bool(model.transposed) == name.startswith("gpt2")
    source = torch.Generator().manual_seed(0)
    factors = {n: 0.3 * torch.randn(t.shape, generator=source) for n, t in model.trained.items() if ".lora_" in n}
    assert len({n.split(".lora_")[0] for n in factors}) == (8 if name.startswith("gpt2") else 14)
    model.write(factors)
    adapted = logits(model, rows)
    merged = build(base, config, 2, "cpu")
    merge_products(merged, Entry(1, 0, factors))
    torch.testing.assert_close(logits(merged, rows), adapted, rtol=1e-4, atol=1e-4)


def logits(model: TunedModel, rows: Rows) -> torch.Tensor:
    batch = rows.batch([0])
    with torch.no_grad():
        return torch.as_tensor(model.module.eval()(**batch).logits)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["flora", "fedex-lora", "sa-fedlora"])
def test_strategies_that_merge_run_on_gpt2(case: Callable[..., Case], tmp_path: Path, strategy: str) -> None:
    _, config, _ = case("gpt2", "lora")
    outcome = federate(tmp_path, run(config, **{"strategy": strategy, "num-server-rounds": 3, "data.input-column": ""}))
    assert not any(line["refused"] for entry in outcome.rounds for line in entry["nodes"])
