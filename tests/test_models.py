"""Tunings and models: what trains and what it is called, a process's one model, real text models."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import Outcome, federate
from laws import drawn_like, variants

import strategies
from strategies.algebra.lowrank import truncated
from strategies.algebra.tensors import Tensors, raw, snapshot
from strategies.exchange.compatibility import fitting_tunings
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment, State, Update
from strategies.protocol import wire
from task.config import Model, TaskConfig
from task.models.base import Base
from task.models.finding import server_base
from task.models.loading import loaded
from task.models.model import TunedModel, build, kept_model, tuned_model
from task.storage.store import server_store

ASSETS = Path(__file__).parents[2] / "shared" / "assets"
SEEDED = ("ferret", "fedkseed")  # they exchange numbers that are no tensors of a model
LABELS = "|".join(str(digit) for digit in range(10))


@pytest.fixture(scope="module")
def base() -> Base:
    return server_base(Model(), server_store())


def config(**options: Any) -> TaskConfig:
    return TaskConfig.read({"data.labels": LABELS, **{key.replace("_", "-"): v for key, v in options.items()}})


def plain(base: Base) -> Any:
    from transformers import AutoModelForImageClassification

    return AutoModelForImageClassification.from_pretrained(base.folder)


def logits(model: Any) -> torch.Tensor:
    """Of 16 fixed random pictures, (16, 10) float32."""
    pixels = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(pixel_values=pixels).logits


def scrambled(tensors: Tensors, seed: int) -> Tensors:
    """Other values in the same shapes."""
    source = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(tensor.shape, generator=source) for name, tensor in tensors.items()}


# ------------------------------------------------------------------------------- what trains
BIASES = 2_432  # of the patches, of four layers and of the last normalisation
COUNTS = {"full": 136_138, "lora": 28_672 + 650, "bias": BIASES + 650, "head": 650}
TUNINGS = tuple(COUNTS)  # the others: test_tunings.py


@pytest.mark.parametrize("tuning", TUNINGS)
def test_what_a_tuning_trains(base: Base, tuning: str) -> None:
    model = build(base, config(tuning=tuning), 8, "cpu")
    assert sum(tensor.numel() for tensor in model.trained.values()) == COUNTS[tuning]
    assert {p.data_ptr() for p in model.module.parameters() if p.requires_grad} == {
        tensor.data_ptr() for tensor in model.trained.values()
    }


def test_the_bias_count_is_that_of_the_model(base: Base) -> None:
    named = plain(base).named_parameters()
    counted = sum(p.numel() for name, p in named if name.endswith("bias") or name.startswith("classifier."))
    assert COUNTS["bias"] == counted


@pytest.mark.parametrize("tuning", TUNINGS)
def test_wire_names_are_those_of_the_plain_model(base: Base, tuning: str) -> None:
    own = dict(plain(base).named_parameters())
    for name, tensor in build(base, config(tuning=tuning), 8, "cpu").trained.items():
        if ".lora_" in name:
            layer, factor = name.split(".lora_")
            outputs, inputs = own[f"{layer}.weight"].shape
            assert (factor, tuple(tensor.shape)) in {("A.weight", (8, inputs)), ("B.weight", (outputs, 8))}
        else:
            assert tensor.shape == own[name].shape


@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_model_with_initial_values_is_the_base(base: Base, tuning: str) -> None:
    """Adapters begin at a product of zero, the head with the base's weights."""
    assert torch.equal(logits(build(base, config(tuning=tuning), 4, "cpu").module), logits(plain(base)))


def test_initial_values_depend_on_the_seed_alone(base: Base) -> None:
    one = snapshot(build(base, config(), 8, "cpu").trained)
    torch.manual_seed(99)
    same, other = build(base, config(), 8, "cpu"), build(base, config(seed=1), 8, "cpu")
    assert all(torch.equal(one[name], tensor) for name, tensor in same.trained.items())
    assert any(not torch.equal(one[name], tensor) for name, tensor in other.trained.items())


