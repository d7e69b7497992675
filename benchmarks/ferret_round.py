"""Where the time of a round of Ferret goes: MiniLM, ten nodes, 4,096 coordinates each, 8 local steps of 16 articles.

Real model, real articles, the code of nodes and server, one process without Flower. Prints one JSON line: seconds of
local training, and of what Ferret adds to it as shares of that: projection on a node, aggregation on the server, replay
of the round on a node, and catching up with ten rounds at once.

    .venv/bin/python -m benchmarks.ferret_round [--threads 1]
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

import strategies
from benchmarks.fastest import fastest
from strategies.exchange.types import Entry, Profile, State, Update
from strategies.protocol import journal
from task.data.prepared import prepare
from task.models.finding import server_base
from task.models.model import TunedModel, tuned_model
from task.storage.store import server_store
from task.training.trainer import Trainer
from thistledown.settings import Settings

ROOT = Path(__file__).parent.parent
ASSETS = "../shared/assets"
OVERRIDES = (
    f"model.name='{ASSETS}/minilm-l6-v2' data.name='{ASSETS}/ag_news' strategy='ferret' tuning='full' "
    "learning-rate=0.001 data.train-rows=2000"
)
NODES, AWAY, TIMES = 10, 10, 3


class Scene:
    """A node that trained, and a cohort that answers like it."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.task = Settings.read(ROOT, "ag-news", [OVERRIDES], ROOT).config.task
        self.strategy = strategies.load("ferret")
        base = server_base(self.task.model, server_store())
        parts = prepare(self.task, base.folder, server_store())
        self.task = replace(self.task, data=replace(self.task.data, labels=parts.labels))
        self.model: TunedModel = tuned_model(base, self.task, 0, "cpu")
        self.state = self.strategy.initial(self.model)
        profiles = [Profile(n, str(n), 0, 200, "") for n in range(NODES)]
        self.assignments = self.strategy.assign(profiles, 1, 8, seed=0)
        self.trainer = Trainer(self.task, parts.train.select(range(200)), seed=1)

    def trained(self) -> Update:
        """One node's update."""
        assignment = self.assignments["0"]
        delta, _ = self.strategy.train(self.model, self.trainer, assignment)
        return Update("0", assignment, delta, 200.0)

    def measured(self) -> dict[str, float]:
        """Seconds of training, and shares of them."""
        self.strategy.install(self.model, State({}))
        (fitting,) = fastest(lambda: self.trainer.fit(self.model), times=TIMES)
        self.strategy.install(self.model, State({}))
        update = self.trained()
        cohort = [replace(update, node=name, assignment=assignment) for name, assignment in self.assignments.items()]
        idle = replace(self.trainer, config=replace(self.task, local_steps=1))
        entry = Entry(1, 0, self.strategy.combine(self.state, cohort))
        whole, step, aggregation, replay = fastest(
            lambda: self.strategy.train(self.model, idle, self.assignments["0"]),
            lambda: idle.fit(self.model),
            lambda: self.strategy.combine(self.state, cohort),
            lambda: self.strategy.replay(self.model, entry),
            times=TIMES,
        )
        entries = tuple(replace(entry, round=number) for number in range(1, AWAY + 1))
        catching_up = self._catching_up(State({}, entries))
        shares = {"projection": whole - step, "aggregation": aggregation, "replay": replay}
        ratios = {name: round(value / fitting, 4) for name, value in shares.items()}
        return {
            "local_training_s": round(fitting, 2),
            **ratios,
            "all_three": round(sum(shares.values()) / fitting, 4),
            f"catching_up_with_{AWAY}_rounds": round(catching_up / fitting, 4),
        }

    def _catching_up(self, start: State) -> float:
        journal.installed(self.strategy, self.model, State({}))  # builds the model anew, outside the clock
        began = time.perf_counter()
        journal.installed(self.strategy, tuned_model(self.model.base, self.task, 0, "cpu"), start)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(json.dumps({"threads": arguments.threads, "nodes": NODES, **Scene(arguments.threads).measured()}))


if __name__ == "__main__":
    main()
