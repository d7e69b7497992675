"""What a run says of itself: how it ended, what its scores are worth, whether it learns, and who took part."""

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from fragile import Fragile, Killed
from in_process import federate, left, resumed, retold, spoiled
from samples import write_table
from tuned import Sample, samples

from server_app import data_notices
from server_app.callbacks.progress import progress
from server_app.config import RunConfig
from server_app.results import endings
from server_app.results.amounts import human
from server_app.results.learning import not_falling
from server_app.results.lines import line_of, written_json
from server_app.results.measure import measure_named
from server_app.resuming import alone
from strategies.exchange.callback import RoundReport
from strategies.exchange.types import RunFailed
from task.config import TaskConfig
from task.data.partition import partition
from task.data.prepared import data_index
from task.storage.store import server_store
from task.training.rates import unusual
from thistledown.commands.results.runs import HEADS
from thistledown.main import DONE, WRONG, main
from thistledown.settings import Settings
from thistledown.summary import summary_lines

APP = Path(__file__).parent.parent
CLASSES, TOKENS = measure_named("accuracy"), measure_named("loss")
PRESETS = sorted(path.stem for path in (APP / "presets").glob("*.toml"))


# ------------------------------------------------------------------------------- statuses
@pytest.fixture
def killed(tmp_path: Path, dead_servers_write_no_summary: None) -> Path:
    """The folder of a run whose process was killed in its second round."""
    with pytest.raises(Killed):
        federate(tmp_path, {"num-server-rounds": 3}, Fragile(trained=5))
    return (tmp_path / "latest").resolve()