def test_building_leaves_the_random_state_alone(base: Base) -> None:
    before = torch.random.get_rng_state()
    build(base, config(), 8, "cpu")
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_head_for_other_labels_has_initial_values(base: Base) -> None:
    model = build(base, config(**{"data.labels": "odd|even", "tuning": "head"}), 0, "cpu")
    assert tuple(model.trained["classifier.weight"].shape) == (2, 64)


# ------------------------------------------------------------------------------- ranks in a reused process
def test_a_small_adapter_in_a_large_one_is_the_small_one(base: Base) -> None:
    """Rank-2 tensors in a rank-8 model: the logits of a model of rank 2 whose product is scaled alike."""
    small, large = build(base, config(), 2, "cpu"), build(base, config(), 8, "cpu")
    values = scrambled(snapshot(small.trained), 1)
    small.write(values)
    strategies.load("rbla").install(large, State(values))
    torch.testing.assert_close(logits(large.module), logits(small.module), rtol=0.0, atol=1e-5)
    assert not torch.allclose(logits(large.module), logits(plain(base)), atol=1e-2)


def test_a_small_adapter_is_the_large_one_without_its_other_slices(base: Base) -> None:
    model, again = build(base, config(), 8, "cpu"), build(base, config(), 8, "cpu")
    values = scrambled(snapshot(model.trained), 2)
    cut = truncated(values, 2)
    zeroed = {name: torch.zeros_like(tensor) for name, tensor in values.items()}
    for name, tensor in cut.items():
        zeroed[name][tuple(slice(extent) for extent in tensor.shape)] = tensor
    model.write(cut)
    again.write(zeroed)
    torch.testing.assert_close(logits(model.module), logits(again.module), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("name", [name for name in strategies.names() if name not in SEEDED])
def test_an_install_leaves_nothing_of_the_node_before(base: Base, name: str, tuning: str) -> None:
    strategy = strategies.load(name)
    if tuning not in fitting_tunings(strategy):
        pytest.skip(f"{name} does not go with {tuning}")
    used, fresh = build(base, config(tuning=tuning), 8, "cpu"), build(base, config(tuning=tuning), 8, "cpu")
    mine, others = (scrambled(snapshot(fresh.trained), seed) for seed in (3, 4))
    strategy.install(used, State(others))
    disturb(used)
    for model in (used, fresh):
        strategy.install(model, State(truncated(mine, 2)))
    assert torch.equal(logits(used.module), logits(fresh.module))
    strategy.install(used, State(others))
    assert all(torch.equal(used.trained[n], tensor) for n, tensor in others.items())


@pytest.mark.parametrize("strategy", [s for name in SEEDED for s in variants(name)], ids=str)
def test_an_install_of_seeded_numbers_leaves_nothing_of_the_node_before(base: Base, strategy: Strategy) -> None:
    used, fresh = (build(base, config(tuning="head"), 0, "cpu") for _ in range(2))
    strategy.install(used, start_after(strategy, used, 3))
    disturb(used)
    for model in (used, fresh):
        strategy.install(model, start_after(strategy, fresh, 4))
    assert torch.equal(logits(used.module), logits(fresh.module))
    moved = bool(start_after(strategy, fresh, 4).tensors)  # else what moves the model is in the journal
    assert torch.equal(logits(used.module), logits(plain(base))) != moved


def start_after(strategy: Strategy, model: TunedModel, seed: int) -> State:
    """What a node starts from after a round of one drawn update, without the journal."""
    state, assignment = strategy.initial(model), Assignment(1, 3, 9, 0)
    delta = drawn_like(strategy.expected(state, assignment), torch.Generator().manual_seed(seed))
    state = strategy.apply(state, strategy.combine(state, [Update("0", assignment, delta, 1.0)]), 1)
    return State(strategy.start_of(state, assignment).tensors)


def disturb(model: TunedModel) -> None:
    """What local training does to a model."""
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD([p for p in model.module.parameters() if p.requires_grad], 0.1).step()


def test_installed_values_are_the_models_own(base: Base) -> None:
    """Training must not write into what the server holds."""
    model = build(base, config(tuning="head"), 0, "cpu")
    values = scrambled(snapshot(model.trained), 5)
    kept = snapshot(values)
    strategies.load("fedavg").install(model, State(values))
    disturb(model)
    assert all(torch.equal(values[name], tensor) for name, tensor in kept.items())


def test_a_process_builds_its_model_once(base: Base) -> None:
    kept_model.cache_clear()
    one = tuned_model(base, config(), 8, "cpu")
    assert tuned_model(base, config(learning_rate=1.0, local_steps=3, evaluate="both"), 8, "cpu") is one
    assert tuned_model(base, config(), 4, "cpu") is not one
    assert tuned_model(base, config(), 8, "cpu") is not one  # one is kept, and no second


# ------------------------------------------------------------------------------- bfloat16
@pytest.mark.slow
def test_bfloat16_crosses_bit_for_bit(tmp_path: Path) -> None:
    options = {"model.dtype": "bfloat16", "tuning": "full", "simulation.num-supernodes": 2, "num-server-rounds": 2}
    outcome = federate(tmp_path, options)
    states = {
        e.request.config_records["assignment"]["server-round"]: wire.unpack(e.request) for e in trainings(outcome)
    }
    fresh = build(outcome.base, outcome.task, 0, "cpu").trained
    assert len(fresh) == len(states[1].tensors)
    for name, tensor in fresh.items():
        assert tensor.dtype == torch.bfloat16
        assert raw(states[1].tensors[name]) == raw(tensor)
    assert any((states[2].tensors[name] != tensor).any() for name, tensor in fresh.items())
    for exchange in trainings(outcome):
        assert exchange.reply is not None
        assert {tensor.dtype for tensor in wire.unpack(exchange.reply).tensors.values()} == {torch.bfloat16}
        assert wire.size(exchange.reply) < 1.05 * 2 * 136_138
    assert all(math.isfinite(entry["loss"]) for entry in outcome.rounds)


def trainings(outcome: Outcome) -> list[Any]:
    return outcome.grid.of("train")


# ------------------------------------------------------------------------------- text
@pytest.mark.slow
def test_a_text_model_federates(tmp_path: Path) -> None:
    for name in ("minilm-l6-v2", "ag_news"):
        if not (ASSETS / name).exists():
            pytest.skip(f"../shared/assets/{name} is not here")
    outcome = federate(
        tmp_path,
        {
            "task.kind": "text-classification",
            "model.name": str(ASSETS / "minilm-l6-v2"),
            "data.name": str(ASSETS / "ag_news"),
            "data.labels": "World|Sports|Business|Sci/Tech",
            "data.max-length": 32,
            "data.train-rows": 64,
            "simulation.num-supernodes": 2,
            "lora.targets": "query,value",
            "local-steps": 2,
        },
    )
    assert outcome.summary["status"] == "completed"
    assert not any(line["refused"] for line in outcome.rounds[1]["nodes"])
    state = outcome.state().tensors
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in state if ".lora_" in name} == {"query", "value"}
    assert tuple(state["classifier.weight"].shape) == (4, 384)
    assert outcome.summary["bytes_base"] == 0  # a node that has the folder is not sent it
    assert (outcome.folder / "model" / "last" / "adapter_config.json").exists()


def test_server_and_nodes_of_a_process_share_a_model_though_their_files_lie_apart(base: Base, tmp_path: Path) -> None:
    """Building it anew whenever the other one asks takes as long as a round of a small node."""
    kept_model.cache_clear()
    one = tuned_model(base, config(), 8, "cpu")
    elsewhere = replace(base, folder=tmp_path)
    assert tuned_model(elsewhere, config(), 8, "cpu") is one
    assert one.base.folder == tmp_path
    assert replace(base, fingerprint="") != replace(elsewhere, fingerprint="")
    kept_model.cache_clear()


def test_more_rounds_in_one_process_build_no_more_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Base] = []
    monkeypatch.setattr("task.models.model.loaded", lambda base, config: read.append(base) or loaded(base, config))

    def count(rounds: int) -> int:
        kept_model.cache_clear()
        read.clear()
        federate(tmp_path, {"num-server-rounds": rounds, "simulation.num-supernodes": 2, "local-steps": 1})
        return len(read)

    assert count(1) == count(2)
