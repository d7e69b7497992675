"""Processes that stay between the messages of a run: which messages one serves, when it ends, and what it leaves.

Messages go through Flower's own Runtime API to the real executor, which forks; only the app is a small one.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing import Pipe
from pathlib import Path

import psutil
import pytest
from flwr.app import Message
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import ErrorCode
from flwr.supercore.corestate import in_memory_corestate
from flwr.supercore.date import now
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime import run_clientapp
from in_process import Exchange, federate
from supernode import SuperNode

import client_app
from thistledown.processes.serving import TAKEN, AnotherApp, _next, _Stay, check_flower
from thistledown.processes.superexec import _options

PROJECT = """
[project]
name = "some"
version = "0.1.0"
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "client_app:server"
clientapp = "client_app:app"
"""
# It says in which process it is, what it has seen there, and what earlier messages left in its environment and files.
APP = """
import os, tempfile, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
app, server, seen = ClientApp(), ServerApp(), []
def stays(message):
    return not message.content["asked"].get("last", False)
@app.train()
def train(message, context):
    asked = message.content["asked"]
    seen.append(str(asked["say"]))
    folder = Path(tempfile.gettempdir())
    said = {"pid": os.getpid(), "seen": ",".join(seen), "left": os.environ.get("LEFT", ""), "app": NAME,
            "folder": str(folder), "files": ",".join(path.name for path in folder.iterdir())}
    os.environ["LEFT"] = str(asked["say"])
    (folder / str(asked["say"])).write_text("left")
    if asked.get("fail"):
        raise ValueError("a message that fails")
    time.sleep(asked.get("seconds", 0))
    return Message(RecordDict({"said": ConfigRecord(said)}), reply_to=message)
"""


def bundle(folder: Path, name: str, code: str = APP) -> Path:
    """A bundle of an app that says its name."""
    app = folder / name / "some"
    (app / "client_app").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "client_app" / "__init__.py").write_text(f"NAME = {name!r}\n{code}")
    (folder / f"{name}.fab").write_bytes(build_fab_from_disk(app))
    return folder / f"{name}.fab"


@pytest.fixture(scope="module")
def fabs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fabs")
    silent = APP.replace("def stays", "def silent")
    return {
        "ours": bundle(folder, "ours"),
        "newer": bundle(folder, "newer"),
        "silent": bundle(folder, "silent", silent),
    }


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperNode]:
    with SuperNode(tmp_path_factory.mktemp("node")) as running:
        yield running
    assert not list(running.temporary.iterdir())  # nothing is left when the executor was asked to end


@pytest.mark.slow
def test_one_process_serves_a_run(node: SuperNode, fabs: dict[str, Path]) -> None:
    """And the last message ends it, with its temporary files."""
    said = [node.ask(1, fabs["ours"], say=word) for word in "abc"]
    assert [one["seen"] for one in said] == ["a", "a,b", "a,b,c"]
    assert len({one["pid"] for one in said}) == 1
    assert node.processes() == [said[0]["pid"]]
    assert Path(said[0]["folder"]).parent == node.temporary
    assert node.ask(1, fabs["ours"], say="d", last=True)["pid"] == said[0]["pid"]
    node.until(0)
    assert not list(node.temporary.iterdir())


@pytest.mark.slow
def test_two_runs_share_nothing(node: SuperNode, fabs: dict[str, Path]) -> None:
    """Nor do two apps of one run; and there is one process at a time, so that one model is in memory."""
    first, second = node.ask(2, fabs["ours"], say="a"), node.ask(3, fabs["ours"], say="b")
    assert node.processes() == [second["pid"]]
    third, fourth = node.ask(2, fabs["ours"], say="c"), node.ask(2, fabs["newer"], say="d")
    assert node.processes() == [fourth["pid"]]
    for said, word in zip((first, second, third, fourth), "abcd", strict=True):
        assert (said["seen"], said["left"], said["files"]) == (word, "", "")
    assert len({one["pid"] for one in (first, second, third, fourth)}) == 4
    assert (third["app"], fourth["app"]) == ("ours", "newer")
    assert len(list(node.temporary.iterdir())) == 1


@pytest.mark.slow
def test_an_app_that_does_not_say_so_does_not_stay(node: SuperNode, fabs: dict[str, Path]) -> None:
    said = [node.ask(4, fabs["silent"], say=word) for word in "ab"]
    assert [one["seen"] for one in said] == ["a", "b"]
    assert [one["left"] for one in said] == ["", ""]
    node.until(0)


@pytest.mark.slow
def test_a_message_that_fails_ends_its_process(node: SuperNode, fabs: dict[str, Path]) -> None:
    before = node.ask(5, fabs["ours"], say="a")
    failed = node.ask(5, fabs["ours"], say="b", fail=True)
    assert failed["error"] == "<class 'ValueError'>:<'a message that fails'>"
    after = node.ask(5, fabs["ours"], say="c")
    assert (after["seen"], after["left"], after["files"]) == ("c", "", "")
    assert after["pid"] != before["pid"]


@pytest.mark.slow
def test_a_process_killed_between_messages_is_replaced(node: SuperNode, fabs: dict[str, Path]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        before = node.ask(6, fabs["ours"], say="a")
        os.kill(before["pid"], number)
        until(lambda: not psutil.pid_exists(before["pid"]))  # noqa: B023
    after = node.ask(6, fabs["ours"], say="b")
    assert (after["seen"], after["left"], after["files"]) == ("b", "", "")
    assert len(list(node.temporary.iterdir())) == 1


@pytest.mark.slow
def test_a_process_that_does_not_answer_is_replaced(node: SuperNode, fabs: dict[str, Path]) -> None:
    before = node.ask(7, fabs["ours"], say="a")
    os.kill(before["pid"], signal.SIGSTOP)
    after = node.ask(7, fabs["ours"], say="b")
    assert after["seen"] == "b"
    assert node.processes() == [after["pid"]]


@pytest.mark.slow
def test_a_process_killed_at_a_message_fails_that_message_alone(
    node: SuperNode, fabs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SuperNode notices that no heartbeat has come for a minute, which passes at once here."""
    before = node.ask(8, fabs["ours"], say="a")
    node.send(8, fabs["ours"], say="b", seconds=600)
    until(lambda: (Path(before["folder"]) / "b").exists())
    os.kill(before["pid"], signal.SIGKILL)
    later = now() + timedelta(hours=1)
    monkeypatch.setattr(in_memory_corestate, "now", lambda: later)
    assert node.answer()["code"] == ErrorCode.CLIENT_APP_CRASHED
    monkeypatch.undo()
    after = node.ask(8, fabs["ours"], say="c")
    assert (after["seen"], after["left"], after["files"]) == ("c", "", "")
    assert len(list(node.temporary.iterdir())) == 1


