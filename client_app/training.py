"""A round on the node: install what the server holds, train or score, answer."""

import time

import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict

import strategies
from client_app.device import within_memory
from client_app.local import Local
from client_app.memory import Memory
from strategies.exchange import journal, wire
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.door import PROOF
from strategies.exchange.order import PROVE, rank_of, read_ticket, record_of, strategy_of
from strategies.exchange.vocabulary import OutOfMemory, State, Ticket
from task.model import TunedModel, tuned_model
from task.rows import Rows
from task.train import Trainer, evaluate

# Metrics that say nothing of rows but how many there are; `rank` is what an update shows too.
PLAIN = ("num-examples", "server-round", "rank", "steps", "epsilon", "rounds-left")


def trained(local: Local, content: RecordDict) -> RecordDict:
    """The reply to a `train` message: the update, `num-examples`, `train-loss` and so on; or that memory ran out."""
    try:
        return within_memory(local.device, lambda: _update(local, content))
    except OutOfMemory as error:
        return RecordDict({OutOfMemory.RECORD: ConfigRecord({"said": str(error)})})


def _update(local: Local, content: RecordDict) -> RecordDict:
    began = time.monotonic()
    strategy, ticket, model = _installed(local, content)
    rows, _ = local.rows()
    proof = _proof(content, model)
    memory = Memory(local)
    places = {wrapper: f"wrapper-{strategies.wrapper_name(wrapper)}" for wrapper in strategy.wrappers}
    kept = {wrapper: memory.kept(place) for wrapper, place in places.items()}
    trainer = trainer_of(local, strategy, rows, ticket.seed)
    for wrapper in strategy.wrappers:
        trainer = wrapper.training(trainer, ticket, kept[wrapper])
    delta, metrics = strategy.train(model, trainer, ticket)
    memory.keep(strategy.private(model))
    for wrapper in strategy.wrappers:
        delta = wrapper.outgoing(delta, ticket, kept[wrapper])
        memory.keep(kept[wrapper], places[wrapper])
    reply = wire.pack(State(delta))
    reply.update(proof)
    metrics = {"num-examples": len(rows), "server-round": ticket.round, "seconds": time.monotonic() - began, **metrics}
    silent = any(wrapper.silent for wrapper in strategy.wrappers)
    reply["metrics"] = MetricRecord({name: value for name, value in metrics.items() if not silent or name in PLAIN})
    return reply


def trainer_of(local: Local, strategy: Algorithm, rows: Rows, seed: int) -> Trainer:
    """What this node trains with, the penalties of wrappers included."""
    regularisers = tuple(wrapper.penalty for wrapper in strategy.wrappers)
    return Trainer(local.config, rows, seed, local.device, regularisers)


def evaluated(local: Local, content: RecordDict) -> RecordDict:
    """The reply to an `evaluate` message: metrics over the rows that this node keeps for it."""
    _, ticket, model = _installed(local, content)
    _, kept = local.rows()
    if not len(kept):
        raise ValueError(f"node {local.name} keeps no rows for evaluation (data.holdout = {local.config.data.holdout})")
    metrics = evaluate(model, kept, local.device)
    about = MetricRecord({"num-examples": len(kept), "server-round": ticket.round, **metrics})
    return RecordDict({"metrics": about, **_proof(content, model)})


def _proof(content: RecordDict, model: TunedModel) -> dict[str, ConfigRecord]:
    """The record that says which weights a model stands on, where the server asks for it."""
    if PROVE not in record_of(content, "ticket"):
        return {}
    return {PROOF: ConfigRecord({"fingerprint": journal.fingerprint(model)})}


def _installed(local: Local, content: RecordDict) -> tuple[Algorithm, Ticket, TunedModel]:
    """The process's model as the server wants this node to have it."""
    torch.set_num_threads(local.config.threads)
    strategy = strategy_of(local.order)
    ticket, rank = read_ticket(record_of(content, "ticket")), rank_of(local.order)
    model = tuned_model(local.base, local.config, rank, local.device)
    model = Memory(local).installed(strategy, model, wire.unpack(content))
    return strategy, ticket, model
