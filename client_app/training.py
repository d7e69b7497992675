"""A round on the node: install the server's state, train or score, answer."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from client_app import public_errors
from client_app.device import with_fewer_rows
from client_app.local import Local
from client_app.payment import Bill, check_uncovered
from client_app.permission import check_assignment, check_classes, check_rows, check_scores, check_update
from client_app.policy import Policy
from client_app.public_errors import NodeError
from client_app.store import MODEL, ClientStore
from strategies.algebra.tensors import Tensors
from strategies.exchange import head_rounds
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment, LacksBase, Metrics, OutOfMemory, State
from strategies.exchange.wrapper import Wrapper
from strategies.protocol import journal, wire
from strategies.protocol.install_hash import install_hash_of
from strategies.protocol.instructions import PROVE, RUN, cohort_of, rank_of, read_assignment, record_of, strategy_of
from strategies.protocol.replies import INSTALLED, PROOF
from task.arithmetic import set_arithmetic
from task.data.rows import Rows
from task.features.once import FeatureFiles, as_built, computed_once, head_alone
from task.models.finding import BaseMissing
from task.models.model import TunedModel, tuned_model
from task.training.chosen_precision import in_chosen_precision
from task.training.trainer import Trainer, evaluate

LOG = logging.getLogger("flwr")
# Metrics that reveal only how many rows there are; an update shows `rank` too.
TIME, STEPS, MICRO = "seconds", "steps", "micro-batch-size"
PLAIN = ("num-examples", "server-round", "rank", STEPS, "kept-round")


def trained(local: Local, content: RecordDict) -> RecordDict:
    """Return the reply to a `train` message: the update, `num-examples`, `train-loss` and so on; or that memory ran
    out, or that the base is lost."""
    try:
        start, at_once = wire.taken(content), local.config.rows_at_once
        return with_fewer_rows(
            local.device, local.key, at_once, lambda rows: _update(local.holding(rows), content, start)
        )
    except BaseMissing as error:
        LOG.warning("%s", error)
        return RecordDict({LacksBase.RECORD: ConfigRecord()})
    except OutOfMemory as error:
        said = str(error) if public_errors.simulated() else OutOfMemory.SAID
        return RecordDict({OutOfMemory.RECORD: ConfigRecord({"said": said})})


def _update(local: Local, content: RecordDict, start: State) -> RecordDict:
    began = time.monotonic()
    here = _Stand.of(local, content, start)
    strategy, assignment, model = here.strategy, here.assignment, here.model
    rows, kept_back = local.rows()
    check_rows(local.policy, len(rows) + len(kept_back))
    if assignment.round == 1:
        local.say_of(rows)
    check_update(local.policy, strategy, local.config, len(rows))
    if head_rounds.makes_head(local.config, assignment.round):
        check_classes(local.policy, rows.labels)
    kept = here.memory.client_state()
    bill = Bill.of(local, strategy, assignment, len(rows), here.memory)
    bill.carry({wrapper.name: kept.get(place_of(wrapper), {}) for wrapper in strategy.wrappers})
    bill.check()
    rate = local.config.rate(assignment.round, assignment.rounds)
    trainer = trainer_of(local, strategy, rows, assignment.seed).at_rate(rate)
    trainer = replace(trainer, config=in_chosen_precision(trainer.config, model, rows, local.store))
    for wrapper in strategy.wrappers:
        trainer = wrapper.training(trainer, assignment, kept.setdefault(place_of(wrapper), {}))
    with _features(local, here, rows, training=True) as seen:
        delta, metrics = _learned(strategy, model, replace(trainer, rows=seen), assignment)
    model.module.zero_grad(set_to_none=True)  # the last gradients are not needed for the reply
    for wrapper in strategy.wrappers:
        delta = wrapper.encode(delta, assignment, kept[place_of(wrapper)])
    reply = wire.pack(State(delta))
    here.memory.keep({**kept, MODEL: strategy.private(model)})
    metrics = {
        "num-examples": local.policy.reports.counted(len(rows)),
        "server-round": assignment.round,
        TIME: time.monotonic() - began,
        **metrics,
    }
    if local.config.rows_at_once < local.config.batch_size:
        metrics[MICRO] = local.config.rows_at_once
    silent = any(wrapper.hides_metrics for wrapper in strategy.wrappers)
    reply["metrics"] = MetricRecord({**_public_metrics(local.policy, metrics, silent), **here.install_hash_of})
    reply.update(here.proof)
    bill.pay()
    return reply


def _learned(
    strategy: Strategy, model: TunedModel, trainer: Trainer, assignment: Assignment
) -> tuple[Tensors, Metrics]:
    """Return the update of a round and its metrics. In a head round nothing but the head trains and is sent."""
    if head_rounds.makes_head(trainer.config, assignment.round):
        return head_rounds.class_statistics(model, trainer), {STEPS: 0}
    if assignment.round > trainer.config.rounds_of_head:
        return strategy.train(model, trainer, assignment)
    delta, metrics = strategy.train(model, replace(trainer, only=model.head), assignment)
    return {name: tensor for name, tensor in delta.items() if name in model.head}, metrics


@contextmanager
def _features(local: Local, here: "_Stand", rows: Rows, *, training: bool = False) -> Iterator[Rows]:
    """Yield rows as features, computed once a run, if only the head changes; else the rows as they are."""
    config, assignment = local.config, here.assignment
    alone = training and assignment.round <= config.rounds_of_head
    if not (head_alone(here.model) or (alone and as_built(here.model))):
        yield rows
        return
    files = FeatureFiles(local.store, str(local.instructions.get(RUN, "")))
    trains = training and not head_rounds.makes_head(config, assignment.round)
    last = assignment.round == assignment.rounds
    with computed_once(here.model, config, rows, files, training=trains, last=last) as seen:
        yield seen


def _public_metrics(policy: Policy, metrics: Metrics, silent: bool) -> Metrics:
    """Return the metrics of a round's training that the server learns. `silent`: only those that do not depend on
    values of rows."""
    reports = policy.reports
    shown = set(PLAIN) if silent else {*PLAIN, TIME} if not reports.loss else set(metrics)
    shown -= set() if reports.machine else {TIME, MICRO}
    shown -= {STEPS} if reports.rows == "rounded" else set()  # by which rows could be counted
    return {name: value for name, value in metrics.items() if name in shown}


def place_of(wrapper: Wrapper) -> str:
    """Return the key of a wrapper's client state."""
    return f"wrapper-{wrapper.name}"


