"""What a federation costs as its nodes become many: 10, 100, 1,000 and, on request, more; few rows each.

`thistledown.simulate` trains the embedded base on scanned digits, repeated: four rows a node, two steps, 3 rounds of a
twentieth of the nodes, of at least 5. Each size is a process of its own, in turn. In one process nodes wait for each
other, so CPU seconds count: until the nodes are known (`handshake_s`), and for all rounds (`rounds_s`, with scoring,
and `round_ms` for each node that trains). The last line is JSON, with what a node more costs.

    .venv/bin/python -m benchmarks.scale [--nodes 10,100,1000]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import thistledown
from strategies.exchange.callback import Callback, RoundReport, RunFacts
from strategies.exchange.types import State
from task.data.sources.digits import DIGITS_STRETCH, digits_part

ROWS, TEST, ROUNDS, SHARE, LEAST = 4, 100, 3, 0.05, 5


class Clock(Callback):
    """CPU seconds when the nodes are known and when each round is over."""

    def __init__(self) -> None:
        self.started = 0.0
        self.trained = 0  # updates of all rounds
        self.ended: list[float] = []

    def on_start(self, facts: RunFacts) -> None:
        """Note when the nodes are known."""
        self.started = time.process_time()

    def on_round(self, report: RoundReport, state: State) -> None:
        """Note when the round is over."""
        self.trained += len(report.nodes)
        self.ended.append(time.process_time())


def write_rows(path: Path, nodes: int) -> None:
    """Write as many digits as the nodes need, and a test part, as arrays."""
    images, labels = digits_part("train")
    places = np.arange(nodes * ROWS) % len(images)
    part = images[places] * np.uint8(DIGITS_STRETCH), labels[places]
    test = images[:TEST] * np.uint8(DIGITS_STRETCH), labels[:TEST]
    np.savez(
        path,
        x_train=part[0],
        y_train=part[1],
        x_validation=test[0],
        y_validation=test[1],
        x_test=test[0],
        y_test=test[1],
    )


def measured(nodes: int) -> dict[str, float]:
    """Run one federation in this process and return what it took."""
    torch.set_num_threads(1)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["THISTLEDOWN_CACHE"] = folder
        write_rows(Path(folder, "digits.npz"), nodes)
        began, wall = time.process_time(), time.monotonic()
        thistledown.simulate(
            "fedavg",
            data={"name": str(Path(folder, "digits.npz")), "partitioner": "iid", "validation-split": "validation"},
            num_server_rounds=ROUNDS,
            fraction_train=max(SHARE, min(1.0, LEAST / nodes)),
            simulation={"num_supernodes": nodes},
            local_steps=2,
            batch_size=ROWS,
            callbacks=[clock],
        )
    spent = clock.ended[-1] - clock.ended[0]
    return {
        "handshake_s": round(clock.started - began, 2),
        "rounds_s": round(spent, 2),
        "round_ms": round(1e3 * spent / clock.trained, 1),
        "wall_s": round(time.monotonic() - wall, 1),
        "peak_MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="10,100,1000", help="sizes, separated by commas")
    parser.add_argument("--one", type=int, default=0, help="run this size alone, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.one)))
        return
    sizes = [int(size) for size in arguments.nodes.split(",")]
    found = {}
    for size in sizes:
        command = [sys.executable, "-m", "benchmarks.scale", "--one", str(size)]
        shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[size] = json.loads(shown.splitlines()[-1])
        print(f"{size:>7,} nodes: {found[size]}")
    least, most = min(sizes), max(sizes)
    more = (
        {
            "handshake_ms_a_node": 1e3 * (found[most]["handshake_s"] - found[least]["handshake_s"]) / (most - least),
            "growth_MB": found[most]["peak_MB"] - found[least]["peak_MB"],
            "trained_node_ratio": found[most]["round_ms"] / found[least]["round_ms"],
        }
        if most > least
        else {}
    )
    print(json.dumps({"sizes": found, **{name: round(value, 2) for name, value in more.items()}}))


if __name__ == "__main__":
    main()
