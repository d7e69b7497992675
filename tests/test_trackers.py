"""Trackers: the numbers of every round arrive; one file makes another; one that fails does not end a run."""

import csv
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from in_process import federate, resumed

from server_app.callbacks import tracker, trackers
from server_app.config import RunConfig
from server_app.results.lines import row_of
from task.schema import ConfigError

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
EXAMPLE = re.compile(r"```python\n(# server_app/callbacks/trackers/(\w+)\.py\n.*?)```", re.DOTALL)
MOST_LINES = 80
pytestmark = pytest.mark.about("tracker")
SHIPPED = ("mlflow", "tensorboard", "trackio", "wandb")


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Put a file where trackers are looked for, for one test."""
    before, folder = set(sys.modules), tmp_path / "more"
    folder.mkdir()
    monkeypatch.setattr(trackers, "__path__", [*trackers.__path__, str(folder)])

    def put(name: str, text: str) -> None:
        (folder / f"{name}.py").write_text(text)
        importlib.invalidate_caches()

    yield put
    for module in set(sys.modules) - before:
        if module.startswith(f"{trackers.__name__}."):
            del sys.modules[module]


# ------------------------------------------------------------------------------- a contributor's
@pytest.fixture
def example(put: Callable[[str, str], None]) -> str:
    """The tracker that CONTRIBUTING shows, and its name."""
    found = EXAMPLE.search(CONTRIBUTING.read_text())
    assert found is not None
    assert len(found[1].splitlines()) <= MOST_LINES
    put(found[2], found[1])
    return found[2]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_tracker_is_one_file(example: str, tmp_path: Path) -> None:
    outcome = federate(tmp_path, {"trackers": example, "num-server-rounds": 2, "csv.columns": "round,loss,bytes_up"})
    rows = table(outcome.folder)
    assert [row["round"] for row in rows] == ["0", "1", "2"]
    assert [float(row["loss"]) for row in rows] == [line["loss"] for line in outcome.rounds]
    assert [int(row["bytes_up"]) for row in rows] == [line["bytes_up"] for line in outcome.rounds]
    assert outcome.run.flat["csv.columns"] == "round,loss,bytes_up"


@pytest.mark.slow
def test_a_resumed_run_opens_it_again_and_may_have_other_trackers(example: str, tmp_path: Path) -> None:
    outcome = federate(tmp_path, {"trackers": example})
    more = {"num-server-rounds": 2, "csv.columns": "round,loss,train-loss"}
    with pytest.raises(ConfigError, match=r"there is no key 'csv\.nothing'"):
        resumed(outcome.folder, {**more, "csv.nothing": 1})
    del more["csv.columns"]
    resumed(outcome.folder, more)
    assert [row["round"] for row in table(outcome.folder)] == ["0", "1", "2"]
    resumed(outcome.folder, {"trackers": "", "num-server-rounds": 3})
    assert len(table(outcome.folder)) == 3


BROKEN = """
from contextlib import contextmanager
from dataclasses import dataclass
from server_app.callbacks.tracker import Tracker

@dataclass(frozen=True)
class Broken(Tracker):
    package = "{package}"

    @contextmanager
    def opened(self, folder, settings):
        {before}
        def log(row):
            {during}
        yield log
        {after}
