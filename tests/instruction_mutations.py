"""Ways to damage a good message to a node, drawn at random: its order, its ticket, its records, and the state in it."""

from collections.abc import Callable
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict
from hypothesis import strategies as st
from mutations import indices, payloads, squeezed

import strategies
from strategies.protocol.instructions import BASE, CHOICE, RANK, RUN
from task.config import TaskConfig
from task.schema import Option, schema

Change = Callable[[RecordDict], None]
KEYS: dict[str, Option] = schema(TaskConfig) | strategies.option_keys() | CHOICE
OURS = (BASE, RANK, RUN)
ASSIGNMENT = ("server-round", "rounds", "seed", "rank", "basis", "prove")
TEXTS = [
    "", " ", "\0", "a\0b", "\x1b[2J", "é" * 50, "\u202e", "\ud7ff", "x" * 10**6, "../../etc/passwd", "/etc/passwd",
    "~", "file:///etc/passwd", "ssn", "text", "label", "good|bad", "bad|good", "good|bad|", "good", "a|b|c", "0" * 32,
    "auto", "all-linear", "(a+)+$", ".*", "lora", "full", "fedavg", "flora", "ferret", "rbla,half", "half,half",
    "local-privacy", "example-privacy,quantize", "nan", "1e309", "2,4,8", "8,-1", "true", "{{ ''.__class__ }}",
    "%s%n", "owner/model",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 7, 1024, 1025, 2**31, 2**62, -(2**62), 0.0, -0.0, 0.5, -0.5, 1e-308, 1e308, 1e30,
    float("inf"), float("-inf"), float("nan"), True, False,
]  # fmt: skip
LISTS: list[Any] = [[], [1, 2], [0.5], ["a"], [True], b"", b"\x80\x04", b"\0" * 1000]
values = st.sampled_from([*TEXTS, *NUMBERS, *NUMBERS, *LISTS]) | st.text(st.characters(codec="utf-8"), max_size=8)


def changes() -> st.SearchStrategy[Change]:
    """Any of the ways below."""
    return st.one_of(orders(), orders(), orders(), fitting(), fitting(), assignments(), records(), states())


@st.composite
def orders(draw: st.DrawFn) -> Change:
    """A key of an order gone, misspelt, doubled in another spelling, or with any value; many that nobody knows."""
    way = draw(st.sampled_from(["set", "set", "set", "set", "drop", "misspell", "double", "many"]))
    key = draw(st.sampled_from([*sorted(KEYS), *OURS, *OURS, "strategy", "wrappers", "tuning", "data.label-column"]))
    value, place = draw(values), draw(st.integers(0, 30))
    spelt = draw(st.sampled_from([str.upper, lambda k: k + " ", lambda k: k.replace("-", "_"), lambda k: "x." + k]))

    def apply(content: RecordDict) -> None:
        own = dict(content.config_records["instructions"])
        there = sorted(own)[place % len(own)] if own else key
        if way == "set":
            own[key] = value
        elif way == "drop":
            own.pop(there, None)
        elif way == "misspell":
            own[spelt(there)] = own.pop(there, value)
        elif way == "double":
            own[spelt(there)] = own.get(there, value)
        else:
            own |= {f"key-{number}": value for number in range(200)}
        content["instructions"] = ConfigRecord(own)

    return apply


@st.composite
def fitting(draw: st.DrawFn) -> Change:
    """A key of the right type, at the ends of what it accepts and beyond; so that more than the reading is reached."""
    key = draw(st.sampled_from(sorted(KEYS)))
    known = KEYS[key]
    if known.choices:
        value: Any = draw(st.sampled_from(known.choices))
    elif known.type is bool:
        value = draw(st.booleans())
    elif known.type in (int, float):
        ends = [known.low if known.low is not None else -3, known.high if known.high is not None else 10**9]
        value = known.type(draw(st.sampled_from([*ends, ends[0] - 1, ends[1] * 2, known.default, 1, 3, 1000])))
    else:
        value = draw(st.sampled_from(TEXTS))

    def apply(content: RecordDict) -> None:
        content["instructions"] = ConfigRecord({**content.config_records["instructions"], key: value})

    return apply


@st.composite
def assignments(draw: st.DrawFn) -> Change:
    """A number of the ticket, if there is one, gone or another."""
    key, value, drop = draw(st.sampled_from(ASSIGNMENT)), draw(values), draw(st.integers(0, 4)) == 0

    def apply(content: RecordDict) -> None:
        own = dict(content.config_records["assignment"])
        own.pop(key, None)
        content["assignment"] = ConfigRecord(own if drop else {**own, key: value})

    return apply


@st.composite
def records(draw: st.DrawFn) -> Change:
    """A record gone, of another kind, doubled under another name, or one too many."""
    way = draw(st.sampled_from(["gone", "kind", "empty", "more"]))
    name = draw(st.sampled_from(["instructions", "assignment", "arrays", "index"]))

    def apply(content: RecordDict) -> None:
        if way == "more":
            content["more\n"] = content[name]
        elif way == "gone":
            del content[name]
        else:
            content[name] = MetricRecord({"index": 1}) if way == "kind" else ConfigRecord({})

    return apply


@st.composite
def states(draw: st.DrawFn) -> Change:
    """The tensors, the journal and the index of what is to be installed."""
    return draw(st.one_of(payloads(), payloads(), indices(), squeezed())).apply
