"""Validate every reply before anything uses it. Refused says what was wrong."""

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
from task.metrics import ACCURACY, LOSS, PERPLEXITY, Metric
from task.prediction.ratings import RATINGS

GONE = (3, 4, 5, 8)  # Flower's codes for an unreachable message or node, and for a process that ended
LARGEST = 1e12  # largest magnitude in an update: nothing that a node learns in a round, and safe in sums and products
NARROW = (torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)  # dtypes that overflow far below LARGEST
MAX_METRICS, LARGEST_METRIC = 64, 1e100
KNOWN = {  # whoever measures them
    "accuracy": ACCURACY, "loss": LOSS, "train-loss": LOSS, "perplexity": PERPLEXITY, **RATINGS,
}  # fmt: skip
METRIC_NAME = re.compile(r"[\w.\-/ ]{1,80}")
LONGEST_REASON = 100_000  # characters of an error that are read
SHOWN = 3  # names that a reason lists before it counts the rest


def validate_update(
    strategy: Strategy, message: Message | None, node: str, assignment: Assignment, state: State, rows: int = MAX_ROWS
) -> Update:
    """Return the update in a reply to `assignment`. The node started from its share of `state` and reported `rows` rows
    in its profile. Raises Refused."""
    records = content(message)
    if strange := sorted(records.keys() - RECORDS):
        raise Refused(f"record {_some(strange)} not asked for")
    if LacksBase.RECORD in records.config_records:
        raise LacksBase("it has lost the base, and is asked for its profile again")
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
    """Return the metrics of a node that has scored the state of `round` on some of its `rows`: those `wanted`, each in
    its range, and `num-examples`. Others, which nobody asked for, are left out. Raises Refused."""
    metrics = _answering(content(message), round, rows)
    if missing := sorted(set(wanted) - metrics.keys()):
        raise Refused(f"metric {_some(missing)} missing")
    for name, metric in wanted.items():
        _check_range(name, metrics[name], metric)
    return {name: metrics[name] for name in ("num-examples", *wanted)}


def check_installed(message: Message | None, expected: int) -> None:
    """Raise Refused unless a node reports that it installed what it was sent (the expected install hash)."""
    records = content(message)
    if OutOfMemory.RECORD in records:
        return
    said = _metrics(records.metric_records.get("metrics")).get(INSTALLED)
    if said != expected:
        raise Refused(f"it installed something else ({said}) than it was sent ({expected})")


def check_proof(message: Message | None, fingerprint: str) -> None:
    """Raise Refused unless a node that has replayed the journal has weights with this fingerprint."""
    records = content(message)
    if OutOfMemory.RECORD in records:
        return
    proof = records.config_records.get(PROOF)
    said = str(proof.get("fingerprint")) if proof is not None else ""
    if said != fingerprint:
        raise Refused(f"after the replay its weights are {said!r:.80}, the server's {fingerprint}")


def _answering(records: RecordDict, round: int, rows: int) -> Metrics:
    """Return the metrics of a node with at most `rows` rows for a message of this round."""
    metrics = _metrics(records.metric_records.get("metrics"))
    metrics.pop(INSTALLED, None)
    if metrics.pop("server-round", None) != round:
        raise Refused(f"it answers a round other than {round}")
    said = metrics.get("num-examples")
    if type(said) is not int or not 0 < said <= MAX_ROWS:
        raise Refused(f"num-examples must be a positive whole number, not {said!r}")
    if said > rows:
        raise Outgrown(f"num-examples is {said}, but its profile says {rows} rows")
    return metrics


def _lowered(assignment: Assignment, rank: int | float, prunes: bool) -> Assignment:
    """Return the assignment with the rank that the node reports for its update."""
    if rank != assignment.rank and not (prunes and type(rank) is int and 0 < rank <= assignment.rank):
        raise Refused(f"its rank is {rank}, its assignment says {assignment.rank}")
    return replace(assignment, rank=int(rank))


def validate_metrics(message: Message | None) -> Metrics:
    """Return the metrics in a reply that has nothing else. Raises Refused."""
    metrics = _metrics(content(message).metric_records.get("metrics"))
    metrics.pop(INSTALLED, None)
    return metrics


def content(message: Message | None) -> RecordDict:
    """Return the records of a reply. Raises Refused if it has an error instead, Absent if there is no reply."""
    if message is None:
        raise Absent("no reply before the deadline")
    if message.has_error():
        kind = Absent if message.error.code in GONE else Refused
        raise kind(f"node error {message.error.code}: {plain_reason(message.error.reason)}")
    return message.content


def plain_reason(text: str | None) -> str:
    """Return the sentence that matters in an error reported by Flower, or by Ray with a whole traceback."""
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
            raise Refused(f"metric {_shown(name)} is not a number")
        if not math.isfinite(value):
            raise Refused(f"metric {_shown(name)} is {value}")
        if abs(value) > LARGEST_METRIC:
            raise Refused(f"metric {_shown(name)} is {value:g}, larger than {LARGEST_METRIC:g}")
        if not METRIC_NAME.fullmatch(name):
            raise Refused(f"{_shown(name)} is not a valid metric name")
        if name in KNOWN:
            _check_range(name, value, KNOWN[name])
        metrics[name] = value
    return metrics


def _check_range(name: str, value: float, metric: Metric) -> None:
    if not metric.low <= value <= metric.high:
        raise Refused(f"metric {_shown(name)} is {value:g}, not from {metric.low:g} to {metric.high:g}")


def _unwrapped(chain: tuple[Wrapper, ...], records: RecordDict, expected: Tensors) -> Tensors:
    """Return the update that went through the given wrappers. It is validated before any wrapper sees it, and again
    after each is undone."""
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
            raise Refused(f"'{name}' holds {largest:g}; the largest number allowed in an update is {LARGEST:g}")


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the name of the first tensor that holds NaN or infinity, "" if there is none."""
    return next((name for name, tensor in tensors.items() if not math.isfinite(_largest(tensor))), "")


def _largest(tensor: torch.Tensor) -> float:
    """Return the largest magnitude in a tensor, in one pass over it; NaN if it contains NaN."""
    numbers = torch.view_as_real(tensor) if tensor.is_complex() else _comparable(tensor)
    return max(map(abs, torch.stack(numbers.aminmax()).tolist())) if numbers.numel() else 0.0


def _check_sums(strategy: Strategy, state: State, update: Update) -> None:
    """Raise Refused if the sum overflows a narrow dtype although its terms do not."""
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
    """Return whether all numbers are finite; torch has no isfinite for every 8-bit float."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _shown(name: str) -> str:
    """Return a name that a node chose, safe for a log: short, and with control characters escaped."""
    return repr(name[:80])


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(_shown(name) for name in names[:SHOWN]) + more
