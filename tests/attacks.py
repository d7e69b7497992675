"""What hostile nodes may try within the right form: rows that nobody has, updates that do harm, scores that lie.

An attack changes the replies of some nodes before they are delivered (`Spoil` of `in_process`).
"""

from collections.abc import Callable, Collection
from typing import Any

from flwr.app import Message, MetricRecord
from in_process import Spoil, retold

from strategies.algebra.tensors import Tensors
from strategies.ferret import NUMBERS, SCALES
from strategies.protocol import wire

ROWS = 10**12
PLAUSIBLE = 4.5  # times an own update, which is below the default of outlier-factor for most


def moved(tensors: Tensors, by: float, drawn: bool) -> Tensors:
    """An update that goes `by` times as far; `drawn`: factors A are no difference, but drawn afresh (FLoRA)."""
    if NUMBERS in tensors:  # Ferret: whole numbers, and what they are to be read times
        signed = tensors[NUMBERS] if by > 0 else -tensors[NUMBERS].clamp(min=-32767)
        return tensors | {NUMBERS: signed, SCALES: tensors[SCALES] * abs(by)}
    return {name: t if drawn and ".lora_A." in name else t * by for name, t in tensors.items()}


def said(reply: Message, **metrics: float) -> Message:
    """The reply with other metrics."""
    own = reply.content.metric_records["metrics"]
    reply.content["metrics"] = MetricRecord({**own, **{name.replace("_", "-"): v for name, v in metrics.items()}})
    return reply


def attack(kind: str, strategy: str, liars: Collection[int], last: int) -> Spoil:
    """The replies of a run of `last` rounds in which some nodes try one of `ATTACKS`."""
    copied: dict[int, Tensors] = {}  # of colluding nodes: what the first of them sends in a round

    def sent(reply: Message, by: float) -> Message:
        return retold(reply, lambda tensors: moved(tensors, by, strategy == "flora"))

    def together(reply: Message) -> Message:
        now = round_of(reply)
        if now not in copied:
            copied.clear()
            copied[now] = wire.unpack(sent(reply, -PLAUSIBLE).content).tensors
        return retold(reply, lambda _: copied[now])

    def trained(reply: Message) -> Message:
        late = round_of(reply) > last - 3
        ways: dict[str, Callable[[], Message]] = {
            "rows": lambda: said(sent(reply, -1.0), num_examples=ROWS),
            "scale 1e6": lambda: sent(reply, 1e6),
            "scale 20": lambda: sent(reply, 20.0),
            "flip 1": lambda: sent(reply, -1.0),
            "flip 10": lambda: sent(reply, -10.0),
            "scores": lambda: said(reply, train_loss=2e5),
            "NaN late": lambda: sent(reply, float("nan")) if late else reply,
            "poison late": lambda: sent(reply, -PLAUSIBLE) if late else reply,
            "collude": lambda: together(reply),
        }
        return ways[kind]()

    def spoil(partition: int, message: str, reply: Message) -> Message:
        if partition not in liars:
            return reply
        if kind == "rows" and message == "query.profile":
            reply.content.config_records["profile"]["num-examples"] = ROWS
        if kind == "scores" and message == "evaluate":
            return said(reply, accuracy=0.0, loss=1e6) if partition == min(liars) else said(reply, accuracy=2e99)
        return trained(reply) if message == "train" else reply

    return spoil


ATTACKS = ("rows", "scale 1e6", "scale 20", "flip 1", "flip 10", "scores", "NaN late", "poison late", "collude")


def round_of(reply: Message) -> int:
    """The round that a reply to training answers."""
    number: Any = reply.content.metric_records["metrics"]["server-round"]
    return int(number)
