"""Two hostile nodes of ten, with the defaults: how runs on the embedded digits end.

Whole federations in one process, with messages through Flower's own encoding (tests/in_process.py). Prints a table of
test accuracies of the final state, mean and standard deviation over seeds, for every strategy and attack
(tests/attacks.py), beside those of the run without the attack and of the run without these nodes; and how many runs
went back or stopped. In `scores` nodes measure, in all others the server does.

    .venv/bin/python -m benchmarks.attacks [--strategies fedavg,rbla,flora,ferret] [--attacks rows,...] [--seeds 3] \
        [--options "wrappers='median'"]
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from attacks import ATTACKS, attack
from in_process import InProcessGrid, federate, left

import client_app
from server_app.config import RunConfig
from server_app.evaluation import Evaluator
from strategies.exchange.types import RunFailed
from strategies.protocol import checkpoint
from strategies.rounds.handshake.resolve import resolve
from task.storage.store import server_store

NODES, LIARS, ROUNDS = 10, (1, 4), 12  # the two have one rank where ranks differ
HONEST, WITHOUT = "no attack", "without these nodes"
OPTIONS: dict[str, Any] = {
    "simulation.num-supernodes": NODES,
    "num-server-rounds": ROUNDS,
    "data.train-rows": 600,
    "data.validation-rows": 60,
    "data.test-rows": 0,
    "local-steps": 4,
    "batch-size": 8,
    "lora.targets": "q_proj,v_proj",
}
OF: dict[str, dict[str, Any]] = {
    "fedavg": {"learning-rate": 0.01},
    "rbla": {"learning-rate": 0.01, "lora.ranks": "2,4,8"},
    "flora": {"learning-rate": 0.01, "lora.ranks": "2,4,8"},
    "ferret": {"tuning": "full", "learning-rate": 0.003},
}


@dataclass(frozen=True)
class End:
    """The end of a run."""

    accuracy: float
    back: int  # how often it went back
    stopped: str  # why it failed, if so
    refused: int  # replies


def run(strategy: str, seed: int, kind: str, options: dict[str, Any]) -> End:
    """Run one federation."""
    chosen = {**OPTIONS, "strategy": strategy, **OF[strategy], "seed": seed, **options}
    chosen |= {"evaluate": "nodes"} if kind == "scores" else {}
    spoil = attack(kind, strategy, LIARS, ROUNDS) if kind in ATTACKS else None
    grid = InProcessGrid(client_app.app, NODES, spoil=spoil)
    grid.away = set(LIARS) if kind == WITHOUT else set()
    stopped = ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            federate(Path(folder), chosen, grid)
        except RunFailed as error:
            stopped = str(error)
        _, rounds = left(Path(folder))
        state, _ = checkpoint.load(Path(folder) / "latest" / "checkpoints" / checkpoint.LAST)
        config = RunConfig.read(chosen)
        task = resolve(config.task, server_store(), NODES)
        accuracy = float(Evaluator(config.strategy, task, "cpu")(state)["test-accuracy"])
    back = sum("rolled-back" in line for line in rounds)
    refused = sum(bool(node["refused"]) for line in rounds for node in line["nodes"])
    return End(accuracy, back, stopped, refused)


def cell(ends: list[End]) -> str:
    """Return mean and spread of the accuracies, and what else happened."""
    values = [end.accuracy for end in ends]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    said = f"{statistics.mean(values):.3f} ± {spread:.3f}".replace("0.", ".")
    back, stopped = sum(end.back for end in ends), sum(bool(end.stopped) for end in ends)
    notes = [f"went back {back}"] if back else []
    notes += [f"stopped {stopped}"] if stopped else []
    return f"{said} ({', '.join(notes)})" if notes else said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", default=",".join(OF))
    parser.add_argument("--attacks", default=",".join((HONEST, WITHOUT, *ATTACKS)))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--options", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    options = tomllib.loads(arguments.options.replace("; ", "\n"))
    flat = {key: value for key, value in options.items() if not isinstance(value, dict)}
    flat |= {f"{table}.{k}": v for table, own in options.items() if isinstance(own, dict) for k, v in own.items()}
    chosen = arguments.strategies.split(",")
    print(f"| attack | {' | '.join(chosen)} |\n|---|{'---|' * len(chosen)}", flush=True)
    for kind in arguments.attacks.split(","):
        ends: dict[str, list[End]] = defaultdict(list)
        for strategy in chosen:
            for seed in range(arguments.seeds):
                began = time.monotonic()
                ends[strategy].append(end := run(strategy, seed, kind, flat))
                took = time.monotonic() - began
                print(f"{kind}, {strategy}, seed {seed}: {end}, {took:.0f} s", file=sys.stderr, flush=True)
        print(f"| {kind} | {' | '.join(cell(ends[strategy]) for strategy in chosen)} |", flush=True)


if __name__ == "__main__":
    main()
