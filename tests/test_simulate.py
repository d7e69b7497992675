"""`thistledown.simulate`: settings in Python's spelling, data and models that are objects, and the results."""

import gc
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity
from in_process import equal
from PIL import Image

import strategies
import thistledown
from strategies.exchange.callback import Callback, RoundReport
from strategies.exchange.types import RunFailed, State
from strategies.protocol import checkpoint
from task.models.model import kept_model
from task.schema import ConfigError
from thistledown.simulation.inputs import data_settings, model_settings
from thistledown.simulation.keywords import run_config

SMALL: dict[str, Any] = {
    "num_server_rounds": 1,
    "simulation": {"num_supernodes": 2},
    "local_steps": 1,
    "batch_size": 8,
    "tuning": "head",
}
DIGITS = {"train_rows": 40, "validation_rows": 20, "test_rows": 20}
COMMAND = str(Path(sys.executable).parent / "thistledown")


# ------------------------------------------------------------------------------- settings
def test_settings_are_run_config_keys_in_the_spelling_of_python() -> None:
    given = {
        "num_server_rounds": 5, "lora": {"ranks": "2,4,8"}, "lora.scaling": 1.0, "simulation": {"num_supernodes": 3},
        "data.labels": ["a", "b"],
    }  # fmt: skip
    assert run_config("rbla", ["top-k", "half"], given) == {
        "strategy": "rbla", "wrappers": "top-k,half", "num-server-rounds": 5, "lora.ranks": "2,4,8",
        "lora.scaling": 1.0, "simulation.num-supernodes": 3, "data.labels": "a|b",
    }  # fmt: skip


def test_a_strategy_and_wrappers_may_be_objects() -> None:
    strategy = strategies.load("fedprox", mu=0.5)
    wrappers = ["half", strategies.load_wrapper("top-k", fraction=0.5)]
    assert run_config(strategy, wrappers, {}) == {
        "strategy": "fedprox", "fedprox.mu": 0.5, "wrappers": "half,top-k", "top-k.fraction": 0.5,
    }  # fmt: skip


def test_all_unknown_names_are_reported_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        thistledown.simulate("rblaa", lr=0.1, lora={"rank": 4}, num_server_round=2, output_dir=tmp_path)
    said = str(raised.value)
    for wrong, right in {
        "lr": "learning-rate",
        "lora.rank": "lora.ranks",
        "num-server-round": "num-server-rounds",
        "rblaa": "rbla",
    }.items():
        assert f"'{wrong}'; did you mean '{right}'" in said
    assert not list(tmp_path.iterdir())