@pytest.mark.slow
def test_two_may_stay_and_go_with_the_executor(tmp_path: Path, fabs: dict[str, Path]) -> None:
    with SuperNode(tmp_path, ("--resident-runs", "2")) as node:
        said = [node.ask(run, fabs["ours"], say=str(run)) for run in (1, 2, 1, 2)]
        assert [one["seen"] for one in said] == ["1", "2", "1,1", "2,2"]
        assert len(node.processes()) == 2
        third = node.ask(3, fabs["ours"], say="3")  # the one whose message is longest ago makes room
        assert set(node.processes()) == {said[1]["pid"], third["pid"]}
        assert len(list(node.temporary.iterdir())) == 2
        node.executor.kill()
        until(lambda: not any(psutil.pid_exists(one["pid"]) for one in (said[1], third)))
        assert not list(node.temporary.iterdir())


@pytest.mark.slow
def test_without_residents_every_message_has_a_process(tmp_path: Path, fabs: dict[str, Path]) -> None:
    with SuperNode(tmp_path, ("--resident-runs", "0")) as node:
        said = [node.ask(1, fabs["ours"], say=word) for word in "ab"]
        assert [one["seen"] for one in said] == ["a", "b"]
        node.until(0)


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------------ what it decides by
def test_a_process_ends_without_messages(caplog: pytest.LogCaptureFixture) -> None:
    """After a while, or at once if there will be none."""
    executor, own = Pipe()
    with caplog.at_level("INFO", "flwr"):
        assert _next(own, 0.01) is None
    assert "no message of this run came for 0.01 s" in caplog.text
    executor.send_bytes(b"token")
    assert _next(own, 0.0) == "token"
    assert executor.recv_bytes() == TAKEN
    executor.close()
    assert _next(own, 600.0) is None


def test_a_process_knows_its_app_and_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the executor was told of the message."""
    stay = _Stay()
    stay._check(b"an app")
    stay._check(b"an app")
    with pytest.raises(AnotherApp, match="not the one that its earlier messages had"):
        stay._check(b"another app")
    monkeypatch.setattr(TaskIdentity, "_run_id", 8)
    with pytest.raises(AnotherApp):
        stay._check(b"an app")


def test_a_flower_that_serves_otherwise_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(run_clientapp, "flwr_exit")
    with pytest.raises(RuntimeError, match="start with --resident-runs 0"):
        check_flower()


@pytest.mark.parametrize("evaluate", ["server", "nodes"])
def test_a_node_stays_until_the_last_message_of_a_run(tmp_path: Path, evaluate: str) -> None:
    options = {"num-server-rounds": 2, "simulation.num-supernodes": 2, "evaluate": evaluate}
    exchanges = federate(tmp_path, options).grid.exchanges
    for node in (0, 1):
        asked = [(one.kind, client_app.stays(message_of(one))) for one in exchanges if one.partition == node]
        assert asked[-1] == ("evaluate" if evaluate == "nodes" else "train", False)
        assert all(stays for _, stays in asked[:-1])


def message_of(exchange: Exchange) -> Message:
    return Message(exchange.request, dst_node_id=1, message_type=exchange.kind)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--resident-runs=-1", "'-1' is not a whole number from 0 on"),
        ("--resident-runs=1.5", "'1.5' is not a whole number from 0 on"),
        ("--resident-seconds=soon", "'soon' is not a number from 1 on"),
        ("--resident-seconds=inf", "'inf' is not a number from 1 on"),
    ],
)
def test_a_wrong_option_is_said(option: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _options([option, "--insecure"])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
