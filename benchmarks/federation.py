"""One federation in its own process: `thistledown run`, and its results as lists by round."""

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.study import Measured, Run

ROOT = Path(__file__).parent.parent  # where relative paths of a run's options begin
COMPLETED, FAILED = 0, 3  # exit codes of `thistledown run` that say something about the method
BY_ROUND = (
    "accuracy",
    "chosen-by",
    "loss",
    "aggregation-error",
    "bytes_up",
    "bytes_down",
    "parameters_up",
    "parameters_down",
)
COMMAND = str(Path(sys.executable).with_name("thistledown"))
ENGINES = ("ray", "local")  # of `thistledown run`; they give the same bits
DIGITS = 6  # decimals that are kept
BULKY = ("model", "checkpoints")


class NotMeasured(RuntimeError):
    """A federation that ended before its first round, which says nothing about a method."""


class Federation:
    """A running federation with `cpus` CPUs per node, so that parallel jobs have cores too, on an engine of
    `thistledown run`."""

    def __init__(self, run: Run, outputs: Path, cpus: int, engine: str = "ray") -> None:
        self.run, self.folder = run, outputs
        self.began = time.monotonic()
        place = ["-c", f"output-dir='{outputs}' simulation.num-cpus={cpus}"]
        outputs.mkdir(parents=True)
        self._said, self._results = outputs / "said.txt", outputs / "latest"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [COMMAND, "run", "--engine", engine, *run.arguments, *place],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def over(self) -> bool:
        """Return whether the process ended."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """End the process and everything it started."""
        self._process.terminate()
        self._process.wait()

    def measured(self) -> Measured:
        """Return the measurements. Raises NotMeasured for a run that was stopped, refused or did not begin."""
        said = self._said.read_text(encoding="utf-8", errors="replace")
        metrics = self._results / "metrics.jsonl"
        if self._process.returncode not in (COMPLETED, FAILED) or not metrics.exists():
            raise NotMeasured(f"exit code {self._process.returncode} of thistledown run:\n{said[-3000:]}")
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        summary = json.loads((self._results / "summary.json").read_text(encoding="utf-8"))
        error = summary.get("error") or _not_finite(lines)
        if self._process.returncode == FAILED and not error:
            raise NotMeasured(f"a failed run without a cause:\n{said[-3000:]}")
        seconds = round(time.monotonic() - self.began, 1)
        about = {"error": error, "seconds": seconds, "on": machine.described()}
        written = {"generations": _rounded(summary["generations"])} if "generations" in summary else {}
        return {**about, **{name: _by_round(lines, name) for name in BY_ROUND}, **written}

    def clear(self, *, everything: bool) -> None:
        """Remove the results: everything, or only the models."""
        for path in [self.folder] if everything else [self._results / name for name in BULKY]:
            shutil.rmtree(path, ignore_errors=True)  # a run that failed early has no model


def _by_round(lines: list[dict[str, Any]], name: str) -> list[float | None]:
    """Return the value of every round, round 0 first; None if it is not finite or does not apply."""
    values = [
        line["aggregation-error"].get("overall") if name == "aggregation-error" else line.get(name) for line in lines
    ]
    return [round(v, DIGITS) if v is not None and math.isfinite(v) else None for v in values]


def _rounded(generations: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {state: {name: round(value, DIGITS) for name, value in own.items()} for state, own in generations.items()}


def _not_finite(lines: list[dict[str, Any]]) -> str:
    broken = [line["round"] for line in lines if not math.isfinite(line.get("loss", 0.0))]
    return f"the loss is not finite from round {broken[0]} on" if broken else ""
