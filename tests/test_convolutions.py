"""LoRA on convolutions, and biases beside the factors: the equation, rounds of ragged ranks, what peft loads."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from architectures import IMAGES, data, made, settings
from torch import nn

import strategies
from strategies.algebra.lowrank import pair, truncated
from strategies.exchange.replay import merge_products, replay_start, start_entry
from strategies.exchange.types import Assignment, Entry, Profile, State, Update
from task.config import TaskConfig
from task.data.prepared import prepare
from task.data.rows import Rows
from task.models.base import Base
from task.models.finding import server_base
from task.models.model import TunedModel, build
from task.models.saving import save, save_base
from task.schema import ConfigError
from task.storage.store import Store
from task.training.dry_run import dry_run
from task.training.trainer import Trainer
from task.tunings.base import TuningError

pytestmark = pytest.mark.about("lora")
EVERY = {"lora.targets": "all", "lora.ranks": "4"}
SCALING = 2.0
CONVOLUTIONAL = ("resnet", "convnext", "mobilenet-v2")
RULES = ("rbla", "zero-pad", "hetlora", "flex-lora", "raflora", "flora")  # of ragged ranks


class Place:
    """Bases, rows and a store in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows, self.store = folder, data(folder)[IMAGES], Store(folder / "store")

    def base(self, name: str) -> Base:
        folder = self.folder / name
        if not folder.exists():
            made(name, folder)
        return Base(str(folder), folder, "")

    def config(self, name: str, **options: Any) -> TaskConfig:
        return settings(name, self.base(name).folder, self.rows, options.pop("tuning", "lora"), **options)

    def model(self, name: str, rank: int = 4, **options: Any) -> TunedModel:
        return build(self.base(name), self.config(name, **options), rank, "cpu")

    def prepared(self, name: str, config: TaskConfig) -> Rows:
        return prepare(config, self.base(name).folder, self.store).train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("convolutions"))


def filled(model: TunedModel, size: float = 0.2) -> TunedModel:
    """The model with random factors."""
    source = torch.Generator().manual_seed(3)
    model.write({name: size * torch.randn(tensor.shape, generator=source) for name, tensor in model.trained.items()})
    return model


def convolutions(model: TunedModel) -> dict[str, Any]:
    """The adapted convolutions by their names on the wire."""
    found = {n: m for n, m in model.module.named_modules() if isinstance(m, peft.tuners.lora.layer.Conv2d)}
    return {name.removeprefix("base_model.model."): layer for name, layer in found.items()}


def logits(module: Any, rows: Rows) -> torch.Tensor:
    batch = rows.batch(torch.arange(6), "cpu")
    with torch.no_grad():
        return torch.as_tensor(module.eval()(**batch).logits)


def same_logits(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


# ---------------------------------------------------------------------- the equation


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_convolution_has_matrices_as_factors_and_their_product_as_its_change(place: Place, name: str) -> None:
    model = filled(place.model(name, **EVERY))
    layers = convolutions(model)
    assert len(layers) >= 2
    for layer, module in layers.items():
        weight = model.frozen[f"{layer}.weight"].detach().double()
        b, a = (tensor.detach().double() for tensor in pair(model.trained, layer))
        assert (b.shape, a.shape) == ((len(weight), 4), (4, weight[0].numel()))
        base, source = module.get_base_layer(), torch.Generator().manual_seed(1)
        inputs = torch.randn(2, base.in_channels, 9, 9, generator=source)
        changed = weight + SCALING * (b @ a).reshape(weight.shape)
        bias = None if base.bias is None else base.bias.detach().double()
        expected = nn.functional.conv2d(inputs.double(), changed, bias, base.stride, base.padding)
        torch.testing.assert_close(module.eval()(inputs).double(), expected, rtol=1e-4, atol=1e-4)


def test_grouped_convolutions_get_no_factors(place: Place) -> None:
    """Depthwise ones, as in MobileNet, whose B would not be outputs x rank."""
    model = place.model("mobilenet-v2", **EVERY)
    groups = {layer.groups for layer in model.module.modules() if isinstance(layer, nn.Conv2d)}
    assert len(groups) > 1
    assert {layer.get_base_layer().groups for layer in convolutions(model).values()} == {1}
    [depthwise] = {
        name.rsplit(".", 1)[-1]
        for name, layer in place.model("convnext", **EVERY).module.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups > 1
    }
    with pytest.raises(TuningError, match=f"lora.targets: no linear layer or plain convolution ends in {depthwise}"):
        place.model("convnext", **EVERY | {"lora.targets": depthwise})


def test_a_smaller_rank_is_the_leading_slices(place: Place) -> None:
    """A node of rank 2 computes what the model of rank 4 does with zeros beyond."""
    large = filled(place.model("resnet", **EVERY))
    small = place.model("resnet", rank=2, **EVERY)
    values = truncated({name: tensor.detach() for name, tensor in large.trained.items()}, 2)
    small.write(values)
    large.write(values)  # written into the large model they are its factors of rank 2
    rows = place.prepared("resnet", large.config)
    assert torch.equal(logits(small.module, rows), logits(large.module, rows))


# ---------------------------------------------------------------------- rounds


@pytest.mark.first(2)
@pytest.mark.parametrize("rule", RULES)
def test_a_round_of_ragged_ranks(place: Place, rule: str) -> None:
    """Nodes of rank 1, 2 and 4 train; the products move, and every node is sent slices that fit."""
    strategy, model = strategies.load(rule), place.model("resnet", **EVERY)
    config, rows = model.config, place.prepared("resnet", model.config)
    state, ranks = strategy.initial(model), {"a": 1, "b": 2, "c": 4}
    profiles = [Profile(0, name, rank, 4, "store") for name, rank in ranks.items()]
    for round in (1, 2):
        assignments = strategy.assign(profiles, round, 2, 0)
        began = strategy.begin(state, round, 4)
        updates = _trained(strategy, place, began, assignments, rows)
        state = strategy.apply(began, strategy.combine(began, updates), round)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.tensors.values())
    final = place.model("resnet", **EVERY)
    for entry in state.journal:
        strategy.replay(final, entry)
    strategy.install(final, strategy.start_of(state, Assignment(3, 3, 0, 4)))
    dry_run(final, Trainer(config, rows, 0))


