"""Run what a study declares and has not measured yet, a few federations at a time, and write its page.

The JSON file is written after every run, so an interrupted study goes on where it stopped. Exit codes: 0 done, 1 a
federation did not begin, 2 something is missing or wrong in what is asked, 130 interrupted.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks import pages, records
from benchmarks.federation import ENGINES, ROOT, Federation, NotMeasured
from benchmarks.study import Measured, Run, Study, run_of
from task.device import cores

DONE, BROKEN, WRONG, INTERRUPTED = 0, 1, 2, 130
PAUSE = 0.5  # seconds between looks at the federations


def main(study: Study, prepare: Callable[[], None] = lambda: None) -> int:
    """Run the study by the process's command line and return the exit code; `prepare` makes what its runs read."""
    arguments = _parser(study).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave through `finally`, as on Ctrl-C
    jobs = arguments.jobs
    if not 1 <= jobs <= cores():
        return _refused(f"--jobs {jobs}: this process may use {cores()} cores, and every job needs one")
    try:
        chosen = selected(study, arguments.only)
    except ValueError as error:
        return _refused(str(error))
    prepare()
    if problems := missing(chosen) or refused(chosen):
        return _refused("\n".join(problems))
    path = records.RESULTS / f"{study.name}.json"
    try:
        with tempfile.TemporaryDirectory(prefix="results-") as scratch:
            progress = Progress(study, chosen, path, arguments.engine)
            progress.run(jobs, arguments.outputs or Path(scratch), keep=bool(arguments.outputs))
    except NotMeasured as error:
        print(error, file=sys.stderr)
        return BROKEN
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept", file=sys.stderr)
        return INTERRUPTED
    finally:
        pages.write(path)  # of a study that stopped half-way too: page and numbers always agree
    print(f"written: {path} and {path.with_suffix('.md')}")
    return DONE


def selected(study: Study, names: list[str]) -> Study:
    """Return the study with only the named settings or methods; no names: all. Raises ValueError for unknown ones."""
    settings = {setting.name for setting in study.settings}
    methods = {method.name for _, method in study.contests()}
    if strange := [name for name in names if name not in settings | methods]:
        raise ValueError(
            f"--only {','.join(strange)}: there are {', '.join(sorted(settings))}, {', '.join(sorted(methods))}"
        )
    settings, methods = settings & set(names) or settings, methods & set(names) or methods
    left = [
        replace(setting, methods=tuple(method for method in setting.methods if method.name in methods))
        for setting in study.settings
        if setting.name in settings
    ]
    return replace(study, settings=tuple(left))


def missing(study: Study) -> list[str]:
    """Return what is missing."""
    return [
        f"setting {setting.name} needs {asset}, and there is no {ROOT / asset}"
        for setting in study.settings
        for asset in setting.assets
        if not (ROOT / asset).exists()
    ]


def refused(study: Study) -> list[str]:
    """Return what `thistledown run` would refuse, and splits that fail with some seed, before hours are spent."""
    runs = [
        run_of(setting, method, seed, setting.declared(method)[0])
        for setting, method in study.contests()
        for seed in study.seeds
        if seed == study.seeds[0] or method is setting.methods[0]
    ]
    return [f"{run.setting}, {run.method}, seed {run.seed}: {problem}" for run in runs for problem in _problems(run)]


def _problems(run: Run) -> list[str]:
    from task.data.partition import partition
    from task.data.partitioners.base import SplitError
    from task.data.prepared import DataError, data_index
    from task.schema import ConfigError
    from task.storage.store import server_store
    from thistledown.settings import Settings

    try:
        config, store = Settings.read(ROOT, run.preset or None, [run.arguments[-1]], ROOT).config, server_store()
        partition(config.task, data_index(config.task, store), config.server.simulation.num_supernodes, store)
    except ConfigError as error:
        return error.problems
    except (DataError, SplitError) as error:
        return [str(error)]
    return []


class Progress:
    """The progress of the part `chosen` of a study: what is measured, what is next, and how long it will take."""

    def __init__(self, study: Study, chosen: Study, path: Path, engine: str) -> None:
        self.study, self.chosen, self.path, self.engine = study, chosen, path, engine
        self.done: dict[str, Measured] = records.load(path)
        self.ran = 0  # federations of this call
        self._running: list[Federation] = []

    def run(self, jobs: int, outputs: Path, *, keep: bool) -> None:
        """Run until nothing is left. No federation keeps running, however it ends. Raises NotMeasured."""
        records.save(self.path, self.study, self.done)
        try:
            while (pending := self._pending()) or self._running:
                for run in pending[: jobs - len(self._running)]:
                    self.ran += 1
                    folder = outputs / f"{time.strftime('%Y%m%d-%H%M%S')}-{self.ran}-{run.setting}-{run.method}"
                    self._running.append(Federation(run, folder.absolute(), jobs, self.engine))
                time.sleep(PAUSE)
                for federation in [federation for federation in self._running if federation.over()]:
                    self._keep(federation, jobs)
                    federation.clear(everything=not keep)
        finally:
            for federation in self._running:
                federation.stop()

    def _pending(self) -> list[Run]:
        """Return the runs that can be started."""
        started = {federation.run.key for federation in self._running}
        return [run for run in self.chosen.runs(self.done) if run.key not in self.done and run.key not in started]

    def _keep(self, federation: Federation, jobs: int) -> None:
        self._running.remove(federation)
        run, measured = federation.run, federation.measured()
        self.done[run.key] = measured
        records.save(self.path, self.study, self.done)
        got = f"failed: {measured['error']}" if measured["error"] else _quality(self.study, run, measured)
        count, left = self._left(jobs)
        print(
            f"[{count}/{self.chosen.size}] {run.setting} {run.method} seed {run.seed} rate {run.rate:g}: "
            f"{got}, {measured['seconds']:.0f} s, ETA {left // 3600:.0f}:{left // 60 % 60:02.0f}",
            flush=True,
        )

    def _left(self, jobs: int) -> tuple[int, float]:
        """Return how many runs are done, and the seconds that the others take at the pace of their setting."""
        total, count, every = 0.0, 0, self._seconds(self.chosen, self.done)
        for setting in self.chosen.settings:
            alone = replace(self.chosen, settings=(setting,))
            seconds = self._seconds(alone, self.done)
            count += len(seconds)
            known = seconds or every
            total += (alone.size - len(seconds)) * sum(known) / len(known)
        return count, total / jobs

    @staticmethod
    def _seconds(study: Study, done: Mapping[str, Measured]) -> list[float]:
        return [done[run.key]["seconds"] for run in study.runs(done) if run.key in done]


def _parser(study: Study) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{study.name.replace('-', '_')}", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="federations at a time (default: 1)")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=[], help="settings or methods to run, separated by commas"
    )
    parser.add_argument("--engine", choices=ENGINES, default="ray", help="of `thistledown run`")
    parser.add_argument("--outputs", type=Path, help="keep the results folders of the runs here, without their models")
    return parser


def _quality(study: Study, run: Run, measured: Measured) -> str:
    metric = next(setting.metric for setting in study.settings if setting.name == run.setting)
    return f"{metric} {measured[metric][-1]:.3f}"


def _refused(text: str) -> int:
    print(text, file=sys.stderr)
    return WRONG
