"""What the command shows of a run: of its log, and of metrics.jsonl as it grows."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from server_app.results.measure import measure_of
from task.config import TaskConfig
from thistledown.bar import bar, sparkline, state
from thistledown.console import ANSI, Console
from thistledown.rounds import Rounds

GOOD = """\
Using SuperLink: simulation (127.0.0.1:44017)
Successfully started run 491138605137914210
\x1b[92mINFO \x1b[0m:      Starting logstream for run_id `491138605137914210`
\x1b[92mINFO \x1b[0m:      Starting Flower Simulation
\x1b[93mWARNING \x1b[0m:   Since flwr 1.32, default simulated SuperNodes changed from 10 to 2.
\x1b[92mINFO \x1b[0m:      Federation `@none/default` (2 simulated SuperNodes)
\x1b[92mINFO \x1b[0m:      To change federation size, use the following command:
\x1b[92mINFO \x1b[0m:      \tflwr federation simulation-config @none/default <superlink> --num-supernodes <N>
Successfully installed thistledown to /tmp/home/apps/thistledown.thistledown.0.1.0.607c2ace.
\x1b[92mINFO \x1b[0m:      results go to /home/me/outputs/20261121-021209-fedavg
\x1b[92mINFO \x1b[0m:      preparing data 'digits'
\x1b[92mINFO \x1b[0m:      node   rows      0     1     2     3     4     5     6     7     8     9
\x1b[92mINFO \x1b[0m:         0    385     74     3    29    53    51    16    74     .    48    37
\x1b[92mINFO \x1b[0m:         1    365      1    73    45    24    24    60     1    74    25    38
Writing model shards:   0%|          | 0/1 [00:00<?, ?it/s]\rWriting model shards: 100%|##########| 1/1
\x1b[92mINFO \x1b[0m:      Starting fedavg: strategy=fedavg
\x1b[92mINFO \x1b[0m:      preparing data 'digits'
\x1b[92mINFO \x1b[0m:      offered the base 'embedded' to 1 stores that lack it (554497 bytes each)
/lib/transformers/modeling_utils.py:3303: FutureWarning: `is_gradient_checkpointing` is deprecated.
  warnings.warn(
\x1b[92mINFO \x1b[0m:      round 0/2  accuracy 0.118  loss 5.247  (before training)
\x1b[92mINFO \x1b[0m:      [ROUND 1/2]
\x1b[92mINFO \x1b[0m:      configure_train: Sampled 2 nodes (out of 2)
\x1b[36m(ClientAppActor pid=6054)\x1b[0m /lib/modeling_utils.py:3303: FutureWarning: `is_gradient_checkpointing`
\x1b[36m(ClientAppActor pid=6054)\x1b[0m   warnings.warn(
\x1b[92mINFO \x1b[0m:      aggregate_train: Received 2 results and 0 failures
\x1b[92mINFO \x1b[0m:      round 1/2  accuracy 0.273  loss 2.331  up 237.0 kB  down 237.5 kB  9.5 s  ETA 0:10
\x1b[92mINFO \x1b[0m:      finished in 48 s, results in /home/me/outputs/20261121-021209-fedavg
\x1b[92mINFO \x1b[0m:     \x20
"""

CLIENT_ERROR = """\
\x1b[91mERROR \x1b[0m:     An exception was raised when processing a message by RayBackend
\x1b[91mERROR \x1b[0m:     \x1b[36mray::ClientAppActor.run()\x1b[39m (pid=8148, ip=192.0.2.2, actor_id=221062d9950a)
                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/apps/thistledown/client_app/local.py", line 151, in _share
    raise NodeError("data.partitioner = 'none', but the node config has no data-path")
client_app.public_errors.NodeError: data.partitioner = 'none', but the node config has no data-path

The above exception was the direct cause of the following exception:

\x1b[36mray::ClientAppActor.run()\x1b[39m (pid=8148, ip=192.0.2.2, actor_id=221062d9950a)
    raise ClientAppException(str(ex)) from ex
flwr.clientapp.client_app.ClientAppException:\x20
Exception ClientAppException occurred. Message: data.partitioner = 'none', but the node config has no data-path
\x1b[91mERROR \x1b[0m:     Traceback (most recent call last):
  File "/lib/flwr/server/superlink/fleet/vce/vce_api.py", line 132, in worker
    out_mssg, updated_context = backend.process_message(message, context)
                                ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
ray.exceptions.RayTaskError(ClientAppException): \x1b[36mray::ClientAppActor.run()\x1b[39m (pid=8148)
  File "/apps/thistledown/client_app/local.py", line 151, in _share
    raise NodeError("data.partitioner = 'none', but the node config has no data-path")
client_app.public_errors.NodeError: data.partitioner = 'none', but the node config has no data-path

The above exception was the direct cause of the following exception:

\x1b[36mray::ClientAppActor.run()\x1b[39m (pid=8148, ip=192.0.2.2, actor_id=221062d9950a)
    raise ClientAppException(str(ex)) from ex
flwr.clientapp.client_app.ClientAppException:\x20
Exception ClientAppException occurred. Message: data.partitioner = 'none', but the node config has no data-path

"""

SERVER_ERROR = """\
\x1b[91mERROR \x1b[0m:     the run failed: none of 2 nodes can take part; node error 2: no data-path
\x1b[91mERROR \x1b[0m:     Simulation raised an exception
Traceback (most recent call last):
  File "/lib/flwr/simulation/app.py", line 337, in run_simulation_process
    simulation_result = _run_simulation(
                        ^^^^^^^^^^^^^^^^
strategies.exchange.types.RunFailed: none of 2 nodes can take part; node error 2: no data-path
\x1b[91mERROR \x1b[0m:     Exit Code: 700

An unhandled exception occurred when running the simulation.

For more information, visit: <https://flower.ai/docs/framework/1.41/en/ref-exit-codes/700.html>
"""


def shown(log: str, console: Console) -> list[str]:
    lines = [line for text in log.splitlines() for line in console.read(text)]
    return lines + console.end()


def test_console_shows_what_matters_of_a_good_run() -> None:
    console = Console()
    assert shown(GOOD, console) == [
        "starting Ray (takes a while the first time)",
        "results go to /home/me/outputs/20261121-021209-fedavg",
        "preparing data 'digits'",
        "offered the base 'embedded' to 1 stores that lack it (554497 bytes each)",
    ]
    assert console.run_id == "491138605137914210"
    assert console.folder == "/home/me/outputs/20261121-021209-fedavg"


def test_console_shows_an_error_once_and_counts_it() -> None:
    console = Console()
    said = "error: NodeError: data.partitioner = 'none', but the node config has no data-path"
    assert shown(CLIENT_ERROR * 10 + SERVER_ERROR, console) == [said, f"10 times in all: {said}"]
    assert console.cause == "RunFailed: none of 2 nodes can take part; node error 2: no data-path"


def test_an_error_is_shown_with_its_list_of_problems() -> None:
    """A header alone helps nobody."""
    listed = "task.schema.ConfigError: 2 problems in the configuration:\n  - one thing\n  - another"
    said = SERVER_ERROR.replace(
        "strategies.exchange.types.RunFailed: none of 2 nodes can take part; node error 2: no data-path", listed
    )
    console = Console()
    shown(said, console)
    assert console.cause == "ConfigError: 2 problems in the configuration:\n  - one thing\n  - another"


def test_console_counts_warnings_that_differ_by_numbers() -> None:
    warnings = "".join(f"WARNING :   left out node {number}: node error 2: no rows\n" for number in range(200))
    lines = shown(warnings, Console())
    assert lines[:2] == [f"warning: left out node {number}: node error 2: no rows" for number in range(2)]
    assert len(lines) == 6
    assert lines[-1].startswith("200 times in all: warning: left out node ")


def test_verbose_console_shows_everything_without_colours() -> None:
    lines = shown(CLIENT_ERROR, Console(verbose=True))
    assert len(lines) == len(CLIENT_ERROR.splitlines())
    assert lines[1].startswith("ERROR :     ray::ClientAppActor.run() (pid=8148")


TITLES = measure_of(TaskConfig()).titles


def line(number: int, **more: Any) -> str:
    quality = {"accuracy": 0.1 + number / 10, "loss": 2.0, "train-loss": None if number == 0 else 1.0}
    return json.dumps({"round": number, **quality, "bytes_up": 10, "bytes_down": 20, "seconds": 4.0, **more}) + "\n"


def test_rounds_are_said_as_their_lines_come(tmp_path: Path) -> None:
    rounds, metrics = Rounds(TITLES, 2), tmp_path / "metrics.jsonl"
    assert list(rounds.new(tmp_path)) == []
    (tmp_path / "summary.json").write_text('{"status": "running"}')
    assert list(rounds.new(tmp_path)) == []
    metrics.write_text(line(0) + line(1)[:20])  # half of it is there
    assert list(rounds.new(tmp_path)) == ["round 0/2  accuracy 0.100  loss 2.000  (before training)"]
    metrics.write_text(line(0) + line(1))
    [said] = rounds.new(tmp_path)
    assert said.startswith("round 1/2  accuracy 0.200  loss 2.000  train loss 1.000  up 10 B  down 20 B  4.0 s  ETA 0:")
    assert list(rounds.new(tmp_path)) == []
    metrics.write_text(line(0) + line(1) + line(2))
    (tmp_path / "summary.json").write_text('{"status": "completed"}')
    [said] = rounds.new(tmp_path, ended=True)
    assert said.endswith("ETA 0:00")


# ------------------------------------------------------------------------------- the line at the bottom
class Terminal(io.TextIOWrapper):
    """A terminal that remembers what it gets."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self.got = io.BytesIO()
        super().__init__(self.got, encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_below_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    nodes = [{"node": "north", "refused": ""}, {"node": "south", "refused": "too late"}]
    lines = [json.loads(line(number, nodes=nodes, resting=["west"])) for number in range(3)]
    with bar(3) as below:
        for number in range(3):
            print(f"line {number}")
            below.show(lines[: number + 1], "accuracy", 65.0)
    said = ANSI.sub("", terminal.got.getvalue().decode())
    assert all(f"line {number}\n" in said for number in range(3))
    assert "round 2/3" in said
    assert "▁▄█ accuracy 0.300  90 B  ETA 1:05  missing: south, west" in said


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("", "")])
def test_plain_lines_where_they_are_wanted(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a variable, or because the terminal has no such signs."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    if name:
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal("utf-8" if name else "ascii"))
    with bar(3) as below:
        print("line")
        below.show([json.loads(line(1))], "accuracy", 0.0)
    assert terminal.got.getvalue() == b"line\n"


def test_nobody_knows_how_long_rounds_take_before_the_first() -> None:
    lines = [json.loads(line(number, nodes=[], resting=[])) for number in range(2)]
    assert state(lines[:1], "accuracy", 0.0) == "▅ accuracy 0.100  30 B"
    assert state(lines, "accuracy", 5.0) == "▁█ accuracy 0.200  60 B  ETA 0:05"


def test_a_sparkline_goes_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0.0, 0.5, 1.0, 0.25]) == "▁▅█▃"
    assert sparkline([2.0, 2.0]) == "▅▅"


def test_rounds_of_an_earlier_process_are_not_said(tmp_path: Path) -> None:
    """Round 2 was written and not kept: it is cut off, and done again, once the next process is at work."""
    rounds, metrics = Rounds(TITLES, 2, first=2), tmp_path / "metrics.jsonl"
    (tmp_path / "summary.json").write_text('{"status": "interrupted"}')
    metrics.write_text(line(0) + line(1) + line(2, loss=9.0))
    assert list(rounds.new(tmp_path)) == []
    metrics.write_text(line(0) + line(1))
    (tmp_path / "summary.json").write_text('{"status": "running"}')
    assert list(rounds.new(tmp_path)) == []
    metrics.write_text(line(0) + line(1) + line(2))
    [said] = rounds.new(tmp_path)
    assert "loss 2.000" in said
