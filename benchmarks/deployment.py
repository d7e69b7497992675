"""The cost of a deployed round in addition to training: one process per message, started by Flower or by us.

One node, TLS and authentication, on this machine; RBLA at rank 8 on a third of the digits. Prints one JSON line, in
seconds, medians over all rounds but the first:

    load           processes that wanted this machine's processors when it began; above 0 all figures are too high
    training       local training alone, in a process that is ready
    imports        what a new process imports before it can train; of its processor's time (the best of three)
    <executor>     round: from the server's first message to the new state; app: of it, from the node's first look at
                   the message to its answer; overhead: round - training

    .venv/bin/python benchmarks/deployment.py [--rounds 6] [--executors flower-superexec,thistledown-superexec]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.deployed import Deployment
from benchmarks.program import BIN
from benchmarks.shares import LABELS, Shares

NODES = ["0", "1", "2"]  # that the digits are divided among; the first takes part
SETTINGS = {"strategy": "rbla", "lora.ranks": "8", "local-epochs": 1, "data.labels": LABELS, "data.partitioner": "none"}


def deployed(file: Path, executor: str, rounds: int) -> dict[str, float]:
    """Return medians over the rounds of a run whose node uses this executor."""
    with Deployment(NODES[:1], apart=False) as deployment:
        deployment.node("0", {"data-path": str(file), "device": "cpu"}, executor=executor)
        deployment.online(1)
        run = deployment.submit(SETTINGS | {"num-server-rounds": rounds})
        if (status := run.end()) != "finished:completed":
            raise SystemExit(f"{executor}: {status}\n{run.log}")
        lines = run.rounds[2:]
    whole = [line["seconds"] for line in lines]
    app = [line["nodes"][0]["metrics"]["seconds"] for line in lines]
    return {"round": statistics.median(whole), "app": statistics.median(app)}


def training(file: Path) -> float:
    """Return the seconds of local training on this file, in this process: the best of three."""
    import torch

    import strategies
    from server_app.config import RunConfig
    from strategies.exchange.types import Assignment
    from task.data.prepared import prepare_file
    from task.models.finding import server_base
    from task.models.model import build
    from task.storage.store import server_store
    from task.training.trainer import Trainer

    config = RunConfig.read(SETTINGS).task
    torch.set_num_threads(config.threads)  # as a node does
    base = server_base(config.model, server_store())
    rows = prepare_file(config, base.folder, server_store(), file, config.data.labels)
    model, strategy, best = build(base, config, 8, "cpu"), strategies.load("rbla"), float("inf")
    for _ in range(3):
        began = time.perf_counter()
        strategy.train(model, Trainer(config, rows, 0, "cpu", ()), Assignment(1, 1, 0, 8))
        best = min(best, time.perf_counter() - began)
    return best


def imports() -> float:
    """Return the CPU seconds that a new process needs to import what a train message needs: the best of three."""
    code, best = "from thistledown.processes.superexec import warm; warm()", float("inf")
    for _ in range(3):
        before = _children()
        subprocess.run([str(BIN / "python"), "-c", code], check=True)
        best = min(best, _children() - before)
    return best


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--executors", default="flower-superexec,thistledown-superexec")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Shares.write(Path(folder) / "shares", {"data.partitioner": "iid"}, NODES).files[0]
        bare = training(file)
        line: dict[str, object] = {"rounds": arguments.rounds, "load": round(os.getloadavg()[0], 1)}
        line |= {"training": round(bare, 2), "imports": round(imports(), 2)}
        for executor in arguments.executors.split(","):
            found = deployed(file, executor, arguments.rounds)
            found["overhead"] = found["round"] - bare
            line[executor] = {name: round(seconds, 2) for name, seconds in found.items()}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
