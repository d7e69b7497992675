"""Before round 1: wait for nodes, resolve the settings, and run the handshake with every node."""

import logging
import time
from dataclasses import replace

from flwr.serverapp import Grid

from strategies.exchange.federation import Federation
from strategies.exchange.types import RunFailed
from strategies.rounds import messaging
from strategies.rounds.context import RunContext
from strategies.rounds.handshake.handshake import Answers, Handshake, HandshakeResult
from strategies.rounds.handshake.names import Identity, Names, identities
from strategies.rounds.handshake.node_registry import NodeRegistry
from strategies.rounds.handshake.resolve import resolve
from task.models.loading import warm_up
from task.storage.store import server_store

LOG = logging.getLogger("flwr")
POLL = 0.2  # seconds between polls for nodes
SHOWN = 10  # nodes whose reasons an error lists before it counts the rest


def start(context: RunContext) -> tuple[RunContext, NodeRegistry]:
    """Do everything up to the first round. Raises ConfigError, RunFailed and the task's own errors.

    Nodes are asked before the base is found: reading a large base and imports then overlap with the start of the nodes'
    processes.
    """
    federation = context.federation
    nodes = wait_for_nodes(context.grid, federation)
    names = Names(federation.node_names, context.run_state, nodes)
    names.see(nodes)
    names.warn()
    if not context.config.data.labels:
        context = replace(context, config=resolve(context.config, server_store(), len(nodes)))
    handshake = Handshake(context, names)
    result = _greet_all(handshake, list(nodes))
    _check_enough(result, federation)
    LOG.info("%d nodes take part", len(result.profiles))
    return context, NodeRegistry(context, handshake, result)


def _greet_all(handshake: Handshake, node_ids: list[int]) -> HandshakeResult:
    """Run the handshake with all nodes and wait for them; the base is found while they answer."""
    greeting = handshake.greet(node_ids)
    sent = next(greeting)
    context = handshake.context
    context.base  # noqa: B018 (found while nodes start)
    warm_up()
    while True:
        answers: Answers = messaging.replies(context.grid, sent, time.monotonic() + context.timeout)
        try:
            sent = greeting.send(answers)
        except StopIteration as end:
            result: HandshakeResult = end.value
            return result


def _check_enough(result: HandshakeResult, federation: Federation) -> None:
    """Raise RunFailed, with the reason of every node that is left out, if too few take part."""
    out = result.left_out | result.postponed
    fit, asked = len(result.profiles), len(result.profiles) + len(out)
    limits = {"min-available-nodes": federation.min_available_nodes, "min-train-nodes": federation.min_train_nodes}
    key, needed = max(limits.items(), key=lambda item: item[1])
    if fit >= needed:
        return
    reasons = [f"node {result.called.get(node_id, node_id)}: {reason}" for node_id, reason in out.items()]
    more = [f"and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN else []
    said = "; ".join([*reasons[:SHOWN], *more]) or "no more are connected"
    raise RunFailed(f"{fit} of {asked} nodes can take part, {key} is {needed}: {said}")


def wait_for_nodes(grid: Grid, federation: Federation) -> dict[int, Identity]:
    """Return the connected nodes once there are enough. Raises RunFailed after the wait."""
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
