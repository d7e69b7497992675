"""Peak memory of a node's process as a multiple of the model's weights, beside a plain loop: LoRA, full tuning, Ferret.

A Llama with random weights (`--model`, see `benchmarks.large`) is trained for a round by two nodes, which one process
serves in turn, and by `benchmarks.plain_loop`. What each process has beyond the same on a model of 24 million
parameters is divided by the bytes of the weights, so libraries do not count. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Thread
from typing import Any

from benchmarks import large

FLOAT = "float32"


@contextmanager
def watched(pid: int) -> Iterator[list[int]]:
    """Yield a list of what a process has in memory (Pss, bytes), which grows within this block."""
    seen, over = [0], Event()

    def look() -> None:
        with suppress(OSError, KeyError):  # the process has ended
            while not over.wait(large.EVERY):
                seen.append(large.memory(pid)["Pss"])

    thread = Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def plain_peak(base: Path, strategy: str) -> int:
    """Return the most memory that the plain loop has. Raises RuntimeError if it fails."""
    command = [sys.executable, "-m", "benchmarks.plain_loop", str(base), "--strategy", strategy]
    with (
        subprocess.Popen(command, cwd=large.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as running,
        watched(running.pid) as seen,
    ):
        said, _ = running.communicate()
    if running.returncode:
        raise RuntimeError(said.decode()[-3000:])
    return max(seen)


def serve(connection: "Connection[Any, Any]") -> None:
    """Answer messages as a worker of `--engine local` does, until there are no more."""
    from thistledown.simulation import worker

    worker.serve(connection)


def node_peak(folder: Path, strategy: str) -> int:
    """Run the federation; return the most memory that the nodes' process has."""
    import client_app
    from server_app.config import RunConfig
    from server_app.main import federate
    from thistledown.settings import placed
    from thistledown.simulation import frames
    from thistledown.simulation.grid import InProcessGrid, identity

    os.environ["THISTLEDOWN_CACHE"] = str(folder / "cache")
    settings = large.settings_of(folder, strategy, "none", FLOAT)
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()

    class Apart(InProcessGrid):
        """A grid whose nodes are in another process."""

        def delivered(self, message: Any) -> Any:
            frames.send(ours, message, self.contexts[message.metadata.dst_node_id])
            reply, context, _ = frames.receive(ours)
            self.contexts[context.node_id] = context
            return reply

    process = spawning.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # so that a read ends if the process does
    with watched(process.pid or 0) as seen, identity():
        federate(Apart(client_app.app, 2), RunConfig.read(placed(settings, Path.cwd())))
    ours.close()
    process.join()
    return max(seen)


def measured(size: str, strategy: str) -> dict[str, int]:
    """Return the bytes of a model's weights, and the peaks of the plain loop and of a node's process."""
    with tempfile.TemporaryDirectory(prefix="memory-") as scratch:
        folder = Path(scratch)
        weights = large.write_base(folder / "base", size, FLOAT)
        large.write_rows(folder / "rows.jsonl")
        plain = plain_peak(folder / "base", strategy)
        return {"weights": weights, "plain": plain, "node": node_peak(folder, strategy)}


def main() -> None:
    """Measure every strategy on the small model and on the large one; print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="125m", choices=[size for size in large.SIZES if size != large.SMALL])
    parser.add_argument("--strategies", nargs="+", default=list(large.STRATEGIES), choices=tuple(large.STRATEGIES))
    own = parser.parse_args()
    found: dict[str, object] = {"model": own.model}
    for strategy in own.strategies:
        small, most = measured(large.SMALL, strategy), measured(own.model, strategy)
        grown = most["weights"] - small["weights"]
        times = {kind: round((most[kind] - small[kind]) / grown, 2) for kind in ("plain", "node")}
        print(f"{strategy}: plain loop {times['plain']:.2f}, node {times['node']:.2f} times the weights", flush=True)
        found[strategy] = {"times-the-weights": times, "bytes": most}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
