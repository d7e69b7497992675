"""What a short simulation costs beside its rounds: from the command to round 0, and from the last round to the prompt.

The embedded digits, by `thistledown run` on Ray, by `thistledown run --engine local`, and by `simulate` in a fresh
interpreter, in one process and in workers; one after another, `--times` times. Round 0 is the score of the untrained
model: training begins when it is written. CPU seconds and memory (PSS) are those of the command and all processes below
it, looked at twice a second, so what lives shorter is missed. The last line is JSON, the medians of each way.

    .venv/bin/python -m benchmarks.start [--times 3] [--rounds 3] [--only local,workers]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from benchmarks import machine
from task.device import cores

EVERY = 0.05  # seconds between two looks at metrics.jsonl
LOOKS = 10  # looks at metrics.jsonl between two at processes
COMMAND = str(Path(sys.executable).with_name("thistledown"))
PROGRAM = "import thistledown; thistledown.simulate(num_server_rounds={rounds}, workers={workers}, output_dir={to!r})"


@dataclass(frozen=True)
class Found:
    """What one run took: seconds, bytes."""

    to_round_0_s: float
    rounds_s: float
    to_prompt_s: float
    cpu_s: float
    peak_pss: int


@dataclass
class Processes:
    """CPU seconds and the largest memory of a process and all below it."""

    cpu: dict[int, float] = field(default_factory=dict)
    peak: int = 0

    def look(self, process: psutil.Process) -> None:
        """Look at all of them once."""
        now = 0
        with suppress(psutil.Error):
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.Error):
                    times = one.cpu_times()
                    self.cpu[one.pid] = times.user + times.system
                    now += one.memory_full_info().pss
        self.peak = max(self.peak, now)


def commands(rounds: int, to: Path) -> dict[str, list[str]]:
    """Return the command of each way, whose results go below `to`."""
    keys = f"num-server-rounds={rounds} output-dir='{to}'"
    many = max(2, cores())
    return {
        "ray": [COMMAND, "run", "-c", keys],
        "local": [COMMAND, "run", "--engine", "local", "-c", keys],
        "simulate": [sys.executable, "-c", PROGRAM.format(rounds=rounds, workers=1, to=str(to))],
        "workers": [sys.executable, "-c", PROGRAM.format(rounds=rounds, workers=many, to=str(to))],
    }


def measured(way: str, rounds: int) -> Found:
    """Run a way and return what it took. Raises RuntimeError if it fails."""
    with tempfile.TemporaryDirectory(prefix="start-") as scratch:
        lines, processes = Path(scratch, "latest", "metrics.jsonl"), Processes()
        began, at, looks = time.monotonic(), list[float](), 0
        with subprocess.Popen(
            commands(rounds, Path(scratch))[way], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as running:
            watched = psutil.Process(running.pid)
            while running.poll() is None:
                there = lines.read_text().count("\n") if lines.exists() else 0
                at += [time.monotonic()] * (there - len(at))
                if looks % LOOKS == 0:
                    processes.look(watched)
                looks += 1
                time.sleep(EVERY)
            over = time.monotonic()
            said, _ = running.communicate()
        if running.returncode or len(at) != rounds + 1:
            raise RuntimeError(f"{way}: exit code {running.returncode}\n{said[-3000:]}")
    return Found(at[0] - began, at[-1] - at[0], over - at[-1], sum(processes.cpu.values()), processes.peak)


def medians(runs: list[Found]) -> dict[str, float]:
    """Return the median of every number over runs."""
    rows = [asdict(run) for run in runs]
    return {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}


def main() -> None:
    """Measure each way in turn, and print every run and the medians."""
    names = list(commands(1, Path()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=names, help=", ".join(names))
    own = parser.parse_args()
    found: dict[str, list[Found]] = {}
    for _ in range(own.times):
        for way in own.only:
            run = measured(way, own.rounds)
            found.setdefault(way, []).append(run)
            print(f"{way:9}", "  ".join(f"{name} {value:,.1f}" for name, value in asdict(run).items()), flush=True)
    print(json.dumps({"on": machine.described(), **{way: medians(runs) for way, runs in found.items()}}))


if __name__ == "__main__":
    main()
