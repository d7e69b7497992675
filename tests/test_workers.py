"""Nodes in worker processes: the bits of one process, and nothing is lost or left behind, whatever ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from flwr.app import Message, RecordDict
from fragile import assert_same_run, options
from in_process import SMALL, Outcome, Watcher, equal, federate, left

import client_app
import thistledown
from server_app.config import RunConfig
from server_app.resuming import continued
from strategies.exchange.types import RunFailed
from task.device import cores
from task.schema import ConfigError
from thistledown.main import DONE, FAILED, WRONG, main
from thistledown.settings import app_folder
from thistledown.simulation import template
from thistledown.simulation.grid import InProcessGrid, identity
from thistledown.simulation.simulate import run_in_process
from thistledown.simulation.worker_grid import AHEAD, WorkerGrid

WORKERS = 2
STATEFUL = ("fedavg", "scaffold", "ferret", "top-k", "auto")  # the second to the fourth keep state on nodes


def shared(
    folder: Path, settings: dict[str, Any], heard: Callable[[int], object] = int, **more: Any
) -> tuple[Outcome, list[str]]:
    """What a federation on workers left, and what it printed; `heard` is called after every round."""
    said: list[str] = []
    run = RunConfig.read({**SMALL, **settings, "output-dir": str(folder)})
    place = run_in_process(run, said.append, [Watcher(heard)], workers=WORKERS, **more)
    return Outcome(InProcessGrid(client_app.app, 1), run, place), said


def relatives() -> list[psutil.Process]:
    """The processes that this one has started, and those that they have."""
    return psutil.Process().children(recursive=True)


def workers() -> list[psutil.Process]:
    """The worker processes of a run that goes on."""
    return [worker for template in psutil.Process().children() for worker in template.children()]


@pytest.mark.first(1)
@pytest.mark.parametrize("name", STATEFUL)
def test_bits_are_those_of_one_process(name: str, tmp_path: Path) -> None:
    outcome, _ = shared(tmp_path / "workers", options(name))
    assert_same_run(outcome, federate(tmp_path / "one", options(name)))
    assert not relatives()


@pytest.mark.slow
def test_a_node_that_fails_is_left_out_as_in_one_process(tmp_path: Path) -> None:
    nodes = {1: {"rank": 0}}
    outcome, said = shared(tmp_path / "workers", {}, node_configs=nodes)
    assert_same_run(outcome, federate(tmp_path / "one", {}, node_configs=nodes))
    assert any("node config rank = 0 must be a whole number above 0" in line for line in said)


def test_a_killed_worker_is_replaced_and_its_node_has_an_error(tmp_path: Path) -> None:
    def kill(number: int) -> None:
        if number == 1:
            workers()[0].kill()

    outcome, said = shared(tmp_path, {"num-server-rounds": 3}, kill)
    failed = [[bool(node["refused"]) for node in line["nodes"]] for line in outcome.rounds[1:]]
    assert [sum(line) for line in failed] == [0, 1, 0]
    assert sum("its process was ended by SIGKILL; if nobody sent it, memory ran out" in line for line in said) == 1
    assert not relatives()


@pytest.mark.slow
def test_a_run_fails_if_a_worker_cannot_be_replaced(tmp_path: Path) -> None:
    def kill(number: int) -> None:
        (template,) = psutil.Process().children()
        orphans = template.children()
        template.kill()
        for orphan in orphans:
            orphan.kill()

    with pytest.raises(RunFailed, match="the process that starts workers has ended"):
        shared(tmp_path, {"num-server-rounds": 3}, kill)
    assert left(tmp_path)[0]["status"] == "failed"
    assert not relatives()


@pytest.mark.slow
def test_an_interrupted_run_leaves_no_process_and_resumes(tmp_path: Path) -> None:
    def interrupt(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    settings = options("top-k")
    with pytest.raises(KeyboardInterrupt):
        shared(tmp_path / "workers", settings, interrupt)
    assert not relatives()
    folder = (tmp_path / "workers" / "latest").resolve()
    run = RunConfig.read(continued({"resume": str(folder)}))
    run_in_process(run, str, workers=WORKERS)
    outcome = Outcome(InProcessGrid(client_app.app, 1), run, folder)
    assert outcome.summary["resumed"] == [1]
    assert equal(outcome.state().tensors, federate(tmp_path / "one", settings).state().tensors)


@pytest.mark.parametrize("number", [0, 10**6, 1.5, "2"])
def test_more_workers_than_cores_are_refused(number: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"workers = {number!r}: must be a whole number from 1 to"):
        thistledown.simulate(workers=number, output_dir=tmp_path)


def test_replies_do_not_pile_up_and_late_ones_block_nobody() -> None:
    run = RunConfig.read(SMALL)
    with WorkerGrid(run.task, WORKERS, 12) as grid, identity():
        sent = [grid.create_message(RecordDict(), "query.profile", node, "0") for node in grid.get_node_ids()]
        *ids, last = grid.push_messages(sent)
        assert len(answers(grid, ids[0])) == 1
        time.sleep(1.0)  # for others that might come
        assert len(grid.waiting) < (AHEAD + 1) * WORKERS
        for message_id in (last, *ids[1:]):
            assert len(answers(grid, message_id)) == 1
        assert not grid.waiting


def test_a_node_has_one_message_at_a_time() -> None:
    run = RunConfig.read(SMALL)
    with WorkerGrid(run.task, WORKERS, 1) as grid, identity():
        (node,) = grid.get_node_ids()
        (first,) = grid.push_messages([grid.create_message(RecordDict(), "query.profile", node, "0")])
        assert len(answers(grid, first)) == 1
        for worker in workers():
            worker.suspend()
        ids = grid.push_messages(grid.create_message(RecordDict(), "query.profile", node, "0") for _ in range(WORKERS))
        time.sleep(1.0)  # for a second worker that might take one
        assert len(grid._queue) == WORKERS - 1
        for worker in workers():
            worker.resume()
        assert all(len(answers(grid, message_id)) == 1 for message_id in ids)


def answers(grid: WorkerGrid, message_id: str) -> list[Message]:
    """The reply to a message, once it is there."""
    deadline = time.monotonic() + 120
    while not (replies := grid.pull_messages([message_id])) and time.monotonic() < deadline:
        grid.wait(1.0)
    return replies


TEAM = """
import os, scipy.linalg, torch
from thistledown.simulation import template
print(template.can_fork())
if not (child := os.fork()):
    os._exit(0)
