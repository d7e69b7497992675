"""Several processes that run the jobs of a comparison, with progress and an estimate of what is left."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from server_app.results.amounts import clock
from thistledown.comparison import work
from thistledown.comparison.jobs import Job

SPAWN = get_context("spawn")  # forked threads of torch would hang


class Worker:
    """A process, and the job that it runs, if any."""

    def __init__(self) -> None:
        self.connection, theirs = SPAWN.Pipe()
        self.process: BaseProcess = SPAWN.Process(target=work.serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.began = 0.0

    def begin(self, job: Job) -> None:
        """Start a job."""
        self.job, self.began = job, time.monotonic()
        self.connection.send(job)

    def result(self) -> str:
        """Return what the process answered; why it died, if it did."""
        try:
            return str(self.connection.recv())
        except (EOFError, ConnectionResetError):  # the latter if it had not read its job
            self.process.join()
            return f"its process ended with exit code {self.process.exitcode}; if it was killed, memory ran out"

    def end(self) -> None:
        """End the process; its run is marked as interrupted."""
        self.process.terminate()
        self.process.join()
        self.connection.close()


class Progress:
    """What is done, and how long the rest will take at the pace of runs of its kind."""

    def __init__(
        self, jobs: Sequence[Job], at_once: int, scored: Callable[[Job], str], say: Callable[[str], None]
    ) -> None:
        self._left, self._at_once, self._scored, self._say = list(jobs), at_once, scored, say
        self._total, self._seconds = len(jobs), dict[str, list[float]]()

    def over(self, job: Job, seconds: float, problem: str) -> None:
        """Print a line for a job that ended."""
        self._left.remove(job)
        self._seconds.setdefault(job.kind, []).append(seconds)
        done = self._total - len(self._left)
        left = f", ETA {clock(self._eta())}" if self._left else ""
        self._say(f"[{done}/{self._total}] {job.title}: {problem or self._scored(job)}, {seconds:.0f} s{left}")

    def _eta(self) -> float:
        every = statistics.mean(second for own in self._seconds.values() for second in own)
        return sum(statistics.mean(self._seconds.get(job.kind, [every])) for job in self._left) / self._at_once


def run_all(jobs: Sequence[Job], at_once: int, progress: Progress) -> dict[Job, str]:
    """Run jobs in `at_once` processes. Return why jobs could not run. No process stays, however it ends."""
    queue, workers, problems = deque(jobs), list[Worker](), dict[Job, str]()
    try:
        while queue or any(worker.job for worker in workers):
            while queue and len(workers) < at_once:
                workers.append(Worker())
            for worker in workers:
                if worker.job is None and queue:
                    worker.begin(queue.popleft())
            busy: dict[Connection, Worker] = {worker.connection: worker for worker in workers if worker.job}
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                assert worker.job is not None
                problem = worker.result()
                if problem:
                    problems[worker.job] = problem
                progress.over(worker.job, time.monotonic() - worker.began, problem)
                worker.job = None
                if not worker.process.is_alive():
                    workers.remove(worker)
    finally:
        for worker in workers:
            worker.end()
    return problems