def test_a_key_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora\.ranks is given twice"):
        run_config("rbla", (), {"lora": {"ranks": "2"}}, {"lora.ranks": "4"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"data": 3}, "data must be a path, a hub id, a datasets.Dataset .* not a builtins.int"),
        ({"model": torch.nn.Linear(1, 1)}, "model must be .* not a torch.nn.modules.linear.Linear"),
        ({"model": ("a", "b")}, "model must be .* not a tuple of str, str"),
        ({"data": {"partitioner": "none"}}, "is for deployed nodes"),
        ({"output_dir": "/proc/nowhere"}, "output-dir = '/proc/nowhere' cannot be written"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        thistledown.simulate(**arguments)


# ------------------------------------------------------------------------------- results
@pytest.fixture(scope="module")
def digits() -> "thistledown.Outcome":
    return thistledown.simulate("rbla", data=DIGITS, **SMALL | {"tuning": "lora", "lora": {"ranks": "2,4"}})


@pytest.mark.judged
def test_metrics_are_rows_that_pandas_takes(digits: "thistledown.Outcome") -> None:
    frame = pandas.DataFrame(digits.metrics)
    assert list(frame["round"]) == [0, 1]
    assert {"accuracy", "loss", "train-loss", "bytes_up", "bytes_down", "seconds", "aggregation-error"} <= {*frame}
    assert list(frame["nodes"]) == [0, 2]
    assert frame["aggregation-error"][1] > 0
    assert not frame.map(lambda value: isinstance(value, list | dict)).any(axis=None)


def test_the_model_is_ready_to_use(digits: "thistledown.Outcome") -> None:
    for which in ("best", "last"):
        model = digits.model(which)
        assert not model.training
        with torch.no_grad():
            assert model(pixel_values=torch.zeros(1, 1, 8, 8)).logits.shape == (1, 10)
    with pytest.raises(ConfigError, match="there is no state 'first'"):
        digits.model("first")


def test_an_outcome_says_what_it_is(digits: "thistledown.Outcome") -> None:
    assert repr(digits).startswith("accuracy on the test part: ")
    assert repr(digits).endswith("results in a temporary folder: save(folder) keeps them")
    html = digits._repr_html_()
    assert html.count("<tr>") == 3
    assert '<th scope="col">accuracy</th>' in html


@pytest.mark.slow
def test_what_is_saved_outlives_the_outcome(tmp_path: Path) -> None:
    """With data and a model that were objects."""
    outcome = thistledown.simulate(data=pictures(), model=vision(), **SMALL | {"tuning": "lora"})
    state, folder = outcome.model().state_dict(), outcome.folder
    place = outcome.save(tmp_path / "kept")
    with pytest.raises(ConfigError, match="is not empty"):
        outcome.save(place)
    del outcome
    gc.collect()
    assert not folder.exists()
    kept = thistledown.Outcome(place)
    assert equal(kept.model().state_dict(), state)
    assert kept.summary["folder"] == str(place)
    again = thistledown.simulate(resume=str(place), num_server_rounds=2)
    assert again.folder == place
    assert [row["round"] for row in again.metrics] == [0, 1, 2]


def test_a_run_leaves_the_process_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    logger, before = logging.getLogger("flwr"), torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    state = logger.level, list(logger.handlers), TaskIdentity.node_id, before
    outcome = thistledown.simulate(data=DIGITS, **SMALL)
    assert (logger.level, list(logger.handlers), TaskIdentity.node_id, torch.get_num_threads()) == state
    assert torch.equal(torch.rand(1), expected)
    assert kept_model.cache_info().currsize == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "fedavg with tuning head: 2 nodes, 1 round, seed 0"
    assert said[-1].startswith("round 1/1  accuracy ")
    assert "ETA 0:00" in said[-1]
    assert outcome.folder.exists()


@pytest.mark.slow
def test_callbacks_are_called_and_results_stay_in_an_output_dir(tmp_path: Path) -> None:
    class Counting(Callback):
        rounds = 0

        def on_round(self, report: RoundReport, state: State) -> None:
            self.rounds += 1

    counting = Counting()
    outcome = thistledown.simulate(data=DIGITS, callbacks=[counting], output_dir=tmp_path, **SMALL)
    assert counting.rounds == 2
    folder = outcome.folder
    del outcome
    gc.collect()
    assert folder == (tmp_path / "latest").resolve()
    assert (folder / "report.html").exists()


def test_a_run_that_fails_raises_and_leaves_no_temporary_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(RunFailed, match="0 of 2 replies were good"):
        thistledown.simulate(
            data=DIGITS, optimizer="sgd", learning_rate=1e30, max_failed_rounds=1, **SMALL | {"tuning": "full"}
        )
    assert not list(tmp_path.glob("thistledown-*"))


# ------------------------------------------------------------------------------- data and models
def pictures(rows: int = 60) -> datasets.Dataset:
    """Pictures with one bright half, and which one."""
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 100, (rows, 8, 8, 3), dtype=np.uint8)
    labels = [number % 2 for number in range(rows)]
    for image, label in zip(pixels, labels, strict=True):
        image[:, 4 * label : 4 * label + 4] += 120
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["left", "right"])})
    return datasets.Dataset.from_dict({"image": [Image.fromarray(one) for one in pixels], "label": labels}, features)


TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def vision() -> tuple[Any, Any]:
    """A small model of transformers for them, and what prepares its inputs."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **TINY))
    return model, ViTImageProcessor(size={"height": 8, "width": 8})


def test_a_dataset_and_a_model_of_transformers() -> None:
    model, processor = vision()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    outcome = thistledown.simulate(data=pictures(), model=(model, processor), **SMALL)
    assert outcome.model().config.id2label == {0: "left", 1: "right"}
    assert equal(model.state_dict(), before)


def test_a_frame_of_texts_and_a_model_with_its_tokenizer(words: Path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(words)
    config = BertConfig(vocab_size=len(tokenizer), **TINY)
    frame = pandas.DataFrame({
        "review": ["good film", "bad film", None, "good bad good"] * 15,
        "stars": pandas.Categorical(["high", "low", "low", "high"] * 15),
    }, index=range(100, 160))  # fmt: skip
    outcome = thistledown.simulate(
        data={"name": frame, "text_column": "review", "label_column": "stars"},
        model=(BertForSequenceClassification(config), tokenizer),
        task={"kind": "text-classification"},
        **SMALL,
    )
    assert sorted(outcome.model().config.id2label.values()) == ["high", "low"]


def test_splits_of_a_dataset_dict_keep_their_names(tmp_path: Path) -> None:
    rows = pictures(40)
    given = datasets.DatasetDict(train=rows.select(range(20)), validation=rows.select(range(10)), test=rows)
    assert data_settings(given, lambda: tmp_path) == {"name": tmp_path / "data"}
    read = datasets.load_dataset("parquet", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in read.items()} == {"train": 20, "validation": 10, "test": 40}
    assert read["test"].features == rows.features


def test_images_in_files_of_their_own_go_along(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "one.png")]}).cast_column("image", datasets.Image())
    data_settings(rows, lambda: tmp_path)
    (tmp_path / "one.png").unlink()
    read = datasets.Dataset.from_parquet(str(tmp_path / "data" / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert read[0]["image"].size == (4, 4)


def test_names_are_no_objects(tmp_path: Path) -> None:
    def never() -> Path:
        raise AssertionError("nothing is written")

    assert data_settings(tmp_path / "rows.csv", never) == {"name": tmp_path / "rows.csv"}
    assert data_settings("owner/rows", never) == {"name": "owner/rows"}
    assert data_settings({"alpha": 0.1}, never) == {"alpha": 0.1}
    assert model_settings({"name": "owner/model", "dtype": "bfloat16"}, never)["dtype"] == "bfloat16"
    assert data_settings(None, never) == {}


# ------------------------------------------------------------------------------- the same bits
def state_of(folder: Path) -> State:
    return checkpoint.load(folder / "checkpoints" / checkpoint.LAST)[0]


@pytest.mark.slow
@pytest.mark.flower
def test_bits_are_those_of_the_command(tmp_path: Path) -> None:
    """Of a strategy with a journal; test_survival.py has one with tensors, whose run is killed too."""
    settings: dict[str, Any] = {"num_server_rounds": 2, "simulation": {"num_supernodes": 3}, "local_steps": 3}
    settings |= {"tuning": "bias"}
    ours = thistledown.simulate("ferret", output_dir=tmp_path / "ours", **settings)
    flat = run_config("ferret", (), settings)
    pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in flat.items())
    ran = subprocess.run([COMMAND, "run", "-c", pairs], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    theirs = thistledown.Outcome(tmp_path / "outputs" / "latest")
    assert equal(state_of(ours.folder).tensors, state_of(theirs.folder).tensors)
    assert state_of(ours.folder).positions == state_of(theirs.folder).positions
    assert [repeated(row) for row in ours.metrics] == [repeated(row) for row in theirs.metrics]


def repeated(row: dict[str, Any]) -> dict[str, Any]:
    """What two runs have in common: not the time, nor, before round 1, the offer of a base that a store has by now."""
    once = ("seconds", *(("bytes_up", "bytes_down", "bytes_base") if row["round"] == 0 else ()))
    return {key: value for key, value in row.items() if key not in once}
