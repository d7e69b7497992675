"""Before round 1: wait for nodes, settle base, labels and split, and meet every node."""

import functools
import logging
import time
from dataclasses import dataclass, replace
from datetime import date

from flwr.serverapp import Grid

from strategies.exchange.federation import Federation
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import RunFailed
from strategies.rounds import messaging
from strategies.rounds.handshake.handshake import Answers, HandshakeResult, Host
from strategies.rounds.handshake.names import Identity, Names, identities
from strategies.rounds.run_state import RunState
from task.config import TaskConfig
from task.data.partition import node_names, partition, table
from task.data.prepared import DataError, DataIndex, data_index
from task.models.base import Base, server_base
from task.models.loading import warm_up
from task.storage.store import Store, server_store

LOG = logging.getLogger("flwr")
POLL = 0.2  # seconds between looks for nodes
SHOWN = 10  # nodes whose reasons an error lists before it says how many more there are


@dataclass(frozen=True)
class Opening:
    """What the run starts from."""

    config: TaskConfig
    base: Base
    handshake: HandshakeResult
    host: Host  # meets those that come later


def open_run(
    strategy: Strategy, grid: Grid, config: TaskConfig, federation: Federation, timeout: float, run_state: RunState
) -> Opening:
    """Everything up to the first round. Raises ConfigError, RunFailed and the task's own errors.

    Nodes are asked before the base is settled: training the embedded one, or reading a large one, and imports then
    overlap with the start of their processes.
    """
    nodes = wait_for_nodes(grid, federation)
    names = Names(federation.node_names, run_state, nodes)
    names.see(nodes)
    names.warn()
    if not config.data.labels:
        config = settled(config, server_store(), len(nodes))
    base = functools.cache(lambda: federation.base or server_base(config.model, server_store()))
    host = Host(grid, strategy, config, base, timeout, run_state, names)
    handshake = _met(host, list(nodes))
    _check_enough(handshake, federation)
    LOG.info("%d nodes take part", len(handshake.profiles))
    return Opening(config, base(), handshake, host)


def _met(host: Host, node_ids: list[int]) -> HandshakeResult:
    """Meet nodes and wait for them; the base is settled while they say what they are."""
    greeting = host.greet(node_ids)
    sent = next(greeting)
    host.base()
    warm_up()
    while True:
        answers: Answers = messaging.replies(host.grid, sent, time.monotonic() + host.timeout)
        try:
            sent = greeting.send(answers)
        except StopIteration as end:
            handshake: HandshakeResult = end.value
            return handshake


def _check_enough(handshake: HandshakeResult, federation: Federation) -> None:
    """Raise RunFailed, with the reason of every node that does not fit, where too few do."""
    out = handshake.left_out | handshake.postponed
    fit, asked = len(handshake.profiles), len(handshake.profiles) + len(out)
    limits = {"min-available-nodes": federation.min_available_nodes, "min-train-nodes": federation.min_train_nodes}
    key, needed = max(limits.items(), key=lambda item: item[1])
    if fit >= needed:
        return
    reasons = [f"node {handshake.called.get(node_id, node_id)}: {reason}" for node_id, reason in out.items()]
    more = [f"and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN else []
    said = "; ".join([*reasons[:SHOWN], *more]) or "no more are connected"
    raise RunFailed(f"{fit} of {asked} nodes can take part, {key} is {needed}: {said}")


def wait_for_nodes(grid: Grid, federation: Federation) -> dict[int, Identity]:
    """The nodes that are there, once there are enough. Raises RunFailed after the wait."""
    deadline = time.monotonic() + federation.node_wait_timeout
    while True:
        nodes = identities(grid)
        if len(nodes) >= federation.min_available_nodes:
            return nodes
        if time.monotonic() >= deadline:
            raise RunFailed(
                f"{len(nodes)} nodes came within {federation.node_wait_timeout:g} s, min-available-nodes is "
                f"{federation.min_available_nodes}: {federation.min_available_nodes - len(nodes)} are missing"
            )
        time.sleep(POLL)


def needs_no_data(config: TaskConfig) -> bool:
    """Do nodes bring all data, and score by themselves, so that the server may have none?"""
    named = config.causal or bool(config.data.labels)
    return config.data.partitioner == "none" and named and config.evaluate == "nodes"


def settled(config: TaskConfig, store: Store, num_nodes: int) -> TaskConfig:
    """The settings with the label names and the date filled in, after checking that the data can be split over the
    nodes.

    Raises DataError, SplitError.
    """
    if config.causal and not config.data.date:  # a resumed run goes on with this one
        config = replace(config, data=replace(config.data, date=date.today().isoformat()))
    if needs_no_data(config):
        return config
    plan = data_index(config, store)
    _check_scored(config, plan)
    if config.data.partitioner != "none":
        _check_split(config, plan, store, num_nodes)
    return replace(config, data=replace(config.data, labels=plan.labels))


def _check_scored(config: TaskConfig, plan: DataIndex) -> None:
    """Raise DataError where the server shall score a part that has no rows."""
    for name in ("validation", "test") if config.evaluate != "nodes" else ():
        if not len(plan.parts[name]):
            raise DataError(
                f"the {name} part of data.name = '{config.data.name}' has no rows, and evaluate = '{config.evaluate}' "
                f"scores it: set data.{name}-fraction above 0, name a data.{name}-split, or set evaluate = 'nodes'"
            )


def _check_split(config: TaskConfig, plan: DataIndex, store: Store, num_nodes: int) -> None:
    split = partition(config, plan, num_nodes, store)
    nodes = node_names(config, plan, split)
    for line in table(split, plan.train.labels, plan.labels, nodes).splitlines():
        LOG.info("%s", line)
