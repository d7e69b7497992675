"""Run the tests that are marked `judged` with other arithmetic, other seeds and on a busy machine, which is `make
test-everywhere`.

Kernels of other processors give other bits, and so do other numbers of threads; a test must hold with all of them. It
prints a Markdown table, and which tests failed where; the exit code is 1 if any did. A second table has the margins:
the comparisons that came nearest to their bound, measured by how much their distance to it differed between settings.
Some settings, with the tests of some files:

.venv/bin/python tests/everywhere.py --only avx2 tests/test_causal.py tests/test_packing.py
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import margins

TESTS = Path(__file__).parent
ROOT = TESTS.parent
NEAREST = 10  # comparisons in the table of margins
LIBRARIES = {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}  # at most these instructions
KERNELS = {
    "native": {},
    "avx2": LIBRARIES | {"ATEN_CPU_CAPABILITY": "avx2"},
    "default": LIBRARIES | {"ATEN_CPU_CAPABILITY": "default"},
}
BUSY = 2  # loops beside the tests
SEEDS = range(1, 6)
NO_TESTS = 5  # the exit code of pytest where no test has the mark


@dataclass(frozen=True)
class Setting:
    """How tests are run: with variables of the environment, arguments of pytest, and busy loops beside them."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ("-m", "judged")
    loops: int = 0


SETTINGS = [
    *(
        Setting(f"{name}, {threads} thread{'s' * (threads > 1)}", kernels | {"TEST_THREADS": str(threads)})
        for name, kernels in KERNELS.items()
        for threads in (1, 2)
    ),
    Setting(f"{BUSY} busy loops", loops=BUSY),
    *(
        Setting(
            f"seed {seed}",
            {"THISTLEDOWN_TESTS": "fast"},
            ("-m", "fewer and not slow", f"--hypothesis-seed={seed}"),
        )
        for seed in SEEDS
    ),
]


@dataclass(frozen=True)
class Verdict:
    """What pytest said: how many tests held, which failed, which were skipped, how long it took, and the least distance
    to a bound by test and assertion."""

    setting: Setting
    held: int
    failed: tuple[str, ...]
    skipped: int
    seconds: float
    distances: dict[tuple[str, str], float]

    @property
    def line(self) -> str:
        """Return a row of the table."""
        numbers = (self.held, len(self.failed), self.skipped, f"{self.seconds / 60:.0f}")
        return f"| {self.setting.name} | {' | '.join(map(str, numbers))} |"


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep as many cores busy."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for loop in running:
            loop.kill()
            loop.wait()


def run(setting: Setting, jobs: int, files: list[str]) -> Verdict:
    """Run the tests of a setting, those in `files` if any are given. Raises SystemExit if pytest could not run them."""
    with tempfile.TemporaryDirectory() as folder, busy(setting.loops):
        report, found, began = Path(folder) / "report.xml", Path(folder) / "margins", time.monotonic()
        own = {name: value for name, value in os.environ.items() if name != "CI"}  # which fixes hypothesis' examples
        own |= {margins.FILE: str(found), "PYTHONPATH": str(TESTS), "PYTHONDONTWRITEBYTECODE": "1"}
        for compiled in TESTS.rglob("*-pytest-*.pyc"):  # whose assertions do not call the plugin
            compiled.unlink()
        pytest = [sys.executable, "-m", "pytest", "--numprocesses", str(jobs), "--dist", "loadfile"]
        options = ["--no-loadscope-reorder", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = subprocess.run(
            [*pytest, *options, *margins.ARGUMENTS, *setting.arguments, *files],
            cwd=ROOT,
            env=own | setting.environment,
            capture_output=True,
            text=True,
        )
        if done.returncode not in ((0, 1, NO_TESTS) if files else (0, 1)):
            raise SystemExit(f"{setting.name}: pytest ended with {done.returncode}\n{done.stdout}{done.stderr}")
        if done.returncode == 1:
            print(done.stdout, file=sys.stderr)
        return verdict(setting, report, time.monotonic() - began, least_distances(found))


def verdict(setting: Setting, report: Path, seconds: float, distances: dict[tuple[str, str], float]) -> Verdict:
    """Return what a report of pytest says."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = tuple(
        f"{case.get('classname')}::{case.get('name')}" for case in cases if {"failure", "error"} & tags(case)
    )
    skipped = sum("skipped" in tags(case) for case in cases)
    return Verdict(setting, len(cases) - len(failed) - skipped, failed, skipped, seconds, distances)


def least_distances(file: Path) -> dict[tuple[str, str], float]:
    """Return the least distance to a bound by test and assertion, as `margins` has written them down."""
    least: dict[tuple[str, str], float] = {}
    for test, assertion, apart in map(json.loads, file.read_text().splitlines() if file.exists() else ()):
        least[test, assertion] = min(apart, least.get((test, assertion), apart))
    return least


def nearest(verdicts: Sequence[Verdict]) -> list[str]:
    """Return lines for the comparisons whose distance to the bound is smallest beside its spread over settings."""
    lines = {}
    for test, assertion in {key for one in verdicts for key in one.distances}:
        found = [one.distances[test, assertion] for one in verdicts if (test, assertion) in one.distances]
        spread = max(found) - min(found)
        lines[f"| {test} | `{assertion}` | {min(found):.3g} | {spread:.3g} |"] = min(found) / max(spread, 1e-9)
    return sorted(lines, key=lines.__getitem__)[:NEAREST]


def tags(case: ElementTree.Element) -> set[str]:
    return {part.tag for part in case}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="TEXT", help="settings whose names contain it; repeatable")
    parser.add_argument("--jobs", type=int, default=2, help="files at a time")
    parser.add_argument("files", nargs="*", help="files with tests; default: all")
    arguments = parser.parse_args()
    chosen = [setting for setting in SETTINGS if any(text in setting.name for text in arguments.only or [""])]
    if not chosen:
        parser.error(f"--only {' '.join(arguments.only)}: there are {'; '.join(setting.name for setting in SETTINGS)}")
    verdicts = []
    print("| setting | held | failed | skipped | minutes |\n|---|---|---|---|---|", flush=True)
    for setting in chosen:
        verdicts.append(run(setting, arguments.jobs, arguments.files))
        print(verdicts[-1].line, flush=True)
    print("\n| test | comparison | least distance | its spread over settings |\n|---|---|---|---|")
    print("\n".join(nearest(verdicts)), flush=True)
    failures = {test for one in verdicts for test in one.failed}
    for test in sorted(failures):
        print(f"{test} failed with {', '.join(one.setting.name for one in verdicts if test in one.failed)}")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
