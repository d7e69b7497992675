"""Texts with numbers or sets of labels to learn: how they are read, what is measured, what a run on them leaves."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import Outcome, federate
from samples import TEXTS, write_table
from test_example_privacy import steps
from tuned import samples

import thistledown
from task.config import Model, TaskConfig
from task.data.prepared import DataError, Rows, prepare_file
from task.kinds.multi_label import scores as label_scores
from task.kinds.regression import scores
from task.models.finding import server_base
from task.models.model import build
from task.schema import ConfigError
from task.storage.store import Store, server_store
from task.training.batches import batches
from task.training.trainer import Trainer
from thistledown.estimates.rows import described
from thistledown.main import DONE, main

STARS = {"good": 1.5, "bad": -100.0}  # the second is the number that marks tokens without a label
NUMBERS: dict[str, list[object]] = {
    "text": [text for text, _ in TEXTS * 3],
    "stars": [STARS[label] for _, label in TEXTS * 3],
}
REGRESSION = {"task.kind": "regression", "data.label-column": "stars", "data.labels": ""}
SLOW_STEP = {"optimizer": "sgd", "learning-rate": 1e-3, "local-steps": 1, "batch-size": 7, "tuning": "full"}


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory, words: Path) -> dict[str, Any]:
    """The settings of a run on texts, with a random BERT of two classes."""
    return samples(tmp_path_factory.mktemp("texts"), words)["bert"].flat


def read(flat: dict[str, Any], folder: Path, columns: dict[str, list[object]], name: str = "rows.jsonl") -> Rows:
    file = write_table(folder / name, columns)
    config = TaskConfig.read(flat | {"data.name": str(file)})
    base = server_base(config.model, server_store()).folder
    return prepare_file(config, base, Store(folder / "store"), file, config.data.labels)


# ------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_numbers_are_learned_as_they_are(name: str, flat: dict[str, Any], tmp_path: Path) -> None:
    rows = read(flat | REGRESSION, tmp_path, {"text": ["good", "bad film"], "stars": [0.1, -7]}, name)
    labels = rows.batch([1, 0])["labels"]
    assert labels.dtype == torch.float32
    assert labels.tolist() == [-7.0, pytest.approx(0.1)]
    assert rows.names == ()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("four", r"row 2 \(line 3\), column 'stars': no number, but 'four'"),
        ("1,5", "no number, but '1,5'"),
        ("1_000", "no number"),
        (True, "no number, but True"),
        ("", "the number is missing"),
        (None, "the number is missing"),
        ("nan", "no finite number, but nan"),
        ("-inf", "no finite number, but -inf"),
        (501, "a number is beyond 500; write numbers of a smaller scale"),
    ],
)
def test_a_bad_number_is_named(value: object, problem: str, flat: dict[str, Any], tmp_path: Path) -> None:
    own = value if isinstance(value, int | str) and not isinstance(value, bool) else "1"
    columns: dict[str, list[object]] = {"text": ["good", "bad", "dull"], "stars": ["1", " 2.5 ", str(own)]}
    file = write_table(tmp_path / "rows.jsonl", columns)
    if own == "1":  # values of other types than text
        lines = [{"text": "good", "stars": 1}, {"text": "bad", "stars": 2}, {"text": "dull", "stars": value}]
        lines = [{**line, "stars": value} for line in lines] if isinstance(value, bool) else lines
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = TaskConfig.read(flat | REGRESSION | {"data.name": str(file)})
    base = server_base(config.model, server_store()).folder
    with pytest.raises(DataError, match=problem) as caught:
        prepare_file(config, base, Store(tmp_path / "store"), file, ("stars",))
    assert "rows.jsonl" not in caught.value.public
    assert not (str(value).strip() and str(value) in caught.value.public)


def test_errors_are_those_of_a_slow_reference() -> None:
    source = np.random.default_rng(0)
    true, said = source.normal(3, 2, 50), source.normal(2, 3, 50)
    found, mean = scores(said, true), sum(true) / 50
    squared = sum((one - other) ** 2 for one, other in zip(said, true, strict=True))
    spread, own = (sum((x - sum(xs) / 50) ** 2 for x in xs) for xs in (true, said))
    product = sum((x - mean) * (y - sum(said) / 50) for x, y in zip(true, said, strict=True))
    assert found == pytest.approx(
        {
            "rmse": math.sqrt(squared / 50),
            "mae": sum(abs(one - other) for one, other in zip(said, true, strict=True)) / 50,
            "r2": 1 - squared / spread,
            "pearson": product / math.sqrt(spread * own),
            "loss": squared / 50,
        },
        rel=1e-12,
    )


@pytest.mark.parametrize(("said", "r2"), [([2.0], 0.0), ([1.0], 1.0), ([1.0, 1.0], 1.0), ([3.0, 2.0], 0.0)])
def test_equal_numbers_have_scores(said: list[float], r2: float) -> None:
    found = scores(np.array(said), np.ones(len(said)))
    assert (found["r2"], found["pearson"]) == (r2, 0.0)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_model_that_diverges_has_scores_that_are_no_numbers(broken: float) -> None:
    """An error would end the run, which goes back to a good state by itself."""
    assert all(map(math.isnan, scores(np.array([broken, 1.0]), np.array([1.0, 2.0])).values()))


def test_rows_have_no_class(flat: dict[str, Any]) -> None:
    wrong = {"data.partitioner": "dirichlet", "head-init": "ncm", "data.labels": "a|b"}
    with pytest.raises(ConfigError) as caught:
        TaskConfig.read(flat | REGRESSION | wrong)
    said = str(caught.value)
    assert "'dirichlet' divides rows by their label, and a row of task.kind = 'regression' has no class" in said
    assert "head-init = 'ncm' needs one class for every row" in said
    assert "data.labels names classes, and task.kind = 'regression' learns numbers" in said


# ------------------------------------------------------------------------------- sets of labels
MULTI = {"task.kind": "multi-label", "data.label-column": "tags", "data.labels": ""}
TAGS: dict[str, list[object]] = {
    "text": [text for text, _ in TEXTS * 3],
    "tags": [[label, *(["film"] if "film" in text else [])] for text, label in TEXTS * 3],
}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_labels_are_lists_or_between_bars(name: str, flat: dict[str, Any], tmp_path: Path) -> None:
    tags: list[object] = [["b", "a"], [], ["c"], ["a", "a"]]
    if name == "rows.csv":
        tags = ["b | a", "", "c|", "a|a"]
    rows = read(flat | MULTI, tmp_path, {"text": ["good", "bad", "dull", "film"], "tags": tags}, name)
    labels = rows.batch([0, 1, 2, 3])["labels"]
    assert labels.dtype == torch.float32
    assert labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert (rows.names, set(rows.labels)) == ((), {0})
    said = [line.split("tokens")[1] for line in described(Path(flat["model.name"]), rows, 2, "abc") if "tokens" in line]
    assert said == [", labels 'a', 'b'", ", no label"]


@pytest.mark.parametrize(
    ("tags", "given", "problem"),
    [
        ([["a"], ["b"], None], "", r"row 2 \(line 3\), column 'tags': no list"),
        ([["a"], ["b"], ["a", "d"]], "a|b|c", r"row 2 \(line 3\), column 'tags': the label is none of a, b, c: 'd'"),
        ([["a"], ["b"], ["a", None]], "", r"row 2 \(line 3\), column 'tags': the label is missing"),
        ([[], [], []], "", "column 'tags': no row has a label"),
        ([["a"], ["a"], []], "", "column 'tags': one label only"),
        (
            ["a", "b", "a, b"],
            "",
            r"row 2 \(line 3\), column 'tags': labels are separated by '\|', .*; this one has ',': 'a, b'",
        ),
    ],
)
def test_bad_labels_are_named(
    tags: list[object], given: str, problem: str, flat: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=problem):
        read(flat | MULTI | {"data.labels": given}, tmp_path, {"text": ["good", "bad", "dull"], "tags": tags})


def test_given_labels_may_hold_signs_that_separate_labels_elsewhere(flat: dict[str, Any], tmp_path: Path) -> None:
    tags: list[object] = ["ham, eggs", "tea", ""]
    options = flat | MULTI | {"data.labels": "ham, eggs|tea"}
    rows = read(options, tmp_path, {"text": ["good", "bad", "dull"], "tags": tags}, "rows.csv")
    assert rows.batch([0, 1, 2])["labels"].tolist() == [[1, 0], [0, 1], [0, 0]]


def test_label_scores_are_those_of_a_slow_reference() -> None:
    source = np.random.default_rng(0)
    logits, true = source.normal(0, 2, (40, 4)), (source.random((40, 4)) < 0.4).astype(np.float64)
    true[:, 3] = 0
    found, f1 = label_scores(logits, true), []
    hits = misses = total = 0.0
    for label in range(4):
        right = sum(1 for x, y in zip(logits[:, label], true[:, label], strict=True) if x > 0 and y)
        wrong = sum(1 for x, y in zip(logits[:, label], true[:, label], strict=True) if (x > 0) != bool(y))
        f1.append(2 * right / (2 * right + wrong))
        hits, misses = hits + right, misses + wrong
    for x, y in zip(logits.ravel(), true.ravel(), strict=True):
        total -= math.log(1 / (1 + math.exp(-x))) if y else math.log(1 - 1 / (1 + math.exp(-x)))
    exact = sum(all((x > 0) == bool(y) for x, y in zip(*row, strict=True)) for row in zip(logits, true, strict=True))
    expected = {"micro-f1": 2 * hits / (2 * hits + misses), "macro-f1": sum(f1) / 4, "subset-accuracy": exact / 40}
    assert found == pytest.approx(expected | {"loss": total / 160}, rel=1e-12)


# ------------------------------------------------------------------------------- gradients
KINDS = [(REGRESSION | {"data.labels": "stars"}, NUMBERS), (MULTI | {"data.labels": "bad|film|good"}, TAGS)]


def loss_of(module: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean squared error, or the mean cross-entropy of all answers, in float64."""
    labels = batch["labels"].double()
    logits = module(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    if labels.ndim == 1:
        return (logits[:, 0] - labels).square().mean()
    return -(labels * logits.sigmoid().log() + (1 - labels) * (-logits).sigmoid().log()).mean()


@pytest.mark.parametrize(("kind", "columns"), KINDS, ids=["regression", "multi-label"])
def test_parts_have_the_gradient_of_the_batch(
    kind: dict[str, Any], columns: dict[str, list[object]], flat: dict[str, Any], tmp_path: Path
) -> None:
    """Against the loss of all rows; -100 is a number like others."""
    rows = read(flat | kind, tmp_path, columns)
    own = flat | kind | SLOW_STEP
    found = {}
    for size in (0, 3):
        config = TaskConfig.read(own | {"micro-batch-size": size})
        model = build(server_base(config.model, server_store()), config, 0, "cpu")
        slow = copy.deepcopy(model.module).double()
        told = Trainer(config, rows, 3).fit(model)
        found[size] = {name: tensor.grad for name, tensor in model.trained.items() if tensor.grad is not None}
    (positions,) = batches(config, len(rows), 3)
    loss = loss_of(slow, rows.batch(positions))
    assert told["train-loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    names = dict(slow.named_parameters())
    right = torch.autograd.grad(loss, [names[name] for name in found[0]])
    for name, gradient in zip(found[0], right, strict=True):
        for size in (0, 3):
            apart = (found[size][name].double() - gradient).norm()
            assert float(apart) <= 1e-4 * float(gradient.norm()) + 1e-3, name
    narrow = TaskConfig.read(own | {"model.dtype": "bfloat16"})  # numbers are compared in float32 all the same
    model = build(server_base(narrow.model, server_store()), narrow, 0, "cpu")
    assert Trainer(narrow, rows, 3).fit(model)["train-loss"] == pytest.approx(float(loss.detach()), rel=1e-2)


@pytest.mark.parametrize(("kind", "columns"), KINDS, ids=["regression", "multi-label"])
def test_private_steps_clip_every_row(
    kind: dict[str, Any], columns: dict[str, list[object]], flat: dict[str, Any], tmp_path: Path
) -> None:
    """Against a slow reference in float64, without noise."""
    rows = read(flat | kind, tmp_path, columns).select(np.arange(5))
    own = flat | kind | SLOW_STEP | {"batch-size": 5, "learning-rate": 0.5}
    config = TaskConfig.read(own | {"tuning": "bias"})
    model = build(server_base(config.model, server_store()), config, 0, "cpu")
    slow = copy.deepcopy(model.module).double()
    plain = {name: p for name, p in slow.named_parameters() if name in model.trained}
    total = {name: torch.zeros_like(p) for name, p in plain.items()}
    for row in range(5):
        gradients = torch.autograd.grad(loss_of(slow, rows.batch([row])), list(plain.values()))
        length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        for name, gradient in zip(plain, gradients, strict=True):
            total[name] += gradient * min(1.0, 0.3 / length)
    replace(Trainer(config, rows, 3), private=steps(clip=0.3)).fit(model)
    for name, before in plain.items():
        moved = (before - 0.5 * total[name] / 5).detach()
        torch.testing.assert_close(model.trained[name].double(), moved, rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------------- a run
@pytest.fixture(scope="module")
def numbers_run(tmp_path_factory: pytest.TempPathFactory, flat: dict[str, Any]) -> Outcome:
    folder = tmp_path_factory.mktemp("numbers")
    file = write_table(folder / "rows.csv", NUMBERS | {"stars": [2.0 if s == 1.5 else -1.0 for s in NUMBERS["stars"]]})
    more = {"data.name": str(file), "num-server-rounds": 2, "local-steps": 12, "learning-rate": 0.02, "head-rate": 1.0}
    return federate(folder / "run", flat | REGRESSION | more | {"simulation.num-supernodes": 2, "evaluate": "both"})


@pytest.mark.judged
def test_numbers_are_learned(numbers_run: Outcome) -> None:
    first, last = numbers_run.rounds[0], numbers_run.rounds[-1]
    assert numbers_run.task.data.labels == ("stars",)
    assert numbers_run.summary["metric"] == "rmse"
    assert last["server-test-loss"] < first["server-test-loss"]
    assert last["server-test-rmse"] == pytest.approx(math.sqrt(last["server-test-loss"]))


def test_the_pipeline_says_the_same_numbers(numbers_run: Outcome, tmp_path: Path) -> None:
    from transformers import pipeline

    texts = ["a good film", "very dull"]
    theirs: Any = pipeline("text-classification", model=str(numbers_run.folder / "model" / "best"))
    ours = thistledown.Outcome(numbers_run.folder).predict(texts)
    found = theirs(texts, function_to_apply="none")
    assert [score["label"] for score in found] == ["stars", "stars"]
    assert [one.answer for one in ours] == pytest.approx([score["score"] for score in found], abs=1e-5)
    file, to = write_table(tmp_path / "asked.jsonl", {"text": texts}), tmp_path / "answers.jsonl"
    assert main(["predict", str(numbers_run.folder), "--file", str(file), "--to", str(to)]) == DONE
    lines = [json.loads(line) for line in to.read_text().splitlines()]
    assert [line["prediction"] for line in lines] == pytest.approx([one.answer for one in ours], abs=1e-6)


def test_a_head_for_one_number_goes_on(numbers_run: Outcome, flat: dict[str, Any], tmp_path: Path) -> None:
    """Whatever its name, an output that is a number is not drawn anew."""
    tuned = thistledown.Outcome(numbers_run.folder).model().merge_and_unload()  # type: ignore[operator]
    tuned.config.id2label = {0: "LABEL_0"}
    tuned.save_pretrained(tmp_path / "base")
    for path in Path(flat["model.name"]).glob("*token*"):
        (tmp_path / "base" / path.name).write_bytes(path.read_bytes())
    config = TaskConfig.read(flat | REGRESSION | {"model.name": str(tmp_path / "base"), "data.labels": "stars"})
    model = build(server_base(Model(name=str(tmp_path / "base")), server_store()), config, 2, "cpu")
    assert not model.new_head


def test_a_row_is_shown_with_its_number(numbers_run: Outcome, flat: dict[str, Any], tmp_path: Path) -> None:
    rows = read(flat | REGRESSION, tmp_path, NUMBERS)
    assert next(described(Path(flat["model.name"]), rows, 1, ("stars",))) == "row 0     5 tokens, stars 1.5"


def test_labels_are_answered_one_by_one(flat: dict[str, Any], tmp_path: Path) -> None:
    from transformers import pipeline

    file = write_table(tmp_path / "rows.jsonl", TAGS)
    more = {"data.name": str(file), "num-server-rounds": 1, "local-steps": 4, "head-rate": 1.0, "tuning": "bias"}
    outcome = federate(tmp_path / "run", flat | MULTI | more | {"simulation.num-supernodes": 2})
    assert outcome.task.data.labels == ("bad", "film", "good")
    texts = ["a good film", "very dull"]
    theirs: Any = pipeline("text-classification", model=str(outcome.folder / "model" / "best"), top_k=None)
    for one, other in zip(thistledown.Outcome(outcome.folder).predict(texts), theirs(texts), strict=True):
        assert one.probabilities == pytest.approx({score["label"]: score["score"] for score in other}, abs=1e-6)
        assert one.answer == "|".join(sorted(name for name, share in one.probabilities.items() if share > 0.5))