"""
FAILS = 'raise ConnectionError("no network")'


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("before", ["callback broken failed in on_start, and the run continues: ConnectionError: no network"]),
        ("during", [f"callback broken failed in on_round of round {number}, and the run" for number in range(2)]),
        ("after", ["callback broken failed in on_end, and the run continues: ConnectionError: no network"]),
    ],
)
def test_one_that_fails_is_named_and_the_run_continues(
    place: str, said: list[str], tmp_path: Path, put: Callable[[str, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    steps = {"before": "pass", "during": "pass", "after": "pass", place: FAILS}
    put("broken", BROKEN.format(package="", **steps))
    assert federate(tmp_path, {"trackers": "broken"}).summary["status"] == "completed"
    found = [record.getMessage() for record in caplog.records if "callback broken" in record.getMessage()]
    assert len(found) == len(said)
    assert all(message.startswith(start) for message, start in zip(found, said, strict=True))


def test_one_whose_package_is_missing_is_refused_with_the_command_that_installs_it(
    put: Callable[[str, str], None],
) -> None:
    put("broken", BROKEN.format(package="no_such_package", before="pass", during="pass", after="pass"))
    with pytest.raises(ConfigError, match=r"'broken' needs the package no_such_package, .*: pip install no_such_pack"):
        RunConfig.read({"trackers": "broken"})


def test_a_slip_of_the_pen_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="there is no tracker 'tensorbord'; did you mean 'tensorboard'"):
        RunConfig.read({"trackers": "tensorbord"})


# ------------------------------------------------------------------------------- those that are shipped
def test_shipped_trackers_are_found() -> None:
    assert tuple(tracker.names()) == SHIPPED


Rounds = dict[int, dict[str, float]]  # metrics by round


def from_tensorboard(folder: Path) -> Rounds:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return by_round((event.step, tag, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag))


def from_mlflow(folder: Path) -> Rounds:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder.parent}/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("thistledown").experiment_id])
    assert run.info.run_name == folder.name
    assert run.info.status == "FINISHED"
    assert run.data.params["strategy"] == "fedavg"
    place = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (place / "report.html").read_text() == (folder / "report.html").read_text()
    assert {p.name for p in (place / "model/best").iterdir()} == {p.name for p in (folder / "model/best").iterdir()}
    history = (one for name in run.data.metrics for one in client.get_metric_history(run.info.run_id, name))
    return by_round((metric.step, metric.key, metric.value) for metric in history)


def from_trackio(folder: Path) -> Rounds:
    from trackio.sqlite_storage import SQLiteStorage

    kept = {one["name"] for one in SQLiteStorage.list_artifacts("thistledown")}
    assert kept == {f"{folder.name}-{name}" for name in ("report", "config", "metrics", "best")}
    manifest = SQLiteStorage.get_artifact_manifest("thistledown", f"{folder.name}-best", "latest")
    assert all(path.name in str(manifest) for path in (folder / "model/best").iterdir())
    logs = SQLiteStorage.get_logs("thistledown", folder.name)
    return {int(log["round"]): log for log in logs}


def from_wandb(folder: Path) -> Rounds:
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    found = {}
    for data in records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        row = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        if "round" in row:
            found[int(row["round"])] = row
    assert all(
        f"{folder.name}-{name}".encode() in path.read_bytes() for name in ("report", "config", "metrics", "best")
    )
    return found


def by_round(values: Iterable[tuple[int, str, float]]) -> Rounds:
    found: Rounds = {}
    for number, name, value in values:
        found.setdefault(number, {})[name] = value
    return found


def records(content: bytes, block: int = 32768) -> Iterator[bytes]:
    """The records of a log in LevelDB's form, which opens with seven bytes of its own: checksum, length, kind, data."""
    place, data = 7, b""
    while place + 7 <= len(content):
        if block - place % block < 7:  # nothing begins in the last bytes of a block
            place += block - place % block
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole one, or the last part of one
            yield data
            data = b""


READ: dict[str, Callable[[Path], Rounds]] = {
    "tensorboard": from_tensorboard,
    "mlflow": from_mlflow,
    "trackio": from_trackio,
    "wandb": from_wandb,
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_tracker_has_every_metric_of_every_round(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real package, writing to this disk: what is read back from its store is metrics.jsonl."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    pytest.importorskip(tracker.tracker_class(name).package)
    options: dict[str, Any] = {"trackers": name, "num-server-rounds": 2, f"{name}.nodes": True, "evaluate": "both"}
    if name == "mlflow":
        options["mlflow.tracking-uri"] = f"sqlite:///{tmp_path}/mlflow.db"
    if name != "tensorboard":
        options[f"{name}.artifacts"] = True
    monkeypatch.chdir(tmp_path)
    outcome = federate(tmp_path, options)
    found = READ[name](outcome.folder)
    assert found.keys() == {0, 1, 2}
    for line in outcome.rounds:
        told = row_of(line) | tracker.of_nodes(line)
        expected = {key: value for key, value in told.items() if isinstance(value, int | float)}
        assert {key: found[line["round"]].get(key) for key in expected} == pytest.approx(expected, rel=1e-6)
    assert {"loss", "accuracy", "bytes_up", "node/1/accuracy", "node/1/train/train-loss"} <= found[2].keys()


def test_metrics_of_nodes_are_told_on_request_and_those_of_refused_replies_never() -> None:
    nodes = [
        {"node": "north/1", "refused": "", "metrics": {"train-loss": 1.0, "server-round": 3}},
        {"node": "south", "refused": "too long", "metrics": {"train-loss": 9.0}},
    ]
    evaluations = [{"node": "north/1", "refused": "", "metrics": {"accuracy": 0.5}}]
    expected = {"node/north_1/train/train-loss": 1.0, "node/north_1/accuracy": 0.5}
    assert tracker.of_nodes({"nodes": nodes, "evaluations": evaluations}) == expected
