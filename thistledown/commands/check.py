"""`thistledown check`: what a run would do and send, computed without starting it."""

import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from server_app import data_notices
from server_app.config import RunConfig
from server_app.results.amounts import human
from strategies.exchange.bare_base import found_base
from strategies.exchange.dry_run import rehearse
from strategies.exchange.federation import evaluated
from strategies.exchange.replay import initial_state
from strategies.exchange.types import Profile, RunFailed
from strategies.rounds.handshake.resolve import needs_no_data, resolve
from task.config import TaskConfig
from task.data.partition import node_names, partition, table
from task.data.partitioners.base import Positions, SplitError
from task.data.prepared import DataError, Parts, data_index, holdout, prepare
from task.data.stand_in import stand_in
from task.device import DeviceError, found
from task.kinds import registry as kinds
from task.models.base import Base, BaseError
from task.models.model import tuned_model
from task.models.quantization import numbers_of
from task.schema import ConfigError
from task.seeds import derive
from task.storage.store import Store, StoreError, server_store
from task.training.batches import steps_of
from task.training.dry_run import DryRunError
from task.training.rates import of_head, to_start_from, unusual
from task.tunings.base import TuningError
from thistledown.estimates.choices import choices
from thistledown.estimates.features import features
from thistledown.estimates.machine import machine
from thistledown.estimates.memory import memory
from thistledown.estimates.rows import described
from thistledown.estimates.traffic import Leg, Traffic
from thistledown.estimates.weaknesses import weak
from thistledown.settings import Settings

Say = Callable[[str], None]
SHOWN = 20  # nodes that are listed
UNTRIED = "the model was not run, as this server needs no weights of the base: a node runs it before round 1"


def check(settings: Settings, say: Say, rows: int = 0) -> None:
    """Explain the run, and show the first `rows` rows. Raises ConfigError with every problem that would keep it from
    starting."""
    run = settings.config
    for line in choices(run):
        say(line)
    try:
        with quiet():
            for line in _explained(run, server_store(), rows):
                say(line)
    except (BaseError, DataError, DeviceError, DryRunError, RunFailed, SplitError, TuningError, StoreError) as error:
        raise ConfigError([str(error)]) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the log of a run, which is reported here in other words, and the warnings of transformers."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.setLevel(level)


def _explained(run: RunConfig, store: Store, shown: int) -> Iterator[str]:
    torch.set_num_threads(run.task.threads)
    yield from _devices(run)
    yield from machine(run)
    base, task = _base_and_task(run, store)
    here = f"fingerprint {base.fingerprint}" if base.fingerprint else "whose weights are not needed here"
    yield f"base      {base.name}, {here}"
    parts = None if needs_no_data(task) else prepare(task, base.folder, store)
    split = _split(run, task, parts, store)
    yield from _sizes(parts)
    if parts:
        yield from kinds.of(task).explained(base.folder, task.data, parts.train)
        yield from described(base.folder, parts.train, shown, parts.labels)
    yield from _notices(run, task, base, parts, split)
    called = node_names(task, data_index(task, store), split) if split else []
    yield from _costs(run, task, base, parts, split, called)
    if parts and split and parts.train.names:
        yield table(split, parts.train.labels, parts.train.names, called)


def _base_and_task(run: RunConfig, store: Store) -> tuple[Base, TaskConfig]:
    """Return the base, and the settings with their labels. Raises ConfigError with the problems of both."""
    base, task, problems = None, None, []
    try:
        task = resolve(run.task, store, run.server.simulation.num_supernodes)
    except (DataError, SplitError, StoreError) as error:
        problems.append(str(error))
    try:
        base, _ = found_base(run.strategy, task or run.task, store)
    except (BaseError, StoreError) as error:
        problems.insert(0, str(error))
    if base is None or task is None:
        raise ConfigError(problems)
    return base, task


def _sizes(parts: Parts | None) -> Iterator[str]:
    if parts is None:
        yield "data      none on the server"
        return
    kept = f"{len(parts.validation)} to choose the best round, {len(parts.test)} to report"
    labels = f"; {len(parts.labels)} labels" if len(parts.labels) > 1 else ""
    yield f"data      {len(parts.train)} rows to train on, {kept}{labels}"


def _devices(run: RunConfig) -> Iterator[str]:
    """Return notices about devices that this machine lacks.

    Raises DeviceError if the run needs them on this machine. A simulation needs the devices of its nodes too.
    """
    run.federation()
    try:
        found(run.task.device)
    except DeviceError as error:
        if not run.task.data.partitioner.own_rows:
            raise
        yield f"notice    {error}; nodes report their devices when the run starts"


def _notices(
    run: RunConfig, task: TaskConfig, base: Base, parts: Parts | None, split: Sequence[Positions]
) -> Iterator[str]:
    """Run the model once, and return notices about learning rate, data and base."""
    rows = parts.train if parts else stand_in(task, base.folder)
    said = (UNTRIED,) if base.bare else rehearse(run.strategy, task, base, rows, run.federation().device)
    index = data_index(task, server_store()) if parts else None
    seen = data_notices.of_run(task, index, split) if index else filter(None, [unusual(task)])
    known = weak(run, index, split) if index and split else ()
    for sentence in (*(parts.notices if parts else ()), *said, *seen, *known):
        yield f"notice    {sentence}"


