"""Test rows in the report with their predictions (`report-predictions`): what is shown is what was scored."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import federate, resumed
from PIL import Image
from samples import TEXTS
from tuned import samples

from server_app.config import RunConfig
from server_app.evaluation import Evaluator
from server_app.results.samples import PREDICTIONS, Samples, prediction_table
from strategies.rounds.handshake.resolve import resolve
from task.data.prepared import prepare
from task.models.finding import server_base
from task.models.model import build
from task.prediction.classification import legible
from task.schema import ConfigError
from task.storage.store import server_store

ALL = 10**6
FAST: dict[str, Any] = {"tuning": "bias", "local-steps": 2, "data.train-rows": 200, "simulation.num-supernodes": 2}


def right(lines: list[dict[str, Any]], state: str) -> float:
    """The share of rows with the right label."""
    return float(np.mean([line[state]["label"] == line["label"] for line in lines]))


@pytest.mark.slow
def test_of_all_rows_as_many_are_right_as_the_scores_say(tmp_path: Path) -> None:
    outcome = federate(tmp_path, FAST | {"num-server-rounds": 1, "report-predictions": ALL, "data.test-rows": 90})
    lines = [json.loads(line) for line in (outcome.folder / PREDICTIONS).read_text().splitlines()]
    assert len(lines) == 90
    assert right(lines, "before") == pytest.approx(outcome.rounds[0]["server-test-accuracy"])
    assert right(lines, "best") == pytest.approx(outcome.rounds[1]["server-test-accuracy"])
    assert outcome.summary["best-round"] == 1
    assert all(0.1 <= line[state]["probability"] <= 1 for line in lines for state in ("before", "best"))
    page = (outcome.folder / "report.html").read_text()
    assert "<h2>Sample predictions</h2>" in page
    assert page.count('<img class="pixels"') == 50
    assert "40 more are in predictions.jsonl" in page
    after = resumed(outcome.folder, {"num-server-rounds": 2})
    kept = Samples(after.folder, PREDICTIONS).read()
    assert [line["before"] for line in kept] == [line["before"] for line in lines]
    assert right(kept, "best") == pytest.approx(after.rounds[after.summary["best-round"]]["server-test-accuracy"])


def test_a_run_that_learns_nothing_shows_the_base_twice(tmp_path: Path) -> None:
    outcome = federate(tmp_path, FAST | {"num-server-rounds": 1, "report-predictions": 5, "learning-rate": 0.0})
    lines = Samples(outcome.folder, PREDICTIONS).read()
    assert len(lines) == 5
    assert all(line["before"] == line["best"] for line in lines)


def test_rows_are_shown_as_the_model_sees_them(tmp_path: Path, words: Path) -> None:
    task = RunConfig.read({}).task
    digits = prepare(task, server_base(task.model, server_store()).folder, server_store()).test.select([3, 1])
    for place, url in enumerate(legible(digits, Path())):
        image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
        assert digits.indices is not None
        assert np.array_equal(np.asarray(image), digits.inputs.values[digits.indices[place]][0])  # type: ignore[attr-defined]
    bert = samples(tmp_path, words)["bert"]
    config = bert.config("lora")
    texts = prepare(config, bert.base.folder, server_store()).test
    assert set(legible(texts, bert.base.folder)) <= {text for text, _ in TEXTS}


@pytest.mark.parametrize("precision", ["model", "bfloat16"])
@pytest.mark.parametrize("tuning", ["bias", "head"])
def test_losses_of_rows_are_those_of_scores(tuning: str, precision: str) -> None:
    run = RunConfig.read({"tuning": tuning, "precision": precision, "data.validation-rows": 128})
    task = resolve(run.task, server_store(), 10)
    evaluator = Evaluator(run.strategy, task, "cpu", 64)
    model, rows = build(evaluator.base, task, 0, "cpu"), evaluator.sample
    assert rows is not None
    found = evaluator.losses(model, rows)
    assert found.shape == (len(rows),)
    assert found.mean() == pytest.approx(evaluator.scores(model, rows)["loss"], rel=1e-6)  # bfloat16 differs by 3e-5


def test_texts_and_names_are_escaped(tmp_path: Path) -> None:
    said = {"label": "<i>", "probability": 0.5}
    Samples(tmp_path, PREDICTIONS).add("before", [{"row": "<script>alert(1)</script>", "label": "a & b"}], [said])
    shown = prediction_table(tmp_path)
    assert "<script>" not in shown
    assert "<i>" not in shown
    assert "&lt;script&gt;" in shown
    assert "a &amp; b" in shown
    assert "&lt;i&gt; (0.50), wrong" in shown


def test_what_has_no_labels_or_no_rows_on_the_server_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"report-predictions is for kinds with one label a row.*evaluate-generations"
    ):
        RunConfig.read({"report-predictions": 5, "task.kind": "causal-lm"})
    with pytest.raises(ConfigError, match=r"evaluate must be server or both, not nodes"):
        RunConfig.read({"report-predictions": 5, "evaluate": "nodes", "data.holdout": 0.2})
