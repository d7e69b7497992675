"""The same federation by several simulators: seconds, CPU seconds, memory, and what each reaches.

All train the same rows with the same steps from the same base, in turn, `--times` times: a plain torch loop in two
processes, pfl under torchrun in two processes, an app as Flower's examples write one, and thistledown in three ways. A
round is from one score to the next, the scoring included. The first score that pfl prints is that of round 1, so its
`to_round_0_s` has a round in it. CPU seconds and memory (PSS) are those of the command and all processes below it,
looked at twice a second. pfl is taken if it can be imported; `pip install pfl` without its dependencies of other
frameworks is enough. The last line is JSON, the medians of each way.

    .venv/bin/python -m benchmarks.peers [--case digits] [--times 3] [--only plain,pfl]
    .venv/bin/python -m benchmarks.peers --case minilm --model DIR --data DIR
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import psutil

from benchmarks import machine
from benchmarks.peers.case import write
from benchmarks.start import COMMAND, Processes

PROCESSES = 2
EVERY = 0.5  # seconds between two looks at processes
ROUND = re.compile(r"^round (\d+)\b.*?([01]\.\d+)")  # with its accuracy
CASES: dict[str, dict[str, object]] = {
    "digits": {"num-server-rounds": 15, "examine-rows": 0},
    "minilm": {
        "task.kind": "text-classification", "num-server-rounds": 4, "examine-rows": 0, "local-steps": 8,
        "lora.targets": "all-linear", "data.max-length": 64, "data.train-rows": 1600, "data.validation-rows": 200,
        "data.test-rows": 200,
    },
}  # fmt: skip
FULL: dict[str, object] = {"tuning": "full", "learning-rate": 0.0001}
PROGRAM = "import sys, json, thistledown; thistledown.simulate(workers={workers}, **json.loads(sys.argv[1]))"


@dataclass(frozen=True)
class Found:
    """What one way took and reached: seconds, bytes, accuracy."""

    whole_s: float
    to_round_0_s: float
    round_s: float
    cpu_s: float
    peak_pss: int
    accuracy: float


def commands(folder: Path, values: Mapping[str, object]) -> dict[str, list[str]]:
    """Return the command of each way for the case in a folder."""
    keys = " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
    own = values | {"output_dir": str(folder / "simulate")}
    run = [COMMAND, "run", "-c", f"{keys} output-dir='{folder / 'run'}'"]
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    found = {
        "plain": [sys.executable, "-m", "benchmarks.peers.plain", str(folder), "--processes", str(PROCESSES)],
        "pfl": [torchrun, f"--nproc_per_node={PROCESSES}", "-m", "benchmarks.peers.by_pfl", str(folder)],
        "flower app": [sys.executable, "-m", "benchmarks.peers.by_flower", str(folder)],
        "simulate": [sys.executable, "-c", PROGRAM.format(workers=PROCESSES), json.dumps(own)],
        "run --engine local": [*run, "--engine", "local"],
        "run": run,
    }
    return found if find_spec("pfl") else {name: one for name, one in found.items() if name != "pfl"}


def measured(name: str, command: list[str], rounds: int) -> Found:
    """Run a way and return what it took. Raises RuntimeError if it fails."""
    processes, lines, at = Processes(), list[str](), dict[int, tuple[float, float]]()
    began = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as running:

        def read() -> None:
            assert running.stdout is not None
            for line in running.stdout:
                lines.append(line)
                if found := ROUND.match(line):
                    at[int(found[1])] = time.monotonic(), float(found[2])

        reader = threading.Thread(target=read)
        reader.start()
        watched = psutil.Process(running.pid)
        while running.poll() is None:
            processes.look(watched)
            time.sleep(EVERY)
        over = time.monotonic()
        reader.join()
    if running.returncode or rounds not in at:
        raise RuntimeError(f"{name}: exit code {running.returncode}\n{''.join(lines)[-3000:]}")
    times = [at[number][0] for number in sorted(at)]
    each = statistics.median(end - start for start, end in pairwise(times))
    cpu = sum(processes.cpu.values())
    return Found(over - began, times[0] - began, each, cpu, processes.peak, at[rounds][1])


def case_of(own: argparse.Namespace) -> dict[str, object]:
    """Return the run-config values of the case that the command line asks for."""
    values = CASES[own.case] | (FULL if own.full else {})
    if own.case == "minilm":
        values |= {"model.name": str(own.model.resolve()), "data.name": str(own.data.resolve())}
    return values | ({"num-server-rounds": own.rounds} if own.rounds else {})


def main() -> None:
    """Measure each way in turn, and print every run and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=tuple(CASES), default="digits")
    parser.add_argument("--full", action="store_true", help="tune all weights in place of a LoRA of rank 8")
    parser.add_argument("--model", type=Path, help="a folder with MiniLM, for --case minilm")
    parser.add_argument("--data", type=Path, help="a folder with AG News, for --case minilm")
    parser.add_argument("--rounds", type=int, default=0, help="default: those of the case")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    own = parser.parse_args()
    if own.case == "minilm" and not (own.model and own.data):
        parser.error("--case minilm needs --model DIR and --data DIR")
    values = case_of(own)
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        case = write(values, Path(scratch))
        ways = commands(Path(scratch), values)
        if unknown := set(own.only) - set(ways):
            parser.error(f"--only {', '.join(sorted(unknown))}: there are {', '.join(ways)}")
        found: dict[str, list[Found]] = {}
        for _ in range(own.times):
            for name, command in ways.items():
                if not own.only or name in own.only:
                    found.setdefault(name, []).append(measured(name, command, case.rounds))
                    shown = (f"{key} {value:,.2f}" for key, value in asdict(found[name][-1]).items())
                    print(f"{name:18}", "  ".join(shown), flush=True)
    print(
        json.dumps({"on": machine.described(), "case": values} | {name: medians(runs) for name, runs in found.items()})
    )


def medians(runs: list[Found]) -> dict[str, float]:
    """Return the median of every number over runs."""
    rows = [asdict(run) for run in runs]
    return {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}


if __name__ == "__main__":
    main()
