"""The cost of a deployed message in addition to training: a new process for each, started by Flower or by us, or one
process that stays for all messages of a run.

One node, TLS and authentication, on this machine, and a message a round. Two tasks: RBLA at rank 8 on a third of the
digits; MiniLM with LoRA at rank 8 on 1,000 articles of AG News, 4 steps of 16. Prints one JSON line; seconds are
medians over all rounds but the first of all repeats, in which the executors take turns:

    load           processes that wanted this machine's processors when it began; above 0 all figures are too high
    imports        what a new process imports before it can train; of its processor's time (the best of three)
    <task>         training: local training alone, in a process that is ready
    <executor>     round: from the server's first message to the new state; app: of it, from the node's first look at
                   the message to its answer; overhead: round - training; cpu: processor's seconds of the executor and
                   its processes for a message; held: MB that they hold between messages, shared pages once (PSS)

    .venv/bin/python benchmarks/deployment.py [--rounds 6] [--repeats 1] [--tasks digits,minilm]
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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.deployed import Deployment, Run
from benchmarks.program import BIN
from benchmarks.settings import AG_NEWS, MINILM
from benchmarks.shares import LABELS, Shares

NODES = ["0", "1", "2"]  # that the digits are divided among; the first takes part
EXECUTORS = ("flower-superexec", "thistledown-superexec --resident-runs 0", "thistledown-superexec")
MB = 1e6


@dataclass(frozen=True)
class Task:
    """What a node learns, and from which file."""

    settings: Mapping[str, object]
    file: Path


def digits(folder: Path) -> Task:
    """Return the embedded default, with a share of its rows as the node's file."""
    settings = {"strategy": "rbla", "lora.ranks": "8", "local-epochs": 1, "data.labels": LABELS}
    file = Shares.write(folder / "shares", {"data.partitioner": "iid"}, NODES).files[0]
    return Task({**settings, "data.partitioner": "none"}, file)


def minilm(folder: Path) -> Task:
    """Return a model of 22.7 million weights, with 1,000 articles as the node's file."""
    from pyarrow.parquet import read_table, write_table

    write_table(read_table(Path(AG_NEWS) / "train.parquet").slice(0, 1000), folder / "articles.parquet")
    settings = {
        "task.kind": "text-classification", "model.name": str(Path(MINILM).resolve()), "lora.ranks": "8",
        "lora.targets": "all-linear", "local-steps": 4, "batch-size": 16, "learning-rate": 0.003,
        "data.name": str(Path(AG_NEWS).resolve()), "data.text-column": "text", "data.label-column": "label",
        "data.labels": "World|Sports|Business|Sci/Tech", "data.max-length": 40, "data.train-rows": 64,
        "data.validation-rows": 32, "data.test-rows": 32, "data.partitioner": "none",
    }  # fmt: skip
    return Task(settings, folder / "articles.parquet")


TASKS = {"digits": digits, "minilm": minilm}


def deployed(task: Task, executor: str, rounds: int) -> dict[str, list[float]]:
    """Return what is measured of every round but the first of a run whose node uses this executor."""
    with Deployment(NODES[:1], apart=False) as deployment:
        deployment.node("0", {"data-path": str(task.file), "device": "cpu"}, executor=executor)
        deployment.online(1)
        run = deployment.submit({**task.settings, "num-server-rounds": rounds, "threads": 1})
        process = deployment.executors["0"].process
        assert process is not None
        used = _used(run, 1, process.pid)
        held = _held(process.pid) / MB
        cpu = (_used(run, rounds, process.pid) - used) / (rounds - 1)
        if (status := run.end()) != "finished:completed":
            raise SystemExit(f"{executor}: {status}\n{run.log}")
        lines = run.rounds[2:]
    app = [line["nodes"][0]["metrics"]["seconds"] for line in lines]
    return {"round": [line["seconds"] for line in lines], "app": app, "cpu": [cpu], "held": [held]}


def _used(run: Run, number: int, pid: int) -> float:
    """Return the processor's seconds that an executor and all its processes, dead or alive, have used by the end of a
    round."""
    run.until_round(number)
    executor = psutil.Process(pid)
    return sum(executor.cpu_times()[:4]) + sum(sum(one.cpu_times()[:4]) for one in executor.children(recursive=True))


def _held(pid: int) -> float:
    """Return the bytes that an executor and its processes hold."""
    found = 0
    for process in (executor := psutil.Process(pid), *executor.children(recursive=True)):
        try:
            found += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):  # it has served its message
            continue
    return found


def training(task: Task) -> float:
    """Return the seconds of local training on the task's file, in this process: the best of three."""
    import torch

    from server_app.config import RunConfig
    from strategies.exchange.types import Assignment
    from task.data.prepared import prepare_file
    from task.models.finding import server_base
    from task.models.model import build
    from task.storage.store import server_store
    from task.training.trainer import Trainer

    run = RunConfig.read({**task.settings, "threads": 1})
    config = run.task
    torch.set_num_threads(config.threads)  # as a node does
    base = server_base(config.model, server_store())
    rows = prepare_file(config, base.folder, server_store(), task.file, config.data.labels)
    model, strategy, best = build(base, config, 8, "cpu"), run.strategy, float("inf")
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


def compared(task: Task, rounds: int, repeats: int) -> dict[str, object]:
    """Return local training alone, and each executor's medians; executors take turns."""
    found: dict[str, dict[str, list[float]]] = {executor: {} for executor in EXECUTORS}
    for _ in range(repeats):
        for executor in EXECUTORS:
            for name, values in deployed(task, executor, rounds).items():
                found[executor].setdefault(name, []).extend(values)
    bare, medians = training(task), {}
    for executor, measured in found.items():
        of = {name: round(statistics.median(values), 2) for name, values in measured.items()}
        medians[executor] = of | {"overhead": round(of["round"] - bare, 2)}
    return {"training": round(bare, 2), **medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--tasks", default=",".join(TASKS))
    arguments = parser.parse_args()
    line: dict[str, object] = {"rounds": arguments.rounds, "load": round(os.getloadavg()[0], 1)}
    line["imports"] = round(imports(), 2)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.tasks.split(","):
            line[name] = compared(TASKS[name](Path(folder)), arguments.rounds, arguments.repeats)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
