"""Trackers: the numbers of every round arrive; one file makes another; one that fails does not end a run."""

import csv
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from in_process import federate, resumed

from server_app.callbacks import tracker, trackers
from server_app.config import RunConfig
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


def from_tensorboard(folder: Path) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("loss")}


def from_mlflow(folder: Path) -> dict[int, float]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder.parent}/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("thistledown").experiment_id])
    assert run.info.run_name == folder.name
    assert run.data.params["strategy"] == "fedavg"
    return {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")}


def from_trackio(folder: Path) -> dict[int, float]:
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("thistledown", folder.name)
    return {int(log["round"]): log["loss"] for log in logs}


def from_wandb(folder: Path) -> dict[int, float]:
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    losses = {}
    for data in records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        found = {(item.key or item.nested_key[0]): item.value_json for item in record.history.item}
        if "loss" in found:
            losses[int(found["round"])] = float(found["loss"])
    return losses


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


READ: dict[str, Callable[[Path], dict[int, float]]] = {
    "tensorboard": from_tensorboard,
    "mlflow": from_mlflow,
    "trackio": from_trackio,
    "wandb": from_wandb,
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_tracker_has_every_round(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real package, writing to this disk."""
    pytest.importorskip(tracker.tracker_class(name).package)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    options: dict[str, Any] = {"trackers": name, "num-server-rounds": 2}
    if name == "mlflow":
        options["mlflow.tracking-uri"] = f"sqlite:///{tmp_path}/mlflow.db"
    outcome = federate(tmp_path, options)
    found = READ[name](outcome.folder)
    assert found == pytest.approx({line["round"]: line["loss"] for line in outcome.rounds}, rel=1e-6)
