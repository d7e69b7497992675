"""The runs of a comparison: its entries with every seed, and the baselines.

`alone`: one node trains on its own rows, for as many rounds as the federation. `all rows`: one node holds the rows of
all. Both train the first entry's tuning with FedAvg over a single node, which is plain training, and are scored on the
same test part.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_app.results.endings import COMPLETED, FAILED, summary_of
from task.schema import ConfigError
from thistledown.comparison.entries import OF_A_MACHINE, SEED, Entry

FEDERATED, ALONE, CENTRAL = "federated", "alone", "all rows"
LONGEST_FIRST = (FEDERATED, CENTRAL, ALONE)  # so that no core is idle while the last run works
LATEST = "latest"
# A single node has nobody to be compared with, and takes part in every round.
PLAIN: dict[str, Any] = {
    "strategy": "fedavg", "wrappers": "", "server-optimizer": "sgd", "fraction-train": 1.0, "fraction-evaluate": 1.0,
    "min-train-nodes": 1, "min-available-nodes": 1, "simulation.dropout": 0.0, "outlier-factor": 0.0,
    "collapse-factor": 0.0, "examine-rows": 0, "max-weight-ratio": 0.0, "evaluate": "server",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Job:
    """One run. `node` is the number of the node that trains alone, of `nodes`; its results go below `folder`."""

    kind: str
    name: str
    seed: int
    values: Mapping[str, Any]
    folder: Path
    node: int | None = None
    nodes: int = 1

    @property
    def results(self) -> Path:
        """Return the results folder, which need not exist."""
        return self.folder / LATEST

    @property
    def over(self) -> bool:
        """Return whether the run has completed, or has failed in one of its rounds. One that failed before may have
        lacked something, and is tried again."""
        return self._summary.get("status") == COMPLETED or bool(self.failure)

    @property
    def failure(self) -> str:
        """Return why the run failed in one of its rounds; empty if it did not."""
        begun = self._summary.get("status") == FAILED and self._summary.get("rounds", 0) > 0
        return str(self._summary["error"]) if begun else ""

    @property
    def _summary(self) -> Mapping[str, Any]:
        return summary_of(self.results)

    @property
    def title(self) -> str:
        """Return the name of the run for people."""
        return f"{self.name}, seed {self.seed}"

    @property
    def node_configs(self) -> dict[int, dict[str, Any]]:
        """Return the node config that gives a single node its share of the rows."""
        if self.node is None:
            return {}
        return {0: {"partition-id": self.node, "num-partitions": self.nodes}}


def federated(entries: Sequence[Entry], seeds: Sequence[int], folder: Path) -> Iterator[Job]:
    """Yield the runs of entries that are not finished, seed by seed."""
    for seed in seeds:
        for entry in entries:
            if not entry.finished:
                yield _job(FEDERATED, entry.name, seed, entry.values_of(seed), folder)


def baselines(first: Entry, seeds: Sequence[int], folder: Path) -> Iterator[Job]:
    """Yield the runs of nodes alone and of all rows together. Raises ConfigError if the server does not score."""
    config = first.config
    if config.task.evaluate == "nodes":
        raise ConfigError(
            ["--baselines scores every node on the same rows: evaluate must be server or both, not nodes"]
        )
    nodes = config.server.simulation.num_supernodes
    for seed in seeds:
        own = {**first.values_of(seed), **PLAIN}
        central = own | {"data.partitioner": "iid", "simulation.num-supernodes": 1} | _widest(first)
        yield _job(CENTRAL, CENTRAL, seed, central, folder)
        for node in range(nodes):
            yield _job(ALONE, f"node {node} alone", seed, own | {"simulation.num-supernodes": 1}, folder, node, nodes)


def _widest(entry: Entry) -> dict[str, Any]:
    """Return the key that gives a single node the largest rank of the federation."""
    budgets = entry.config.task.tuning.budgets()
    key = f"{entry.config.task.tuning.table or entry.config.task.tuning.name}.ranks"
    return {key: str(max(budgets))} if len(budgets) > 1 and key in entry.values else {}


def _job(
    kind: str, name: str, seed: int, values: Mapping[str, Any], folder: Path, node: int | None = None, nodes: int = 1
) -> Job:
    """Return a job; its folder follows from all that its result depends on."""
    kept = {key: value for key, value in values.items() if key not in OF_A_MACHINE}
    about = json.dumps([kept, node, nodes], sort_keys=True, default=str)
    label = f"{values['strategy']}-{values['tuning']}" if kind == FEDERATED else kind.replace(" ", "-")
    which = f"-{node}" if node is not None else ""
    digest = hashlib.sha256(about.encode()).hexdigest()[:10]
    return Job(kind, name, seed, values, folder / "runs" / f"{label}{which}-seed{values[SEED]}-{digest}", node, nodes)
