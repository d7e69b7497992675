"""Ways to damage a good reply, drawn at random, each with the words of which one must be in the reason of a refusal."""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from strategies.exchange.types import OutOfMemory
from strategies.protocol import wire

BYTES = r"unreadable record|record holds|NaN|largest number allowed|negative|ascending places|a level|coordinates|pool"
INDEX = r"unreadable record|record holds|missing|not asked for|has shape|has dtype|has no journal|" + BYTES
METRIC = r"metric|num-examples|a round other|its rank is"
SPECIAL = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0\0\x80\x7f",
    b"\0\0\x80\xff",
    b"\0\0\xc0\x7f",
    b"\xff\xff\x7f\x7f",
    b"\0\x7c",
]
NUMBERS = st.sampled_from(
    [0, 1, -1, 2**31, 2**62, -(2**62), 10**13, 0.5, -0.0, 1e-300, 1e308, float("inf"), float("nan")]
)


@dataclass(frozen=True)
class Mutation:
    """A change of records, and what a refusal for it says."""

    apply: Callable[[RecordDict], None]
    says: str


def several(which: st.SearchStrategy[Mutation], count: int, number: int) -> list[Mutation]:
    """So many of them, the same for the same number."""
    found: list[Mutation] = []

    @seed(number)
    @settings(max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(which)
    def draw(mutation: Mutation) -> None:
        found.append(mutation)

    draw()
    return found


def mutations() -> st.SearchStrategy[Mutation]:
    """Any of the ways below."""
    return st.one_of(payloads(), payloads(), indices(), indices(), squeezed(), metrics(), metrics(), records())


@st.composite
def payloads(draw: st.DrawFn) -> Mutation:
    """Bytes of the tensors: overwritten, here or all over, cut out, put in, cut off."""
    way = draw(st.sampled_from(["overwrite", "overwrite", "overwrite", "flood", "insert", "delete", "truncate"]))
    where, length = draw(st.floats(0, 1)), draw(st.integers(1, 8))
    new = draw(st.sampled_from(SPECIAL) | st.binary(min_size=1, max_size=8))

    def apply(content: RecordDict) -> None:
        data = _data(content)
        start = int(where * len(data))
        if way == "overwrite":
            start -= start % len(new)
            changed = data[:start] + new + data[start + len(new) :]
            changed = changed[: len(data)]
        elif way == "flood":
            changed = (new * len(data))[: len(data)]
        elif way == "insert":
            changed = data[:start] + new + data[start:]
        else:
            changed = data[:start] + (data[start + length :] if way == "delete" else b"")
        _set(content, changed)

    return Mutation(apply, BYTES)


@st.composite
def indices(draw: st.DrawFn) -> Mutation:
    """The index, decompressed: a line changed, doubled, dropped, moved; sections that an update has not."""
    way = draw(st.sampled_from(["name", "dtype", "shape", "extent", "double", "drop", "swap", "section", "text"]))
    where, number = draw(st.integers(0, 20)), draw(st.integers(-2, 2**40))
    name = draw(st.text(max_size=6) | st.sampled_from(["../x", "\x1b[2J", "x" * 3000, "m0.lora_A.weight"]))
    dtype = draw(st.sampled_from([*wire.DTYPES, "object", "str", ""]))
    section = draw(st.sampled_from(["journal", "since", "ground", "tensors", "more"]))
    value = draw(st.sampled_from([None, 7, "0" * 32, "../../x", [], {}, [[1, 2, []]], [["k", "float32", [1]]], True]))

    def apply(content: RecordDict) -> None:
        index = json.loads(zlib.decompress(content.config_records["index"]["index"]))  # type: ignore[arg-type]
        lines = index["tensors"]
        line = lines[where % len(lines)]
        if way == "name":
            line[0] = name
        elif way == "dtype":
            line[1] = dtype
        elif way == "shape":
            line[2] = line[2][::-1] if len(set(line[2])) > 1 else [*line[2], 1]
        elif way == "extent":
            line[2] = [number, *line[2][1:]]
        elif way == "double":
            lines.append(list(line))
        elif way == "drop":
            lines.remove(line)
        elif way == "swap":
            lines[0], lines[where % len(lines)] = lines[where % len(lines)], lines[0]
        elif way == "section":
            index[section] = value
        text = json.dumps(index).encode()
        if way == "text":
            text = text[: where * len(text) // 20] + name.encode("utf-8", "replace")
        _squeeze(content, zlib.compress(text))

    return Mutation(apply, INDEX)


@st.composite
def squeezed(draw: st.DrawFn) -> Mutation:
    """The index as it travels: damaged, or a bomb."""
    where, new = draw(st.floats(0, 1)), draw(st.binary(max_size=4))
    bomb = draw(st.booleans()) and draw(st.booleans())

    def apply(content: RecordDict) -> None:
        old: bytes = content.config_records["index"]["index"]  # type: ignore[assignment]
        start = int(where * len(old))
        _squeeze(content, zlib.compress(b" " * 2**22, 1) if bomb else old[:start] + new + old[start + len(new) :])

    return Mutation(apply, INDEX)


@st.composite
def metrics(draw: st.DrawFn) -> Mutation:
    """A metric gone, or changed, or a new one."""
    name = draw(
        st.sampled_from(["num-examples", "num-examples", "server-round", "rank", "train-loss", "more", "\x1b[2J\n", ""])
        | st.text(st.characters(codec="utf-8"), max_size=100)
    )
    value = draw(NUMBERS | st.integers(-200, 200) | st.lists(st.floats(), max_size=3) | st.none())
    many = draw(st.integers(0, 9)) == 0

    def apply(content: RecordDict) -> None:
        own = dict(content.metric_records["metrics"])
        own.pop(name, None)
        new = {} if value is None else {name: value}
        more = {f"metric-{number}": number for number in range(100)} if many else {}
        content["metrics"] = MetricRecord({**own, **new, **more})

    return Mutation(apply, METRIC)


@st.composite
def records(draw: st.DrawFn) -> Mutation:
    """A record gone, of another kind, or one that nobody asked for; more than there should be inside one."""
    way = draw(st.sampled_from(["gone", "kind", "more", "array", "key", "memory"]))
    name = draw(st.sampled_from(["arrays", "index", "metrics"]))
    said = draw(st.text(st.characters(codec="utf-8"), max_size=20) | st.integers(0, 9) | st.just("x" * 10_000))

    def apply(content: RecordDict) -> None:
        if way == "gone":
            del content[name]
        elif way == "kind":
            content[name] = ConfigRecord({"index": 1}) if name != "index" else MetricRecord({"index": 1})
        elif way == "more":
            content["more\n"] = ConfigRecord({"x": 1})
        elif way == "array":
            array = content.array_records["arrays"]["flat"]
            content["arrays"] = ArrayRecord({"flat": array, "more": array})
        elif way == "key":
            content["index"] = ConfigRecord({**content.config_records["index"], "more": 1})
        else:
            content[OutOfMemory.RECORD] = ConfigRecord({"said": said})

    return Mutation(apply, r"record|metrics|out of memory")


def _data(content: RecordDict) -> bytes:
    return bytes(content.array_records["arrays"]["flat"].data)


def _set(content: RecordDict, data: bytes) -> None:
    content["arrays"] = ArrayRecord({"flat": Array("uint8", (len(data),), wire.STYPE, data)})


def _squeeze(content: RecordDict, index: Any) -> None:
    content["index"] = ConfigRecord({"index": index})
