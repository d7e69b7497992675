"""The door: every reply is checked here before anything believes it. Refused says what was wrong."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from flwr.app import Message, RecordDict

from strategies.algebra.lowrank import truncated
from strategies.algebra.tensors import Tensors
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import (
    MAX_ROWS,
    Absent,
    Assignment,
    LacksBase,
    Metrics,
    Outgrown,
    OutOfMemory,
    Refused,
    State,
    Update,
)
from strategies.exchange.wrapper import Wrapper
from strategies.protocol import wire
from strategies.protocol.replies import INSTALLED, PROOF, RECORDS
from task.kinds.base import ACCURACY, LOSS, PERPLEXITY, Metric

GONE = (3, 4, 5, 8)  # Flower's codes for a message or a node that it could not reach, and a process that ended
LARGEST = 1e12  # magnitude in an update: what nobody learns in a round, and what sums and products survive
NARROW = (torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)  # dtypes that overflow far below it
MAX_METRICS, LARGEST_METRIC = 64, 1e100
KNOWN = {"accuracy": ACCURACY, "loss": LOSS, "train-loss": LOSS, "perplexity": PERPLEXITY}  # whoever measures them
METRIC_NAME = re.compile(r"[\w.\-/ ]{1,80}")
LONGEST_REASON = 100_000  # characters of an error that are looked at
SHOWN = 3  # names that a reason lists before it says how many more there are


def validate_update(
    strategy: Strategy, message: Message | None, node: str, assignment: Assignment, state: State, rows: int = MAX_ROWS
) -> Update:
    """Return the update in a reply to `assignment`, whose node started from its share of `state` and has said that it
    has `rows` rows. Raises Refused."""
    records = content(message)
    if strange := sorted(records.keys() - RECORDS):
        raise Refused(f"record {_some(strange)} not asked for")
    if LacksBase.RECORD in records.config_records:
        raise LacksBase("it has lost the base, and is asked again what it has")
    if (ran_out := records.config_records.get(OutOfMemory.RECORD)) is not None:
        raise OutOfMemory(f"out of memory at rank {assignment.rank}: {plain_reason(str(ran_out.get('said', '')))}")
    metrics = _answering(records, assignment.round, rows)
    assignment = _lowered(assignment, metrics.pop("rank", assignment.rank), strategy.prunes)
    expected = truncated(strategy.expected(state, assignment), assignment.rank)
    delta = _unwrapped(strategy.wrappers, records, expected)
    update = Update(node, assignment, delta, float(metrics["num-examples"]), metrics)
    if reason := strategy.refusal(state, update):
        raise Refused(reason)
    for wrapper in strategy.wrappers:
        update = wrapper.admitted(strategy, update)
    _check_sums(strategy, state, update)
    return update


def validate_scores(message: Message | None, wanted: Mapping[str, Metric], round: int, rows: int = MAX_ROWS) -> Metrics:
    """Return the metrics of a node that has scored the state of `round` on some of its `rows`, those `wanted` among
    them, each in its range. Raises Refused."""
    metrics = _answering(content(message), round, rows)
    if missing := sorted(set(wanted) - metrics.keys()):
        raise Refused(f"metric {_some(missing)} missing")
    for name, metric in wanted.items():
        _check_range(name, metrics[name], metric)
    return metrics


def check_installed(message: Message | None, expected: int) -> None:
    """Raise Refused unless a node says that it installed what it was sent (`echo.expected`)."""
    records = content(message)
    if OutOfMemory.RECORD in records:
        return
    said = _metrics(records.metric_records.get("metrics")).get(INSTALLED)
    if said != expected:
        raise Refused(f"it installed something else ({said}) than it was sent ({expected})")


def check_proof(message: Message | None, fingerprint: str) -> None:
    """Raise Refused unless a node that has caught up stands on the weights of this fingerprint."""
    records = content(message)
    if OutOfMemory.RECORD in records:
        return
    proof = records.config_records.get(PROOF)
    said = str(proof.get("fingerprint")) if proof is not None else ""
    if said != fingerprint:
        raise Refused(f"after catching up it stands on other weights ({said!r:.80}) than the server ({fingerprint})")


def _answering(records: RecordDict, round: int, rows: int) -> Metrics:
    """What a node of at most so many rows has measured for a message of this round."""
    metrics = _metrics(records.metric_records.get("metrics"))
    metrics.pop(INSTALLED, None)
    if metrics.pop("server-round", None) != round:
        raise Refused(f"it answers another round than {round}")
    said = metrics.get("num-examples")
    if type(said) is not int or not 0 < said <= MAX_ROWS:
        raise Refused(f"num-examples must be a positive whole number, not {said!r}")
    if said > rows:
        raise Outgrown(f"num-examples is {said}, but it has said that it has {rows} rows")
    return metrics


def _lowered(assignment: Assignment, rank: int | float, prunes: bool) -> Assignment:
    """The ticket with the rank that the node says its update has."""
    if rank != assignment.rank and not (prunes and type(rank) is int and 0 < rank <= assignment.rank):
        raise Refused(f"its rank is {rank}, its ticket says {assignment.rank}")
    return replace(assignment, rank=int(rank))


def validate_metrics(message: Message | None) -> Metrics:
    """The metrics in a reply that carries nothing else. Raises Refused."""
    metrics = _metrics(content(message).metric_records.get("metrics"))
    metrics.pop(INSTALLED, None)
    return metrics


def content(message: Message | None) -> RecordDict:
    """The records of a reply. Raises Refused where there is an error instead, Absent where there is nobody."""
    if message is None:
        raise Absent("no reply before the deadline")
    if message.has_error():
        kind = Absent if message.error.code in GONE else Refused
        raise kind(f"node error {message.error.code}: {plain_reason(message.error.reason)}")
    return message.content


def plain_reason(text: str | None) -> str:
    """The sentence that matters in an error that Flower, or Ray with a whole traceback, reports."""
    text = re.sub(r"['\"]>\s*$", "", (text or "")[:LONGEST_REASON].replace("\\n", "\n"))
    _, in_simulation, said = text.rpartition("Exception ClientAppException occurred. Message:")
    said = said if in_simulation else re.sub(r"^<class '(?:\w+\.)*(\w+)'>:<['\"]", r"\1: ", text)
    plain = "".join(c if c.isprintable() else " " for c in said)
    return " ".join(plain.split())[:500] or "no reason given"


def _metrics(record: Mapping[str, object] | None) -> Metrics:
    if record is None:
        raise Refused("it has no metrics")
    if len(record) > MAX_METRICS:
        raise Refused(f"it has {len(record)} metrics, more than {MAX_METRICS}")
    metrics: Metrics = {}
    for name, value in record.items():
        if not isinstance(value, int | float):
            raise Refused(f"metric {_shown(name)} is no number")
        if not math.isfinite(value):
            raise Refused(f"metric {_shown(name)} is {value}")
        if abs(value) > LARGEST_METRIC:
            raise Refused(f"metric {_shown(name)} is {value:g}, larger than {LARGEST_METRIC:g}")
        if not METRIC_NAME.fullmatch(name):
            raise Refused(f"{_shown(name)} is no name for a metric")
        if name in KNOWN:
            _check_range(name, value, KNOWN[name])
        metrics[name] = value
    return metrics


def _check_range(name: str, value: float, metric: Metric) -> None:
    if not metric.low <= value <= metric.high:
        raise Refused(f"metric {_shown(name)} is {value:g}, not from {metric.low:g} to {metric.high:g}")


def _unwrapped(chain: tuple[Wrapper, ...], records: RecordDict, expected: Tensors) -> Tensors:
    """The update that went through the wrappers of a chain, which is checked before any of them sees it, and again
    each time that one of them is undone."""
    forms: list[Mapping[str, torch.Tensor]] = [expected]
    for wrapper in chain:
        forms.append(wrapper.encoded_spec(forms[-1]))
    state = wire.unpack(records, wire.index_limit(forms[-1]))
    if state.journal or state.since or state.base_weights:
        raise Refused("an update has no journal")
    sent = state.tensors
    _check_tensors(sent, forms.pop())
    for wrapper, like in zip(reversed(chain), reversed(forms), strict=True):
        sent = wrapper.decode(sent, like)
        _check_tensors(sent, like)
    return sent


def _check_tensors(delta: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    _check_names(set(delta), set(expected))
    for name, like in expected.items():
        tensor = delta[name]
        if tensor.shape != like.shape:
            raise Refused(f"'{name}' has shape {tuple(tensor.shape)}, expected {tuple(like.shape)}")
        if tensor.dtype != like.dtype:
            raise Refused(f"'{name}' has dtype {tensor.dtype}, expected {like.dtype}")
        largest = _largest(tensor)
        if not math.isfinite(largest):
            raise Refused(f"'{name}' holds NaN or infinity")
        if largest > LARGEST:
            raise Refused(f"'{name}' holds {largest:g}; no number of an update is larger than {LARGEST:g}")


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the name of the first tensor that holds NaN or infinity, "" if there is none."""
    return next((name for name, tensor in tensors.items() if not math.isfinite(_largest(tensor))), "")


