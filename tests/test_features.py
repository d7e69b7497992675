"""Features of rows, computed once where a classifier's head alone trains."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, CAUSAL, data, made, settings
from in_process import Outcome, equal, federate
from tuned import Sample, samples

import client_app.training
import server_app.evaluation
from task.config import TaskConfig
from task.data.prepared import prepare
from task.data.rows import Rows
from task.features import cut as cutting
from task.features import once
from task.features.cut import Cut, cut_of
from task.features.once import KIND, FeatureFiles, computed_once, why_not
from task.models.base import Base
from task.models.model import TunedModel, build, kept_model
from task.storage.retention import inventory
from task.storage.store import Store, node_store, server_store
from task.training.trainer import Trainer, evaluate
from thistledown.estimates.features import features

CLASSIFIERS = [name for name, own in ARCHITECTURES.items() if own.kind != CAUSAL]
WHOLE = {"longformer", "bart", "t5"}  # whose heads need the tokens themselves
ALONE: dict[str, Any] = {"tuning": "head", "num-server-rounds": 3}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, words: Path) -> dict[str, Sample]:
    return samples(tmp_path_factory.mktemp("kinds"), words)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Rows]:
    """The rows whose features are computed."""
    rows: list[Rows] = []
    write = once._write

    def noted(folder: Path, cut: Cut, model: TunedModel, own: Rows, at_once: int) -> None:
        rows.append(own)
        write(folder, cut, model, own, at_once)

    monkeypatch.setattr(once, "_write", noted)
    return rows


@contextmanager
def as_they_are(model: TunedModel, config: TaskConfig, rows: Rows, *rest: Any, **more: Any) -> Iterator[Rows]:
    """In place of `computed_once`: rows, and the whole model."""
    yield rows


def files(folder: Path) -> FeatureFiles:
    return FeatureFiles(Store(folder / "store"), "run")


def left_in(*stores: Store) -> list[str]:
    gc.collect()
    return [thing.key for store in stores for thing in inventory(store) if thing.kind == KIND]


# ------------------------------------------------------------------------------------------- where a model is cut
@pytest.mark.first(3)
@pytest.mark.parametrize("name", ["dinov2", "bert", "llama-classifier", *CLASSIFIERS])
def test_models_score_the_same_rows_from_features(tmp_path: Path, name: str) -> None:
    made(name, tmp_path / name)
    config = settings(name, tmp_path / name, data(tmp_path)[ARCHITECTURES[name].kind], "head")
    base = Base(str(tmp_path / name), tmp_path / name, "")
    model = build(base, config, 0, "cpu")
    rows = prepare(config, base.folder, Store(tmp_path / "store")).train
    cut = cut_of(model, config)
    if name in WHOLE:
        assert isinstance(cut, str)
        return
    assert isinstance(cut, Cut)
    whole = evaluate(model, rows, "cpu")
    with computed_once(model, config, rows, files(tmp_path)) as seen:
        assert seen.inputs is not rows.inputs
        assert evaluate(model, seen, "cpu") == pytest.approx(whole, rel=1e-5)
    assert evaluate(model, rows, "cpu") == whole  # the body is back


def test_a_head_of_zeros_does_not_hide_what_it_reads(kinds: dict[str, Sample]) -> None:
    model = kinds["bert"].build("head")
    for name in model.head:
        torch.nn.init.zeros_(model.trained[name])
    cut = cut_of(model, model.config)
    assert isinstance(cut, Cut)
    assert cut.form == "pooled"
    assert not any(model.trained[name].any() for name in model.head)


def test_a_body_that_is_never_called_cannot_be_skipped(
    kinds: dict[str, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kinds["vit"].build("head")
    lists = [part for part in model.module.modules() if isinstance(part, torch.nn.ModuleList)]
    monkeypatch.setattr(cutting, "still_parts", lambda module, head: lists[:1])
    assert "list of parts" in why_not(cut_of(model, model.config), model.config, 10, training=True)


def test_the_body_of_a_model_with_adapters_is_found(kinds: dict[str, Sample]) -> None:
    for tuning in ("lora", "full", "bias"):
        model = kinds["vit"].build(tuning)
        assert isinstance(cut_of(model, model.config), Cut), tuning


# ------------------------------------------------------------------------------------------- training
def trained(model: TunedModel, config: TaskConfig, rows: Rows) -> dict[str, torch.Tensor]:
    Trainer(config, rows, 7).fit(model)
    return {name: tensor.detach().clone() for name, tensor in model.trained.items()}


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_training_on_features_differs_by_rounding_alone(kinds: dict[str, Sample], name: str, tmp_path: Path) -> None:
    sample = kinds[name]
    config = sample.config("head", **{"local-epochs": 2, "batch-size": 4, "learning-rate": 0.05})
    rows = prepare(config, sample.base.folder, Store(tmp_path / "store")).train
    rows = rows.select(range(min(len(rows), 40)))
    whole = trained(build(sample.base, config, 0, "cpu"), config, rows)
    model = build(sample.base, config, 0, "cpu")
    with computed_once(model, config, rows, files(tmp_path), training=True) as seen:
        found = trained(model, config, seen)
    for tensor, own in whole.items():
        torch.testing.assert_close(found[tensor], own, rtol=1e-4, atol=1e-5)


def test_features_that_are_kept_give_the_bits_of_new_ones(
    kinds: dict[str, Sample], tmp_path: Path, written: list[Rows]
) -> None:
    sample = kinds["bert"]
    config = sample.config("head", **{"local-epochs": 1, "batch-size": 3})
    rows = prepare(config, sample.base.folder, Store(tmp_path / "store")).train
    states = []
    for folder in ("one", "one", "two"):  # a node that stays or comes back, and one that has lost its store
        model = build(sample.base, config, 0, "cpu")
        with computed_once(model, config, rows, files(tmp_path / folder), training=True) as seen:
            states.append(trained(model, config, seen))
    assert len(written) == 2
    assert equal(states[0], states[1])
    assert equal(states[0], states[2])


def test_dropout_in_the_body_is_kept_unless_it_is_turned_off(tmp_path: Path) -> None:
    made("bert", tmp_path / "bert")  # with transformers' dropout of 0.1
    files_of = data(tmp_path)
    config = settings("bert", tmp_path / "bert", files_of[ARCHITECTURES["bert"].kind], "head")
    base = Base(str(tmp_path / "bert"), tmp_path / "bert", "")
    rows = prepare(config, base.folder, Store(tmp_path / "store")).train
    model = build(base, config, 0, "cpu")
    with computed_once(model, config, rows, files(tmp_path), training=True) as seen:
        assert seen is rows
    assert "body-dropout = false" in why_not(cut_of(model, config), config, len(rows), training=True)
    assert not why_not(cut_of(model, config), config, len(rows), training=False)
    off = replace(config, body_dropout=False)
    states = [trained(build(base, off, 0, "cpu"), off, rows)]
    with computed_once(model, off, rows, files(tmp_path), training=True) as seen:
        assert seen is not rows
        states.append(trained(model, off, seen))
    for name, tensor in states[0].items():  # also without features the body drops nothing, and the head does
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-5)
    assert not torch.equal(trained(build(base, config, 0, "cpu"), config, rows)["classifier.weight"], tensor)


def test_few_draws_do_not_pay_for_features_of_all_rows(kinds: dict[str, Sample]) -> None:
    model = kinds["vit"].build("head", **{"local-steps": 2, "batch-size": 8})
    cut = cut_of(model, model.config)
    assert "fewer than one in 4 rows" in why_not(cut, model.config, 100, training=True)
    assert not why_not(cut, model.config, 64, training=True)


# ------------------------------------------------------------------------------------------- federations
def without(monkeypatch: pytest.MonkeyPatch, folder: Path, options: dict[str, Any]) -> Outcome:
    """The same federation through the whole model in every step."""
    with monkeypatch.context() as patch:
        patch.setattr(client_app.training, "computed_once", as_they_are)
        patch.setattr(server_app.evaluation, "computed_once", as_they_are)
        kept_model.cache_clear()
        return federate(folder, options)


@pytest.mark.parametrize(
    "options",
    [
        ALONE,
        ALONE | {"evaluate": "both", "data.holdout": 0.3},
        {"tuning": "lora", "head-init": "ncm", "head-rounds": 1, "num-server-rounds": 3},
    ],
)
def test_a_run_computes_features_of_a_row_once(
    options: dict[str, Any], tmp_path: Path, written: list[Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = federate(tmp_path / "once", options)
    assert written
    assert len({(rows.key, str(rows.indices)) for rows in written}) == len(written)
    assert left_in(node_store(), server_store()) == []
    whole = without(monkeypatch, tmp_path / "whole", options)
    for one, other in zip(outcome.rounds, whole.rounds, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_a_node_that_misses_the_last_round_leaves_nothing(tmp_path: Path, written: list[Rows]) -> None:
    federate(tmp_path, ALONE | {"fraction-train": 0.34})
    assert written
    assert left_in(node_store(), server_store()) == []


def test_what_killed_runs_left_goes_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, store = files(tmp_path), Store(tmp_path / "store")
    for key in ("a", "b"):
        with store.made(KIND, key) as folder:
            assert folder is not None
            (folder / "values.npy").write_bytes(b"0")
    now = once.time.time()
    own.remove_abandoned()
    assert len(left_in(store)) == 2
    monkeypatch.setattr(once.time, "time", lambda: now + 2 * once.DAY)
    own.remove_abandoned()
    assert left_in(store) == []


def test_check_says_how_large_features_are(kinds: dict[str, Sample]) -> None:
    model = kinds["vit"].build("head", **{"local-epochs": 1})
    width = model.trained["classifier.weight"].shape[1]
    whole = f"{40 * width / 1000:.1f} kB for the 10 rows of the largest node"
    assert list(features(model, model.config, 10)) == [
        f"features  computed once a run and kept in the node's store: {4 * width} B a row, {whole}"
    ]
    assert list(features(kinds["vit"].build("lora"), kinds["vit"].config("lora"), 10)) == []
