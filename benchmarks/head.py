"""What a round costs in which a classifier's head alone trains: through the whole model, and on features computed once.

`thistledown.simulate` tunes the head of a model on nodes of 100 rows in one process, without dropout in the body; both
ways are taken in turn. A round is from one report to the next, the server's scoring included; round 1 computes the
features of nodes. The last line is JSON: CPU seconds of round 1 and of a later one (the median), their ratios, and how
far the last losses are apart.

    .venv/bin/python -m benchmarks.head --model DIR --data DIR [--nodes 10] [--rounds 3] [--times 2]
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch

import thistledown
from benchmarks.machine import described
from strategies.exchange.callback import Callback, RoundReport
from strategies.exchange.types import State
from task.config import TaskConfig
from task.data.rows import Rows
from task.models.model import TunedModel, kept_model

USERS = ("client_app.training", "server_app.evaluation")


@dataclass
class Clock(Callback):
    """The CPU seconds when each round is over, and the loss after it."""

    ended: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def on_round(self, report: RoundReport, state: State) -> None:
        """Note both."""
        self.ended.append(time.process_time())
        self.losses.append(report.evaluated_by_server["test-loss"])

    @property
    def seconds(self) -> list[float]:
        """Return the seconds of every round after round 0."""
        return [end - began for began, end in zip(self.ended, self.ended[1:])]


@contextmanager
def whole(model: TunedModel, config: TaskConfig, rows: Rows, *rest: object, **more: object) -> Iterator[Rows]:
    """Yield the rows as they are, in place of `computed_once`."""
    yield rows


def run(options: argparse.Namespace) -> Clock:
    """Run one federation and return what its clock saw."""
    clock = Clock()
    kept_model.cache_clear()
    thistledown.simulate(
        "fedavg",
        data={"name": options.data, "train_rows": 100 * options.nodes, "validation_rows": 100, "test_rows": 100},
        model={"name": options.model},
        tuning="head",
        learning_rate=0.01,
        body_dropout=False,
        local_steps=8,
        batch_size=16,
        num_server_rounds=options.rounds,
        simulation={"num_supernodes": options.nodes},
        task={"kind": "text-classification"},
        callbacks=[clock],
    )
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[Clock]] = {"whole": [], "features": []}
    for _ in range(options.times):
        with mock.patch(f"{USERS[0]}.computed_once", whole), mock.patch(f"{USERS[1]}.computed_once", whole):
            found["whole"].append(run(options))
        found["features"].append(run(options))
    first = {way: statistics.median(clock.seconds[0] for clock in clocks) for way, clocks in found.items()}
    later = {way: statistics.median(s for clock in clocks for s in clock.seconds[1:]) for way, clocks in found.items()}
    apart = max(abs(a.losses[-1] - b.losses[-1]) for a, b in zip(found["whole"], found["features"], strict=True))
    about = {"machine": described(), "first_s": first, "later_s": later, "loss_apart": apart}
    ratios = {"first_ratio": first["whole"] / first["features"], "later_ratio": later["whole"] / later["features"]}
    print(json.dumps(about | {name: round(ratio, 2) for name, ratio in ratios.items()}))


if __name__ == "__main__":
    main()