@pytest.mark.slow
def test_a_killed_run_is_interrupted_as_soon_as_anybody_looks(
    killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert endings.summary_of(killed)["status"] == "running"  # nobody could write another word
    assert main(["status", str(tmp_path)]) == DONE
    said = capsys.readouterr().out
    assert f"{killed}: interrupted after round 1, accuracy 0." in said
    assert """resume it: thistledown run -c "resume='latest'\"""" in said
    assert "The run was interrupted." in (killed / "report.html").read_text()
    assert endings.summary_of(killed)["status"] == "interrupted"
    assert resumed(killed).summary["status"] == "completed"
    assert main(["status", str(killed)]) == DONE
    assert capsys.readouterr().out.startswith(f"{killed}: completed after round 3")


@pytest.mark.slow
def test_the_next_run_finds_those_that_were_killed(killed: Path, tmp_path: Path) -> None:
    federate(tmp_path)
    assert endings.summary_of(killed)["status"] == "interrupted"


def test_what_is_damaged_or_old_does_not_keep_the_next_run_from_starting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("one", "{"), ("two", '{"status": "running"}'), ("three", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(content)
    assert federate(tmp_path).summary["status"] == "completed"
    capsys.readouterr()
    for verb, shown in (
        ("status", "completed after round 1"),
        ("runs", "completed  fedavg    lora         1  accuracy"),
    ):
        assert main([verb, str(tmp_path)]) == WRONG
        said = capsys.readouterr()
        assert said.err.count("summary.json cannot be read: ") == 3
        assert len(said.err.splitlines()) == 1
        assert shown in said.out


def test_a_table_of_runs_has_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (federate(tmp_path / "outputs", {"strategy": name}) for name in ("fedavg", "rbla"))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["runs"]) == DONE
    heads, *rows = capsys.readouterr().out.splitlines()
    assert heads.split() == list(HEADS)
    for outcome, row in zip((first, second), rows, strict=True):
        name, status, strategy, _, rounds, metric, before, _, last, *_ = row.split()
        assert (name, status, strategy) == (outcome.folder.name, "completed", outcome.summary["strategy"])
        assert (int(rounds), metric) == (1, "accuracy")
        assert (float(before), float(last)) == pytest.approx(
            (outcome.summary["base"], outcome.summary["final"]), abs=5e-4
        )
        assert f"  {human(sum(outcome.summary[f'bytes_{way}'] for way in ('up', 'down', 'base')))}  " in row


def test_a_run_at_work_is_running(killed: Path) -> None:
    with alone(killed):
        assert not endings.interrupt(killed)
        assert endings.summary_of(killed)["status"] == "running"
    assert endings.interrupt(killed)


@pytest.mark.first(1)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_signal_interrupts_and_is_no_failure(error: type[BaseException], tmp_path: Path) -> None:
    class Stopping(Fragile):
        def push_messages(self, messages: Any) -> list[str]:
            if len(self.of("train")) >= 5:
                raise error
            return super().push_messages(messages)

    with pytest.raises(error):
        federate(tmp_path, {"num-server-rounds": 3}, Stopping())
    summary, rounds = left(tmp_path)
    assert summary["status"] == "interrupted"
    assert "error" not in summary
    assert len(rounds) >= 2
    assert (tmp_path / "latest" / "report.html").exists()


def test_a_run_that_is_killed_before_its_first_round_has_a_summary(
    tmp_path: Path, dead_servers_write_no_summary: None
) -> None:
    with pytest.raises(Killed):
        federate(tmp_path, {}, Fragile(looks=1))
    folder = (tmp_path / "latest").resolve()
    assert endings.interrupt(folder)
    assert endings.hint(folder) == ""  # there is nothing to go on from


def test_the_report_of_a_run_whose_nodes_all_failed_says_what_failed(tmp_path: Path) -> None:
    def spoil(partition: int, kind: str, reply: Any) -> Any:
        if kind == "evaluate":
            raise ValueError("no luck")
        return spoiled(reply) if kind == "train" else reply

    with pytest.raises(RunFailed):
        federate(tmp_path, {"evaluate": "nodes"}, spoil=spoil)
    report = (tmp_path / "latest" / "report.html").read_text()
    assert "No evaluation was asked for" not in report
    assert "The run failed: 1 failed rounds in a row" in report
    assert "<h2>Failed rounds</h2>" in report
    assert "holds NaN or infinity" in report


def test_a_run_at_work_is_not_resumed_by_another(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with alone(killed):
        assert main(["run", "-c", f"resume='{killed}'"]) == WRONG
    assert f"another process is at work in {killed}" in capsys.readouterr().err


def test_the_command_runs_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook."""
    monkeypatch.chdir(tmp_path)
    codes: list[object] = []

    def work() -> None:
        try:
            codes.append(main(["check"]))
        except BaseException as error:  # noqa: BLE001 - a thread's errors are lost
            codes.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert codes == [DONE]


# ------------------------------------------------------------------------------- scores that are void
NAN, INF = math.nan, math.inf
GOOD = {"validation-loss": 1.0, "validation-accuracy": 0.5, "test-loss": 1.0, "test-accuracy": 0.5}
BROKEN = [
    {**GOOD, "validation-loss": NAN},
    {**GOOD, "test-loss": INF},
    {**GOOD, "test-accuracy": NAN},
    {**GOOD, "validation-loss": -INF, "test-loss": NAN},
]


@pytest.mark.parametrize("scores", BROKEN, ids=lambda scores: "+".join(k for k, v in scores.items() if v - v))
def test_a_score_is_void_if_the_loss_is_not_finite(scores: dict[str, float]) -> None:
    line = line_of(RoundReport(3, evaluated_by_server=scores), CLASSES)
    assert (line["accuracy"], line["loss"], line["chosen-by"]) == (None, None, None)
    assert json.loads(written_json(line)) == line
    assert "void (" in progress(line, CLASSES.titles, 5, [0.0, 1.0])


def test_a_model_of_nan_is_never_best_and_json_stays_json(tmp_path: Path) -> None:
    """In round 2 the weights are finite, and too large to be computed with: it answers the first class always."""
    sent = [0]

    def spoil(partition: int, kind: str, reply: Any) -> Any:
        sent[0] += kind == "train"
        if kind != "train" or sent[0] <= 3:
            return reply
        return retold(reply, lambda tensors: {name: torch.full_like(t, 1e12) for name, t in tensors.items()})

    options = {"tuning": "full", "num-server-rounds": 2, "collapse-factor": 0.0, "outlier-factor": 0.0}
    outcome = federate(tmp_path, options, spoil=spoil)
    text = (outcome.folder / "metrics.jsonl").read_text() + (outcome.folder / "summary.json").read_text()
    assert "NaN" not in text
    assert outcome.summary["best-round"] in (0, 1)
    assert outcome.summary["final"] is None
    assert set(outcome.summary["void-rounds"]) == {"2"}
    said = "\n".join(summary_lines(outcome.summary))
    assert "void at the end" in said
    assert "the score of round 2 is void: test-loss, validation-loss: not finite" in said


# ------------------------------------------------------------------------------- learning
def history(losses: list[float], scores: list[float]) -> list[dict[str, Any]]:
    start = {"train-loss": None, "chosen-by": scores[0]}
    return [start, *({"train-loss": loss, "chosen-by": score} for loss, score in zip(losses, scores[1:], strict=True))]


TEN = {"data.labels": "|".join("abcdefghij"), "model.name": "some/base"}
CURVES = {
    "at chance": ([2.32, 2.31, 2.33], [0.1] * 4, TEN | {"learning-rate": 0.01}, "learning-rate = 0.0005 (it is 0.01)"),
    "rising": ([2.3, 3.0, 4.0], [0.1] * 4, TEN | {"learning-rate": 0.004}, "learning-rate = 0.0004 (it is 0.004)"),
    "too small": ([2.3, 2.3, 2.3], [0.1] * 4, TEN | {"learning-rate": 1e-7}, "learning-rate = 0.0001 (it is 1e-07)"),
    "falling": ([2.3, 2.2, 2.0], [0.1] * 4, TEN, ""),
    "better by its score": ([0.9, 1.0, 1.1], [0.1, 0.3, 0.4, 0.5], TEN, ""),
    "nothing left to fall": ([0.05, 0.06, 0.05], [0.9] * 4, TEN, ""),
    "too early to tell": ([2.3, 2.3], [0.1] * 3, TEN, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", CURVES)
def test_a_loss_that_does_not_fall_is_said_with_a_rate_to_try(name: str) -> None:
    losses, scores, options, expected = CURVES[name]
    said = not_falling(history(losses, scores), TaskConfig.read(options), CLASSES)
    assert said.endswith(expected) if expected else not said
    if expected:
        assert said.startswith(f"the training loss does not fall: {losses[0]:.3f} at first, {losses[-1]:.3f} after 3")


def test_of_a_language_model_the_loss_alone_counts() -> None:
    config = TaskConfig.read({"task.kind": "causal-lm", "model.name": "some/base", "data.name": "some/rows"})
    assert not_falling(history([3.0, 3.1, 3.2], [3.0, 3.0, 3.1, 3.2]), config, TOKENS)
    assert not not_falling(history([3.0, 3.1, 3.2], [3.5, 3.0, 2.9, 2.8]), config, TOKENS)


@pytest.mark.slow
def test_a_run_that_does_not_learn_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """LoRA on all linear layers at a rate far above what it can take."""
    options = {
        "num-server-rounds": 4,
        "learning-rate": 3.0,
        "local-steps": 4,
        "collapse-factor": 0.0,
        "outlier-factor": 0.0,
    }
    outcome = federate(tmp_path, options)
    [said] = [notice for notice in outcome.summary["notices"] if "does not fall" in notice]
    assert caplog.text.count("the training loss does not fall") == 1
    assert "Try learning-rate = 0.005 (it is 3)" in said
    assert any("learning-rate = 3 is above what is usual for tuning = 'lora'" in n for n in outcome.summary["notices"])
    assert "  train loss " in caplog.text
    assert said in (outcome.folder / "report.html").read_text().replace("&#x27;", "'")


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_the_rate_of_a_preset_is_usual(preset: str | None, tmp_path: Path) -> None:
    assert unusual(Settings.read(APP, preset, [], tmp_path).config.task) == ""


RATES = {
    ("full", "adamw", 0.01): "above", ("full", "adamw", 2e-5): "", ("full", "adamw", 1e-8): "below",
    ("lora", "adamw", 0.01): "above", ("lora", "adamw", 2e-4): "", ("lora", "adamw", 1e-6): "below",
    ("head", "adamw", 0.01): "", ("bias", "adamw", 0.005): "", ("prompt", "adamw", 0.3): "",
    ("full", "sgd", 0.1): "", ("lora", "sgd", 1.0): "", ("full", "sgd", 30.0): "above",
}  # fmt: skip


@pytest.mark.parametrize(("tuning", "optimizer", "rate"), RATES)
def test_a_rate_outside_what_is_usual_is_said(tuning: str, optimizer: str, rate: float) -> None:
    flat = {"tuning": tuning, "optimizer": optimizer, "learning-rate": rate, "model.name": "some/base"}
    said = unusual(TaskConfig.read(flat))
    assert (
        (f" is {RATES[tuning, optimizer, rate]} what is usual " in said) if RATES[tuning, optimizer, rate] else not said
    )


# ------------------------------------------------------------------------------- classes
@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, words: Path) -> dict[str, Sample]:
    return samples(tmp_path_factory.mktemp("kinds"), words)


def test_classes_that_a_part_or_a_node_lacks_are_said(kinds: dict[str, Sample], tmp_path: Path) -> None:
    rows = {"text": ["a good film"] * 40, "label": ["good", "bad"] * 20}
    tests = {"text": ["dull"] * 5, "label": ["bad"] * 5}
    for name, content in (("train", rows), ("test", tests)):
        write_table(tmp_path / "data" / f"{name}.csv", content)
    flat = kinds["bert"].flat | {
        "data.name": str(tmp_path / "data"), "data.test-split": "test", "data.labels": "good|bad|odd",
        "data.partitioner": "shards", "data.shards-per-node": 1, "tuning": "head",
    }  # fmt: skip
    run = RunConfig.read({key: value for key, value in flat.items() if "rows" not in key})
    plan = data_index(run.task, server_store())
    said = list(data_notices.of_run(run.task, plan, partition(run.task, plan, 2, server_store())))
    assert "the train part has no rows of odd (3 classes in total)" in said
    assert "the test part has no rows of good, odd (3 classes in total)" in said
    assert "1 of 2 nodes have rows of a single class: 0" in said


# ------------------------------------------------------------------------------- nodes
def test_nodes_that_cannot_take_part_are_called_by_their_names(
    kinds: dict[str, Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One has a single row, and keeps none to be scored on; one has no data; both say why as far as others may know."""
    path = write_table(tmp_path / "many.csv", {"text": ["a good film", "dull"] * 20, "label": ["good", "bad"] * 20})
    one = write_table(tmp_path / "one.csv", {"text": ["a good film"], "label": ["good"]})
    places = {"clinic": path, "ward": one, "lab": tmp_path / "none.csv"}
    nodes = {
        number: {"name": name, "data-path": str(place), "follow-paths": True, "policy.min-rows": 1}
        for number, (name, place) in enumerate(places.items())
    }
    options = kinds["bert"].flat | {
        "tuning": "head", "evaluate": "nodes", "data.partitioner": "none", "simulation.num-supernodes": 3
    }  # fmt: skip
    federate(tmp_path / "out", options, node_configs=nodes, deployed=True)
    assert "left out node lab: node error 2: NodeFailed: " in caplog.text
    assert "node ward did not evaluate: node error 2: NodeFailed: node ward has no rows for evaluation" in caplog.text
    assert "only in this node's own log" not in caplog.text