def trainer_of(local: Local, strategy: Strategy, rows: Rows, seed: int) -> Trainer:
    """Return the node's trainer, including the penalties of wrappers."""
    regularisers = tuple(wrapper.penalty for wrapper in strategy.wrappers)
    return Trainer(local.config, rows, seed, local.device, regularisers)


def evaluated(local: Local, content: RecordDict) -> RecordDict:
    """Return the reply to an `evaluate` message: metrics over this node's evaluation rows."""
    check_uncovered(local, "evaluation")
    here = _Stand.of(local, content, wire.taken(content), after=True)
    trains, kept = local.rows()
    if not len(kept):
        raise NodeError(f"node {local.name} has no rows for evaluation (data.holdout = {local.config.data.holdout})")
    check_rows(local.policy, len(trains) + len(kept))
    check_scores(local.policy, len(kept), len(trains) + len(kept))
    precision = in_chosen_precision(local.config, here.model, kept, local.store).precision
    with _features(local, here, kept) as seen:
        scores = evaluate(here.model, seen, local.device, precision=precision)
    metrics = {
        "num-examples": local.policy.reports.counted(len(kept)),
        "server-round": here.assignment.round,
        **scores,
        **_ratings(local, here, kept, len(trains) + len(kept)),
    }
    return RecordDict({"metrics": MetricRecord({**metrics, **here.install_hash_of}), **here.proof})


def _ratings(local: Local, here: "_Stand", kept: Rows, rows: int) -> dict[str, float]:
    """Return how good answers to some of this node's evaluation rows are, if it is time for it. Texts stay here."""
    if not local.config.generates(here.assignment.round, here.assignment.rounds):
        return {}
    from task.prediction.ratings import rated
    from task.prediction.sampled import answered

    check_scores(local.policy, min(local.config.evaluate_generations, len(kept)), rows)
    found = answered(here.model, local.config, kept, local.device)
    return rated([one.answer for one in found], [one.reference for one in found])


@dataclass(frozen=True)
class _Stand:
    """The node after it has installed a message's state: the model, and what the node reports about it."""

    strategy: Strategy
    assignment: Assignment
    memory: ClientStore
    model: TunedModel
    install_hash_of: dict[str, int]  # the fingerprint of what was installed
    proof: dict[str, ConfigRecord]  # the fingerprint of the weights, if the server asks for it

    @classmethod
    def of(cls, local: Local, content: RecordDict, start: State, *, after: bool = False) -> "_Stand":
        """Install the state `start` for a round's training, or for whatever comes `after` it."""
        set_arithmetic(local.config, local.device)
        strategy, asked = strategy_of(local.instructions), record_of(content, "assignment")
        assignment = read_assignment(asked)
        check_assignment(local.policy, assignment, cohort_of(asked))
        model = tuned_model(local.base, local.config, rank_of(local.instructions), local.device)
        memory = ClientStore(local, assignment.round, after=after)
        model = memory.installed(strategy, model, start)
        proof = {PROOF: ConfigRecord({"fingerprint": journal.fingerprint(model)})} if PROVE in asked else {}
        installed = install_hash_of(model, start, strategy.live(model, assignment))
        return cls(strategy, assignment, memory, model, {INSTALLED: installed}, proof)