def _trained(strategy: Any, place: Place, state: State, assignments: dict[str, Assignment], rows: Rows) -> list[Update]:
    """What each node answers, from the model that the state makes."""
    updates = []
    for node, assignment in sorted(assignments.items()):
        model = place.model("resnet", rank=assignment.rank, **EVERY)
        start = strategy.start_of(state, assignment)
        for entry in start.journal:
            strategy.replay(model, entry)
        strategy.install(model, start)
        delta, _ = strategy.train(model, Trainer(model.config, rows, 0), assignment)
        expected = strategy.expected(state, assignment)
        assert {n: t.shape for n, t in delta.items()} == {n: t.shape for n, t in expected.items()}
        updates.append(Update(node, assignment, {n: t.detach() for n, t in delta.items()}, 4.0))
    return updates


def test_a_product_is_merged_into_a_convolution(place: Place) -> None:
    model, other = filled(place.model("resnet", **EVERY)), place.model("resnet", **EVERY)
    other.write({n: t.detach() for n, t in model.trained.items() if ".lora_" not in n})
    factors = {name: tensor.detach() for name, tensor in model.trained.items() if ".lora_" in name}
    merge_products(other, Entry(1, 0, factors))
    rows = place.prepared("resnet", model.config)
    same_logits(logits(other.module, rows), logits(model.module, rows))


def test_factors_may_start_as_a_convolutions_singular_values(place: Place) -> None:
    before, after = (place.model("resnet", **EVERY, **{"lora.init": "pissa"}) for _ in range(2))
    entry = start_entry(after)
    assert entry is not None
    replay_start(after, entry)
    for layer in convolutions(after):
        b, a = (tensor.detach().double().numpy() for tensor in pair(after.trained, layer))
        weight = before.frozen[f"{layer}.weight"].detach().flatten(1).double().numpy()
        u, s, vh = np.linalg.svd(weight, full_matrices=False)
        np.testing.assert_allclose(SCALING * b @ a, (u[:, :4] * s[:4]) @ vh[:4], rtol=0, atol=1e-5)
    rows = place.prepared("resnet", after.config)
    same_logits(logits(after.module, rows), logits(before.module, rows))
    with pytest.raises(TuningError, match="a weight of 8 x 147 has fewer than 9"):
        place.model("resnet", rank=9, **EVERY, **{"lora.init": "pissa"})


# ---------------------------------------------------------------------- biases


@pytest.mark.parametrize(("name", "tuning"), [("vit", "lora"), ("resnet", "lora"), ("vit", "dora")])
def test_biases_train_beside_the_factors(place: Place, name: str, tuning: str) -> None:
    targets = "all" if tuning == "lora" else "all-linear"
    names = {}
    for bias in ("none", "all", "lora_only"):
        model = place.model(name, tuning=tuning, **{"lora.targets": targets, "lora.ranks": "4", "lora.bias": bias})
        names[bias] = {n for n in model.trained if n.endswith(".bias") and n not in model.head}
        assert not any("original_module" in n for n in model.trained)
        adapted = {n.split(".lora_")[0].split(".dora_")[0] for n in model.trained if "ora_" in n}
        there = {n for n in model.trained | model.frozen if n.endswith(".bias")}
    assert not names["none"]
    assert names["lora_only"] == {f"{layer}.bias" for layer in adapted} & there
    assert names["lora_only"] < names["all"] == there - model.head


def test_targets_and_biases_are_checked(place: Place) -> None:
    with pytest.raises(ConfigError) as said:
        place.config("vit", tuning="dora", **{"lora.targets": "all", "lora.bias": "some"})
    assert said.value.problems == [
        "lora.bias must be one of none, all, lora_only, not 'some'",
        "lora.targets = 'all' is for tuning = 'lora'; tuning = 'dora' reaches no convolutions: set "
        "lora.targets = 'all-linear'",
    ]


# ---------------------------------------------------------------------- the folder


@pytest.mark.each_value
@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("init", ["default", "pissa"])
@pytest.mark.parametrize("name", ["resnet", "convnext", "vit"])
def test_peft_loads_it_with_the_same_logits(place: Place, tmp_path: Path, name: str, bias: str, init: str) -> None:
    model = place.model(name, rank=2, **EVERY, **{"lora.bias": bias, "lora.init": init})
    entry = start_entry(model)
    if entry is not None:
        replay_start(model, entry)
        model.position = model.start_position
        model.changed.clear()
    rows = place.prepared(name, model.config)
    Trainer(model.config, rows, 0).fit(model)
    save(model, tmp_path / "saved", save_base(model, tmp_path / "base"))
    expected = logits(model.module, rows)
    base = transformers.AutoModelForImageClassification.from_pretrained(place.base(name).folder)
    same_logits(logits(peft.PeftModel.from_pretrained(base, tmp_path / "saved"), rows), expected)
    again = server_base(TaskConfig.read({"model.name": str(tmp_path / "saved")}).model, place.store)
    merged = build(again, place.config(name, tuning="head"), 0, "cpu")
    same_logits(logits(merged.module, rows), expected)
