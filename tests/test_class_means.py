"""A head made from class means in one exact round (`head-init` = "ncm"), against a reference in float64."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fragile import OPENING, Fragile, Killed, assert_same_run
from hypothesis import given
from hypothesis import strategies as st
from in_process import QV, SMALL, Outcome, equal, federate, raw_bytes, resumed, retold, sent, suiting
from laws import toy_model, trainer
from numpy.typing import NDArray
from torch import nn

import strategies
from client_app.permission import NotPermitted, _reports, check_classes
from client_app.policy import Policy
from server_app.config import RunConfig
from strategies.exchange import head_rounds
from strategies.exchange.types import Assignment, RunFailed, Update
from task.config import TaskConfig
from task.data.prepared import prepare
from task.features.class_means import class_means, features
from task.models.model import TunedModel, build
from task.schema import ConfigError
from task.storage.store import server_store
from task.training.batches import Unsuited
from task.training.trainer import Trainer

Matrix = NDArray[np.float64]
WEIGHT, BIAS = "classifier.weight", "classifier.bias"
OPTIONS: dict[str, Any] = QV | {
    "data.labels": "zero|one|two|three|four|five|six|seven|eight|nine",
    "head-init": "ncm",
    "num-server-rounds": 2,
}


def by_hand(rows: Matrix, labels: Sequence[int], classes: int) -> tuple[Matrix, Matrix]:
    """The head of class means, from all features (n, d) in one place, class by class."""
    means = np.array([rows[[y == k for y in labels]].mean(0) if k in labels else rows.mean(0) for k in range(classes)])
    known = [means[k] for k in range(classes) if k in labels]
    margins = [((one - other) ** 2).sum() / 2 for i, one in enumerate(known) for other in known[:i]]
    scale = head_rounds.MARGIN / np.mean(margins)
    return scale * means, np.array([-scale * (mean**2).sum() / 2 for mean in means])


# ---------------------------------------------------------------------- the arithmetic
@st.composite
def splits(draw: st.DrawFn) -> tuple[Matrix, list[int], list[list[int]]]:
    """Features, labels, and the rows of each of some nodes: any split, in any order."""
    rows = draw(st.integers(3, 30))
    numbers = np.random.default_rng(draw(st.integers(0, 2**20)))
    labels = [0, 1, *(int(label) for label in numbers.integers(0, 4, rows - 2))]
    nodes = draw(st.integers(1, min(6, rows)))
    owners = [*range(nodes), *(int(owner) for owner in numbers.integers(0, nodes, rows - nodes))]
    numbers.shuffle(owners)
    split = [[row for row, owner in enumerate(owners) if owner == node] for node in range(nodes)]
    return numbers.normal(size=(rows, 5)) * 3 + 1, labels, split


@given(splits())
def test_the_head_is_that_of_all_rows_however_they_are_split(drawn: tuple[Matrix, list[int], list[list[int]]]) -> None:
    rows, labels, split = drawn
    strategy, classes = strategies.load("fedavg"), 4
    head = {"out.weight": torch.zeros(classes, 5, dtype=torch.float64), "out.bias": torch.zeros(classes).double()}
    config = TaskConfig.read({"head-init": "ncm", "data.labels": "a|b|c|d"})
    state = strategies.exchange.types.State(head)
    updates = []
    for node, own in enumerate(split):
        one_hot = np.eye(classes)[[labels[row] for row in own]]
        delta = {
            "out.weight": torch.tensor(one_hot.T @ rows[own]) / len(own),
            "out.bias": torch.tensor(one_hot.mean(0)),
        }
        updates.append(Update(str(node), Assignment(1, 3, 0, 0), delta, float(len(own))))
    wanted = by_hand(rows, labels, classes)
    for order in (updates, updates[::-1]):
        assert not any(head_rounds.refusal(config, update) for update in order)
        change = head_rounds.changed(config, state, strategy.combine(state, iter(order)))
        made = strategy.apply(state, change, 1).tensors
        np.testing.assert_allclose(made["out.weight"].numpy(), wanted[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(made["out.bias"].numpy(), wanted[1], rtol=1e-9, atol=1e-12)


@given(splits())
def test_the_largest_logit_is_that_of_the_nearest_mean(drawn: tuple[Matrix, list[int], list[list[int]]]) -> None:
    rows, labels, _ = drawn
    shares = np.bincount(labels, minlength=4) / len(labels)
    sums = np.eye(4)[labels].T @ rows / len(labels)
    weight, bias = head_rounds.of_means(torch.tensor(sums), torch.tensor(shares))
    means = np.array([sums[k] / shares[k] if shares[k] else rows.mean(0) for k in range(4)])
    distances = ((rows[:, None] - means) ** 2).sum(2)
    logits = rows @ weight.numpy().T + bias.numpy()
    chosen = logits.argmax(1)
    assert np.allclose(np.take_along_axis(distances, chosen[:, None], 1)[:, 0], distances.min(1))


def test_one_class_alone_makes_a_head_of_zeros() -> None:
    weight, bias = head_rounds.of_means(
        torch.tensor([[1.0, 2.0], [0.0, 0.0]]).double(), torch.tensor([1.0, 0]).double()
    )
    assert not weight.any()
    assert not bias.any()


# ---------------------------------------------------------------------- features of a model
def biased() -> TunedModel:
    model = toy_model(strategies.load("fedavg"), 2, 3)
    model.module.classifier = nn.Linear(5, 3)
    named = {f"classifier.{name}": parameter for name, parameter in model.module.classifier.named_parameters()}
    return replace(model, trained=model.trained | named, head=frozenset(named))


def test_features_are_what_the_layer_of_the_classes_is_given() -> None:
    model, run = biased(), trainer()
    batch = run.rows.batch(list(range(10)), "cpu")
    wanted = torch.tanh(model.module.m0(batch["pixel_values"].flatten(1))).detach().double()  # type: ignore[operator]
    [(found, labels)] = features(model, WEIGHT, run)
    assert torch.equal(found, wanted)
    assert torch.equal(labels, batch["labels"])
    means, shares = class_means(model, WEIGHT, run)
    one_hot = np.eye(3)[labels.numpy()]
    np.testing.assert_allclose(means.numpy(), one_hot.T @ wanted.numpy() / 10, rtol=1e-12)
    assert shares.tolist() == pytest.approx(one_hot.mean(0).tolist())


def test_a_head_without_a_bias_or_with_a_feature_for_every_token_is_refused() -> None:
    plain = toy_model(strategies.load("fedavg"), 2, 3)
    with pytest.raises(RunFailed, match="one linear layer with a bias"):
        head_rounds.initial(
            strategies.load("fedavg"),
            replace(plain, head=frozenset({WEIGHT})),
            TaskConfig.read({"head-init": "ncm", "data.labels": "a|b|c"}),
        )
    model = biased()
    model.module.classifier.register_forward_pre_hook(lambda layer, given: (given[0].unsqueeze(1),), prepend=True)
    model.module.classifier.register_forward_hook(lambda layer, given, logits: logits.squeeze(1))
    with pytest.raises(Unsuited, match="one feature vector for every row"):
        head_rounds.class_statistics(model, trainer())


# ---------------------------------------------------------------------- a federation
def reference(outcome: Outcome) -> dict[str, torch.Tensor]:
    """The head of the class means of all rows that nodes train on, from a model of its own."""
    model = build(outcome.base, outcome.task, 8, "cpu")
    rows = prepare(outcome.task, outcome.base.folder, server_store()).train
    found = list(features(model, WEIGHT, Trainer(outcome.task, rows, 0)))
    inputs, labels = (torch.cat(part).numpy() for part in zip(*found, strict=True))
    weight, bias = by_hand(inputs, labels.tolist(), 10)
    return {WEIGHT: torch.from_numpy(weight), BIAS: torch.from_numpy(bias)}


def after_round_1(outcome: Outcome) -> dict[str, torch.Tensor]:
    request = outcome.grid.of("train")[len(outcome.grid.contexts)].request  # the first of round 2
    return {name: tensor for name, tensor in sent(request).items() if name in (WEIGHT, BIAS)}


def takes_class_means(name: str) -> bool:
    options = suiting(name) | ({"sa-fedlora.initiating-rounds": 0} if name == "sa-fedlora" else {})
    try:
        RunConfig.read(SMALL | options | OPTIONS | {"strategy": name})
    except ConfigError:
        return False
    return True


TAKING = [name for name in strategies.names() if takes_class_means(name)]


def test_most_strategies_take_class_means() -> None:
    refusing = set(strategies.names()) - set(TAKING)
    assert refusing <= {"fedkseed", "ferret", "fedsa-lora", "scaffold"}


@pytest.mark.judged
@pytest.mark.first(2)
@pytest.mark.parametrize("name", TAKING)
def test_round_1_makes_the_head_in_every_strategy(name: str, tmp_path: Path) -> None:
    own = {"sa-fedlora.initiating-rounds": 0} if name == "sa-fedlora" else {}
    outcome = federate(tmp_path, suiting(name) | OPTIONS | own | {"strategy": name})
    first = outcome.grid.of("train")[:3]
    for pair in first:
        assert raw_bytes(sent(pair.reply)) == raw_bytes(sent(pair.request)) == 4 * 65 * 10
    wanted, found = reference(outcome), after_round_1(outcome)
    for tensor, like in found.items():
        np.testing.assert_allclose(like.double().numpy(), wanted[tensor].numpy(), rtol=2e-5, atol=2e-5)
    assert outcome.rounds[1]["loss"] < outcome.rounds[0]["loss"] - 0.3


@pytest.mark.slow
@pytest.mark.parametrize("split", [{"simulation.num-supernodes": 1, "data.partitioner": "iid"}, {"data.alpha": 0.05}])
def test_the_split_does_not_matter(split: dict[str, Any], tmp_path: Path) -> None:
    one = after_round_1(federate(tmp_path / "one", OPTIONS))
    other = after_round_1(federate(tmp_path / "other", OPTIONS | {"simulation.num-supernodes": 5} | split))
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("dead_servers_write_no_summary")
def test_a_run_that_dies_with_a_new_head_goes_on_bit_for_bit(tmp_path: Path) -> None:
    options = OPTIONS | {"server-optimizer": "momentum", "head-rounds": 1, "num-server-rounds": 3}
    uninterrupted = federate(tmp_path / "whole", options)
    with pytest.raises(Killed):
        federate(tmp_path / "killed", options, Fragile(looks=OPENING + 1))
    other = resumed((tmp_path / "killed" / "latest").resolve())
    assert_same_run(uninterrupted, other)
    assert equal(uninterrupted.state().server, other.state().server)


@pytest.mark.slow
def test_a_node_that_sends_no_shares_is_refused(tmp_path: Path) -> None:
    def spoil(partition: int, kind: str, reply: Any) -> Any:
        wrong = partition == 1 and kind == "train"
        return retold(reply, lambda tensors: {name: -tensor for name, tensor in tensors.items()}) if wrong else reply

    outcome = federate(tmp_path, OPTIONS, spoil=spoil)
    said = [line["refused"] for line in outcome.rounds[1]["nodes"]]
    assert [bool(reason) for reason in said] == [False, True, False]
    assert "add up to 1" in said[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"wrappers": "central-privacy"}, "which privacy forbids"),
        ({"wrappers": "local-privacy"}, "which privacy forbids"),
        ({"wrappers": "example-privacy"}, "which privacy forbids"),
        ({"wrappers": "quantize"}, "exact only as they are"),
        ({"wrappers": "median"}, "exact only as they are"),
        ({"wrappers": "norm-bound"}, "exact only as they are"),
        ({"num-server-rounds": 1}, "leave none of num-server-rounds = 1"),
        ({"head-rounds": 1}, "leave none of num-server-rounds = 2"),
        ({"strategy": "ferret", "tuning": "full"}, "leave out head-rounds and head-init"),
        ({"strategy": "scaffold", "optimizer": "sgd"}, "class means are no steps"),
        ({"strategy": "sa-fedlora"}, "to the whole model"),
        ({"task.kind": "causal-lm", "model.name": "m", "data.name": "d"}, "no classifier's head"),
    ],
)
def test_what_does_not_fit_is_said_before_the_run(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RunConfig.read(SMALL | OPTIONS | options)
    RunConfig.read(SMALL | OPTIONS | {"wrappers": "proximal"})


def test_a_class_of_few_rows_is_not_told() -> None:
    policy, few = replace(Policy(), min_rows_per_reply=3), np.array([1, 1, 1, 2, 2])
    check_classes(policy, few[:3])
    check_classes(policy, few[3:])  # all that the node has
    check_classes(replace(policy, min_rows_per_reply=2), few)
    with pytest.raises(NotPermitted, match="a class mean of 2 rows"):
        check_classes(policy, few)


def test_a_node_that_rounds_its_rows_sends_no_shares() -> None:
    config, policy = TaskConfig.read({"head-init": "ncm"}), Policy()
    assert not list(_reports(policy, config))
    [(kind, reason)] = _reports(replace(policy, reports=replace(policy.reports, rows="rounded")), config)
    assert kind == "reports"
    assert "shares of classes" in reason
