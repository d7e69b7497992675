"""`thistledown check`: what a run would do and send, worked out without starting anything."""

import itertools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from flwr.app import MetricRecord, RecordDict

import strategies
from server_app.config import RunConfig
from server_app.results import human
from strategies.exchange import order, wire
from strategies.exchange.contract import Strategy
from strategies.exchange.opening import needs_no_data, settled
from strategies.exchange.vocabulary import Profile, State, Ticket
from task.base import Base, BaseError, server_base
from task.config import EMBEDDED_MODEL, TaskConfig
from task.data import DataError, Parts, holdout, prepare
from task.model import tuned_model
from task.partition import Positions, SplitError, partition, table
from task.schema import ConfigError, Flat, flatten
from task.seeds import derive
from task.store import Store, StoreError, server_store
from task.train import steps_of
from task.tuning import TuningError
from thistledown.settings import Settings

Say = Callable[[str], None]
SHOWN = 20  # nodes that are listed


@dataclass(frozen=True)
class Node:
    """A simulated node: its name, the rows it has and those it trains on, its rank (0: none)."""

    name: str
    rows: int
    trained: int
    rank: int


def check(settings: Settings, say: Say) -> None:
    """Explain the run. Raises ConfigError with everything that would keep it from starting."""
    run = settings.config
    for line in _choices(run):
        say(line)
    try:
        with _quiet():
            for line in _explained(run, server_store()):
                say(line)
    except (DataError, SplitError, TuningError, StoreError) as error:
        raise ConfigError([str(error)]) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """What a run would log is said here in other words; transformers warns about itself."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.setLevel(level)


def _explained(run: RunConfig, store: Store) -> Iterator[str]:
    torch.set_num_threads(run.task.threads)
    if run.task.model.name == EMBEDDED_MODEL:
        yield f"model     preparing the embedded one (trained once, some seconds, and kept in {store.root})"
    base, task = _base_and_task(run, store)
    yield f"base      {base.name}, fingerprint {base.fingerprint}"
    parts = None if needs_no_data(task) else prepare(task, base.folder, store)
    split = _split(run, task, parts, store)
    nodes = _nodes(run, task, parts, split)
    yield from _sizes(parts)
    yield from _costs(run, task, base, nodes)
    if parts and nodes:
        yield table(split, parts.train.labels, parts.labels)


def _base_and_task(run: RunConfig, store: Store) -> tuple[Base, TaskConfig]:
    """The base, and the settings with their labels; the problems of both are told together."""
    base, task, problems = None, None, []
    try:
        base = server_base(run.task.model, store)
    except (BaseError, StoreError) as error:
        problems.append(str(error))
    try:
        task = settled(run.task, store, run.server.simulation.num_supernodes)
    except (DataError, SplitError, StoreError) as error:
        problems.append(str(error))
    if base is None or task is None:
        raise ConfigError(problems)
    return base, task


def _choices(run: RunConfig) -> Iterator[str]:
    strategy = run.strategy
    yield f"strategy  {_with_options(strategy.name, flatten(strategy))}"
    for wrapper in strategy.wrappers:
        yield f"wrapper   {_with_options(strategies.wrapper_name(wrapper), flatten(wrapper))}"
    yield f"tuning    {_with_options(run.task.tuning, flatten(run.task.lora) if run.task.tuning == 'lora' else {})}"
    task = run.task
    length = f"{task.local_steps} steps" if task.local_steps else f"{task.local_epochs} epochs"
    rate = f"{task.optimizer}, learning rate {task.learning_rate:g}"
    yield f"training  {length} of {task.batch_size} rows a round, {rate}"


def _with_options(name: str, options: Flat) -> str:
    said = ", ".join(f"{key} {value}" for key, value in options.items())
    return f"{name} ({said})" if said else name


def _sizes(parts: Parts | None) -> Iterator[str]:
    if parts is None:
        yield "data      none on the server"
        return
    kept = f"{len(parts.validation)} to choose the best round, {len(parts.test)} to report"
    yield f"data      {len(parts.train)} rows to train on, {kept}; {len(parts.labels)} labels"


def _split(run: RunConfig, task: TaskConfig, parts: Parts | None, store: Store) -> list[Positions]:
    """The rows of every simulated node; of none where nodes bring their own data."""
    if parts is None or task.data.partitioner == "none":
        return []
    return partition(task, parts.train.labels, parts.train.ids, run.server.simulation.num_supernodes, store)


def _nodes(run: RunConfig, task: TaskConfig, parts: Parts | None, split: list[Positions]) -> list[Node]:
    if parts is None:
        return []
    profiles = [
        Profile(number, str(number), budget, len(rows), "", frozenset())
        for number, (rows, budget) in enumerate(zip(split, itertools.cycle(_budgets(task))))
    ]
    tickets = run.strategy.assign(profiles, 1, run.server.num_server_rounds, task.seed)
    nodes = []
    for profile, rows in zip(profiles, split, strict=True):
        own = parts.train.select(rows)
        if task.evaluate != "server":
            own, _ = holdout(own, task.data.holdout, derive(task.seed, "holdout", profile.name))
        nodes.append(Node(profile.name, len(rows), len(own), tickets[profile.name].rank))
    return nodes


def _budgets(task: TaskConfig) -> tuple[int, ...]:
    return task.lora.ranks if task.tuning == "lora" else (0,)


def _costs(run: RunConfig, task: TaskConfig, base: Base, nodes: list[Node]) -> Iterator[str]:
    """What trains, and what a round and the run send."""
    ranks = sorted({node.rank for node in nodes} or set(_budgets(task)))
    model = tuned_model(base, task, ranks[-1], "cpu")
    state = run.strategy.initial(model)
    total = sum(parameter.numel() for parameter in model.module.parameters())
    own = sum(tensor.numel() for tensor in model.trained.values())
    yield f"trains    {own:,} of {total:,} parameters ({own / total:.2%}) in {len(model.trained)} tensors"
    if len(set(_budgets(task))) > len(ranks):
        yield f"ranks     {run.strategy.name} needs equal ranks: every node trains rank {ranks[0]}, the smallest budget"
    traffic = {rank: Traffic.of(run.strategy, task, base, state, rank) for rank in ranks}
    for rank, cost in traffic.items():
        who = f"a node of rank {rank}" if rank else "a node"
        yield f"a round   sends {who} {human(cost.down)} and gets {human(cost.up)} back"
    if not nodes:
        yield "nodes     bring their own data (data-path in their node config)"
        return
    rounds = run.server.num_server_rounds
    trained = run.server.fraction_train * rounds
    scored = run.server.fraction_evaluate * (rounds + 1) if task.evaluate != "server" else 0
    down = sum(traffic[node.rank].down for node in nodes) * (trained + scored)
    up = sum(traffic[node.rank].up for node in nodes) * trained
    yield f"the run   about {human(down)} down and {human(up)} up, without Flower's envelopes and an offer of the base"
    yield f"nodes     {len(nodes)}, each with rows, rows it trains on, steps a round, rank, bytes down and up a round:"
    for node in nodes[:SHOWN]:
        steps = steps_of(task, node.trained)
        numbers = f"{node.name:>4} {node.rows:>6} {node.trained:>6} {steps:>5} {node.rank or '-':>5}"
        yield f"{numbers} {human(traffic[node.rank].down):>9} {human(traffic[node.rank].up):>9}"
    if len(nodes) > SHOWN:
        yield f"... and {len(nodes) - SHOWN} more"


@dataclass(frozen=True)
class Traffic:
    """Bytes of one node's messages in a round, as Flower encodes their records."""

    down: int
    up: int

    @classmethod
    def of(cls, strategy: Strategy, task: TaskConfig, base: Base, state: State, rank: int) -> "Traffic":
        """From records that are really packed. Values are made up: equal chunks would be counted once."""
        ticket = Ticket(1, 1, task.seed, rank)
        start = strategy.start_of(_filled(state), ticket)
        records = wire.pack(start)
        records["order"] = order.write(task, strategy, base.fingerprint, state.rank)
        records["ticket"] = order.write_ticket(ticket)
        return cls(wire.size(records), wire.size(_reply(strategy, start, ticket)))


def _reply(strategy: Strategy, start: State, ticket: Ticket) -> RecordDict:
    delta = _filled(State(dict(strategy.expected(start, ticket)))).tensors
    for wrapper in strategy.wrappers:
        delta = wrapper.outgoing(delta, ticket)
    reply = wire.pack(State(delta))
    reply["metrics"] = MetricRecord(
        {"num-examples": 1, "server-round": 1, "seconds": 1.0, "train-loss": 1.0, "steps": 1}
    )
    return reply


def _filled(state: State) -> State:
    noise = torch.Generator().manual_seed(0)
    tensors = {n: torch.rand(t.shape, generator=noise).to(t.dtype) for n, t in state.tensors.items()}
    return replace(state, tensors=tensors)