os.waitpid(child, 0)
torch.set_num_threads(2)
(torch.ones(500, 500) + 1).sum()
print(template.can_fork())
"""


def test_a_process_with_a_team_of_threads_is_not_forked() -> None:
    """Not even a second time, when the threads of OpenBLAS have stopped: a child would wait for the team forever."""
    script = subprocess.run([sys.executable, "-c", TEAM], capture_output=True, text=True, check=True)
    assert script.stdout.split() == ["True", "False"]


def test_a_new_interpreter_imports_nothing_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "task.py").write_text("raise RuntimeError('a file of the user')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(template, "can_fork", lambda: False)
    started = template.Template([], "cpu")
    try:
        _, pid = started.worker()
        assert psutil.pid_exists(pid)
    finally:
        started.close()
    assert not relatives()


def test_only_its_caller_ends_the_template() -> None:
    """A signal between the end of one worker and of the next would leave the others."""
    started = template.Template([], "cpu")
    ours = [started.worker()]
    (process,) = psutil.Process().children()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    ours.append(started.worker())  # only if the signals have not ended it
    assert len(relatives()) == 1 + len(ours)
    started.close()
    assert not relatives()


SCRIPT = """
import sys, thistledown
from thistledown.simulation import template
print("forks" if template.can_fork() else "starts an interpreter", flush=True)
few = {"simulation.num-supernodes": 3}
thistledown.simulate(workers=2, num_server_rounds=50, output_dir=sys.argv[1], local_steps=1, **few)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_all_processes_of_a_script(number: signal.Signals, tmp_path: Path) -> None:
    """Also one that the script cannot handle."""
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert script.stdout is not None
    lines = iter(script.stdout.readline, "")
    assert next(lines) == "forks\n"
    assert any(line.startswith("round 1/50") for line in lines)
    started = psutil.Process(script.pid).children(recursive=True)
    assert len(started) == 1 + WORKERS
    os.kill(script.pid, number)
    script.communicate(timeout=60)
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive


# ------------------------------------------------------------------------------- the command
@pytest.mark.slow
def test_the_command_has_the_results_of_other_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = options("top-k")
    assert main(["run", "--engine", "local", "-c", written(settings)]) == DONE
    said = capsys.readouterr().out
    assert "round 3/3  accuracy 0." in said
    assert "results in " in said
    folder = (tmp_path / "outputs" / "latest").resolve()
    assert "INFO :      [ROUND 3/3]" in (folder / "run.log").read_text()
    run = RunConfig.read({**SMALL, **settings})
    ours = Outcome(InProcessGrid(client_app.app, 1), run, folder)
    assert_same_run(ours, federate(tmp_path / "one", settings))
    assert main(["run", "--engine", "local", "-c", "resume='latest' num-server-rounds=4"]) == DONE
    assert "INFO :      [ROUND 4/4]" in (folder / "run-2.log").read_text()


def test_the_command_says_why_a_run_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wild = {"tuning": "full", "optimizer": "sgd", "learning-rate": 1e30, "max-failed-rounds": 1}
    wild |= {"simulation.num-cpus": cores()}  # a single node at a time
    assert main(["run", "--engine", "local", "-c", written(wild)]) == FAILED
    said = capsys.readouterr().out
    assert "the run failed: 1 failed rounds in a row, the last because 0 of 3 replies were good" in said
    assert "resume it: thistledown run -c" in said
    log = next(line for line in said.splitlines() if line.startswith("the whole log is in "))
    assert "Traceback" in Path(log.removeprefix("the whole log is in ")).read_text()


def test_another_clone_has_another_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pyproject.toml").write_bytes((app_folder(None) / "pyproject.toml").read_bytes())
    assert main(["run", "--engine", "local", "--app", str(tmp_path)]) == WRONG
    assert f"not {tmp_path}; use --engine ray with --app" in capsys.readouterr().err


def written(settings: dict[str, Any]) -> str:
    return " ".join(f"{key}={value!r}" for key, value in {**SMALL, **settings}.items())