def _split(run: RunConfig, task: TaskConfig, parts: Parts | None, store: Store) -> Sequence[Positions]:
    """Return the rows of every simulated node, or nothing if nodes have their own data."""
    if parts is None or task.data.partitioner.own_rows:
        return []
    return partition(task, data_index(task, store), run.server.simulation.num_supernodes, store)


def _profiles(run: RunConfig, task: TaskConfig, split: Sequence[Positions]) -> list[Profile]:
    """Return the profiles of the nodes. If nodes have their own data, return one profile per rank."""
    budgets = _budgets(task)
    sizes = [len(rows) for rows in split] or [0] * len(budgets)
    return [
        Profile(number, str(number), budget, size, "", frozenset())
        for number, (size, budget) in enumerate(zip(sizes, itertools.cycle(budgets)))
    ]


def _budgets(task: TaskConfig) -> tuple[int, ...]:
    """Return the ranks of the nodes; if they are automatic, the largest that a node can get."""
    return task.tuning.budgets() or task.tuning.candidates()[-1:]


def _costs(
    run: RunConfig,
    task: TaskConfig,
    base: Base,
    parts: Parts | None,
    split: Sequence[Positions],
    called: Sequence[str],
) -> Iterator[str]:
    """Describe what trains, and what a round and the run send."""
    profiles = _profiles(run, task, split)
    before = run.strategy.assign(profiles, 0, run.server.num_server_rounds, task.seed)
    rank = max(assignment.rank for assignment in before.values())
    model = tuned_model(base, task, rank, "cpu")
    total = sum(map(numbers_of, model.module.parameters()))
    own = sum(tensor.numel() for tensor in model.trained.values())
    yield f"trains    {own:,} of {total:,} parameters ({own / total:.2%}) in {len(model.trained)} tensors"
    if start := to_start_from(task, total):
        yield f"notice    {start}"
    if model.head:
        yield f"head      {of_head(task, model.new_head)}"
    yield from memory(base, task, rank, stand_in(task, base.folder))
    yield from features(model, task, max(map(len, split), default=0))
    if not run.strategy.heterogeneous_ranks and len({profile.rank for profile in profiles}) > 1:
        yield f"ranks     {run.strategy.name} needs equal ranks: every node trains rank {rank}, the smallest budget"
    traffic = Traffic(run, task, base)
    legs = traffic.legs(profiles, initial_state(run.strategy, model, task))
    spans = ["a round"] if len(legs) == 1 else [_rounds(leg.rounds) for leg in legs]
    width = max(9, *map(len, spans))
    for leg, which in zip(legs, spans, strict=True):
        for own_rank, cost in leg.costs.items():
            who = f"a node of rank {own_rank}" if own_rank else "a node"
            yield f"{which:<{width}} sends {who} {human(cost.down)} and gets {human(cost.up)} back"
    if not split or parts is None:
        yield "nodes     bring their own data (data-path in their node config)"
        return
    yield _run_cost(run, task, legs) + (" and what rounds put into the base" if traffic.left_out else "")
    yield f"nodes     {len(split)}, each with rows, rows it trains on, steps a round, its rank at first and at last:"
    yield from _nodes(task, parts, split, legs, called)


def _run_cost(run: RunConfig, task: TaskConfig, legs: list[Leg]) -> str:
    """Return the bytes of all rounds, as far as they are known in advance."""
    down = up = 0.0
    for leg in legs:
        costs = [leg.costs[rank] for rank in leg.ranks.values()]
        down += len(leg.rounds) * sum(cost.down for cost in costs) * run.server.fraction_train
        up += len(leg.rounds) * sum(cost.up for cost in costs) * run.server.fraction_train
        if task.evaluate != "server":
            rounds, every = run.server.num_server_rounds, run.server.evaluate_every
            often = sum(evaluated(round, rounds, every) for round in leg.rounds)
            down += often * sum(cost.down for cost in costs) * run.server.fraction_evaluate
    return f"the run   about {human(down)} down and {human(up)} up, without Flower's envelopes and an offer of the base"


def _nodes(
    task: TaskConfig, parts: Parts, split: Sequence[Positions], legs: list[Leg], called: Sequence[str]
) -> Iterator[str]:
    width = max(4, *map(len, called[:SHOWN]))
    for number, rows in enumerate(split[:SHOWN]):
        name, own = str(number), parts.train.select(rows)
        if task.evaluate != "server":
            own, _ = holdout(own, task.data.holdout, derive(task.seed, "holdout", name))
        first, last = (leg.ranks[name] or "-" for leg in (legs[0], legs[-1]))
        counts = f"{len(rows):>6} {len(own):>6} {steps_of(task, len(own)):>5}"
        yield f"{called[number]:>{width}} {counts} {first:>5} {last:>5}"
    if len(split) > SHOWN:
        yield f"... and {len(split) - SHOWN} more"


def _rounds(numbers: tuple[int, ...]) -> str:
    """Format rounds as spans: `rounds 1-3, 7`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    word = "round " if len(numbers) == 1 else "rounds "
    return word + ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)
