"""The instructions in every message: strategy, options, tuning, task and training settings.

A node therefore needs no configuration of its own and works under any ServerApp. Only values that differ from the
defaults are sent.
"""

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import cast

from flwr.app import ConfigRecord, RecordDict

from strategies import registry
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment, Refused
from task import extensions
from task.config import TaskConfig
from task.schema import ConfigError, Option, flatten, read, schema
from task.tunings.base import MAX_RANK

CHOICE = {"strategy": Option(str, "fedavg"), "wrappers": Option(tuple[str, ...], ())}
PROVE = "prove"  # in an assignment: answer with a fingerprint
COHORT = "cohort"  # in an assignment: how many nodes take part, according to the server
BASE, RANK, RUN = "base-fingerprint", "global-rank", "run-token"  # what the server adds to the settings


def write(config: TaskConfig, strategy: Strategy, fingerprint: str, rank: int = 0, token: str = "") -> ConfigRecord:
    """Return the record `instructions`: settings, the fingerprint of the base, the rank that adapters are built with,
    and the run's token, under which a node keeps its own state. Nodes do not need the server optimizer."""
    record = ConfigRecord()
    record.update(flatten(config, changed_only=True))
    record.update({BASE: fingerprint, RANK: rank, RUN: token})
    record.update(replace(strategy, server_optimizer=None).to_flat())
    return record


def task_of(record: ConfigRecord) -> TaskConfig:
    """Return the settings of the task in the instructions. Raises ConfigError.

    A process that simulates nodes reads the same instructions for each of them, and parses them once.
    """
    keys = schema(TaskConfig)
    own = {key: value for key, value in record.items() if key in keys}  # what else a server sends is not kept
    parse = _parsed.__wrapped__ if any(isinstance(value, list) for value in own.values()) else _parsed
    return parse(extensions.stamp(), *cast("Iterable[Hashable]", itertools.chain.from_iterable(own.items())))


@lru_cache(maxsize=16, typed=True)  # typed: true is not 1
def _parsed(_: object, *items: object) -> TaskConfig:
    """Return the settings in keys and values that take turns, for the extensions that there are."""
    return TaskConfig.read({str(key): value for key, value in zip(items[::2], items[1::2], strict=True)})


def strategy_of(record: ConfigRecord) -> Strategy:
    """Return the strategy and its wrappers in the instructions. Raises ConfigError."""
    task = schema(TaskConfig)
    rest = {k: v for k, v in record.items() if k not in task and k not in (BASE, RANK, RUN)}
    values, problems = read({key: rest[key] for key in CHOICE if key in rest}, CHOICE)
    keys = CHOICE | registry.option_keys(values["strategy"], values["wrappers"], optimizers=())
    values, problems = read(rest, keys)
    if problems:
        raise ConfigError(problems)
    return registry.from_values(values)


def write_assignment(assignment: Assignment, prove: bool = False, cohort: int = 0) -> ConfigRecord:
    """Return the record `assignment`; the round has Flower's usual key. `prove`: the node must report a fingerprint of
    its weights. `cohort`: how many nodes take part, which a node's policy may limit."""
    record = ConfigRecord(
        {
            "server-round": assignment.round,
            "rounds": assignment.rounds,
            "seed": assignment.seed,
            "rank": assignment.rank,
        }
    )
    if assignment.basis:
        record["basis"] = assignment.basis
    if assignment.noise:
        record["noise"] = assignment.noise
    if prove:
        record[PROVE] = True
    if cohort:
        record[COHORT] = cohort
    return record


def read_assignment(record: ConfigRecord) -> Assignment:
    """Return the assignment in a message. Raises Refused."""
    number, rounds, seed = (_whole(record, name) for name in ("server-round", "rounds", "seed"))
    basis = _whole(record, "basis") if "basis" in record else 0
    return Assignment(number, rounds, seed, _whole(record, "rank", MAX_RANK), basis, _positive(record, "noise"))


def cohort_of(record: ConfigRecord) -> int:
    """Return how many nodes take part according to an assignment; 0 if it does not say. Raises Refused."""
    return _whole(record, COHORT) if COHORT in record else 0


def record_of(content: RecordDict, name: str) -> ConfigRecord:
    """Return a record of plain values in a message: `instructions` or `assignment`. Raises Refused if it is missing."""
    if name not in content.config_records:
        raise Refused(f"the message has no record '{name}'")
    return content.config_records[name]


def rank_of(record: ConfigRecord) -> int:
    """Return the rank that adapters are built with, from the instructions. Raises Refused."""
    return _whole(record, RANK, MAX_RANK)


def fingerprint_of(record: ConfigRecord) -> str:
    """Return the fingerprint of the base that the instructions refer to. Raises Refused."""
    said = record.get(BASE)
    if not isinstance(said, str):
        raise Refused(f"the instructions' {BASE} must be a text, not {said!r:.80}")
    return said


def _whole(record: Mapping[str, object], name: str, most: int = 2**64) -> int:
    value = record.get(name)
    if type(value) is not int or not 0 <= value <= most:
        raise Refused(f"the message's {name} must be a whole number from 0 to {most}, not {value!r:.80}")
    return value


def _positive(record: Mapping[str, object], name: str) -> float:
    """Return a number above 0; 0 if the key is missing."""
    value = record.get(name, 0.0)
    if name in record and not (isinstance(value, float) and 0 < value < math.inf):
        raise Refused(f"the message's {name} must be a number above 0, not {value!r:.80}")
    return float(str(value))