def _largest(tensor: torch.Tensor) -> float:
    """The largest magnitude in a tensor, by one pass over it; NaN where it holds NaN."""
    numbers = torch.view_as_real(tensor) if tensor.is_complex() else _comparable(tensor)
    return max(map(abs, torch.stack(numbers.aminmax()).tolist())) if numbers.numel() else 0.0


def _check_sums(strategy: Strategy, state: State, update: Update) -> None:
    """In narrow dtypes a sum may be infinite although its terms are not."""
    if any(tensor.dtype in NARROW for tensor in update.delta.values()):
        for name, tensor in strategy.trained(state, update).items():
            if not bool(torch.isfinite(_comparable(tensor)).all()):
                raise Refused(f"'{name}' is beyond {tensor.dtype} once this update is added")


def _check_names(names: set[str], expected: set[str]) -> None:
    missing, strange = sorted(expected - names), sorted(names - expected)
    if missing:
        raise Refused(f"{_some(missing)} missing")
    if strange:
        raise Refused(f"{_some(strange)} not asked for")


def _comparable(tensor: torch.Tensor) -> torch.Tensor:
    """Torch has no isfinite for every 8-bit float."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _shown(name: str) -> str:
    """A name that a node chose, fit for a log: short, and control characters escaped."""
    return repr(name[:80])


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(_shown(name) for name in names[:SHOWN]) + more
