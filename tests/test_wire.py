"""The wire: whatever is packed is read back bit for bit, and whatever is malformed is Refused and nothing else."""

import json
import zlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from random_states import sections, states
from tiers import examples

from strategies.algebra.tensors import raw
from strategies.exchange.types import Entry, Refused, State, Tensors
from strategies.protocol import wire
from thistledown.simulation.grid import through_wire

EMPTY = {"tensors": [], "journal": []}


def described(tensors: Tensors) -> dict[str, object]:
    return {name: (t.dtype, tuple(t.shape), bytes(raw(t))) for name, t in tensors.items()}


def assert_same(one: State, other: State) -> None:
    assert (one.since, described(one.base_weights)) == (other.since, described(other.base_weights))
    assert described(one.tensors) == described(other.tensors)
    assert [(e.round, e.seed, described(e.tensors)) for e in one.journal] == [
        (e.round, e.seed, described(e.tensors)) for e in other.journal
    ]


def delivered(records: RecordDict) -> RecordDict:
    """The records after Flower's encoding and decoding."""
    return through_wire(Message(records, dst_node_id=3, message_type="train")).content


# ---------------------------------------------------------------------- what is well formed


@given(states())
def test_what_is_packed_comes_back_bit_for_bit(state):
    assert_same(wire.unpack(delivered(wire.pack(state))), state)


@given(states(), sections())
def test_weights_and_their_position_come_back_bit_for_bit(state, base_weights):
    whole = replace(state, since="0a" * 16, base_weights=base_weights)
    assert_same(wire.unpack(delivered(wire.pack(whole))), whole)
    assert whole.numbers == state.numbers + sum(tensor.numel() for tensor in base_weights.values())


SPECIAL = {
    torch.bfloat16: [0x7FC1, 0xFFA5, 0x7F81, 0x8000, 0x0001, 0x7F80, 0xFF80],
    torch.float16: [0x7E01, 0xFD55, 0x8000, 0x0001, 0x7C00, 0xFC00],
    torch.float32: [0x7FC00001, 0xFFA00005, 0x80000000, 0x00000001, 0x7F800000],
}


@pytest.mark.parametrize("dtype", SPECIAL)
def test_nan_payloads_signed_zeros_and_subnormals_keep_their_bits(dtype):
    bits = b"".join(pattern.to_bytes(dtype.itemsize, "little") for pattern in SPECIAL[dtype])
    state = State({"odd": torch.frombuffer(bytearray(bits), dtype=dtype), "scalar": torch.tensor(-0.0, dtype=dtype)})
    assert raw(wire.unpack(wire.pack(state)).tensors["odd"]) == bits
    assert_same(wire.from_arrays(wire.to_arrays(state)), state)


@given(states(smallest=1))
def test_arrays_of_a_state_are_the_state(state):
    assert_same(wire.from_arrays(wire.to_arrays(state)), state)


def test_names_that_look_like_the_journals_are_told_from_them():
    near = State({"journal/": torch.ones(1), "journal/1/x": torch.ones(2)}, (Entry(2, 9, {"k": torch.ones(4)}),))
    assert_same(wire.from_arrays(wire.to_arrays(near)), near)
    with pytest.raises(ValueError, match="'journal/0/1/2/k', as those of the journal are; rename it"):
        wire.to_arrays(State({"journal/0/1/2/k": torch.ones(1)}))


def test_arrays_survive_flowers_encoding():
    state = State({"a.weight": torch.randn(3, 2), "b": torch.randn(3).bfloat16()}, (Entry(2, 9, {"k": torch.ones(4)}),))
    back = delivered(RecordDict({"arrays": wire.to_arrays(state)})).array_records["arrays"]
    assert set(back) == {"a.weight", "b", "journal/0/2/9/k"}
    assert_same(wire.from_arrays(back), state)


def test_arrays_made_by_flower_are_read():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = wire.from_arrays(ArrayRecord(torch_state_dict=module.state_dict()))
    assert_same(state, State(dict(module.state_dict())))
    module.load_state_dict(state.tensors)


def test_plain_arrays_can_be_read_by_flower():
    state = State({"w": torch.randn(2, 3), "n": torch.tensor(5)})
    assert described(dict(wire.to_arrays(state).to_torch_state_dict())) == described(state.tensors)


def test_what_is_read_can_be_trained_on():
    back = wire.unpack(wire.pack(State({"w": torch.ones(2, 2), "h": torch.ones(3).bfloat16()}))).tensors
    back["w"] += 1
    assert back["w"].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert back["h"].tolist() == [1.0, 1.0, 1.0]


# ---------------------------------------------------------------------- sizes


def encoded(record: Any) -> int:
    """The sum of all objects that Flower would push, headers included."""
    return len(record.deflate()) + sum(encoded(child) for child in (record.children or {}).values())


@given(states())
def test_size_is_what_flower_encodes(state):
    records = wire.pack(state)
    assert wire.size(records) == encoded(records)


@examples(30)
@given(st.integers(0, 2**32), st.floats(-1e30, 1e30))
def test_size_depends_on_shapes_and_not_on_values(seed, value):
    generator = torch.Generator().manual_seed(seed)
    noise = {"a": torch.randn(40, 8, generator=generator), "b": torch.randn(7, generator=generator).bfloat16()}
    constant = {name: torch.full_like(tensor, value) for name, tensor in noise.items()}
    assert wire.size(wire.pack(State(noise))) == wire.size(wire.pack(State(constant)))


# ---------------------------------------------------------------------- what is malformed


def records(index: object, data: bytes = b"") -> RecordDict:
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    return squeezed(zlib.compress(text), data)


def squeezed(index: Any, data: bytes = b"") -> RecordDict:
    flat = Array("uint8", (len(data),), wire.STYPE, data)
    return RecordDict({"arrays": ArrayRecord({"flat": flat}), "index": ConfigRecord({"index": index})})


def one(name: object = "a", dtype: object = "float32", shape: object = (2,)) -> dict[str, Any]:
    return {"tensors": [[name, dtype, shape]], "journal": []}


def entry(round: object = 1, seed: object = 2, lines: object = ()) -> dict[str, Any]:
    return {"tensors": [], "journal": [[round, seed, lines]]}


GOOD = records(one(), bytes(8))
MALFORMED = {
    "nothing": RecordDict(),
    "no arrays": RecordDict({"index": ConfigRecord({"index": zlib.compress(b"{}")})}),
    "no index": RecordDict({"arrays": ArrayRecord()}),
    "records swapped": RecordDict({"arrays": ConfigRecord(), "index": ArrayRecord()}),
    "index of metrics": RecordDict({"arrays": ArrayRecord(), "index": MetricRecord({"index": 1})}),
    "index is text": squeezed("text"),
    "index is a list": squeezed([b"a", b"b"]),
    "index is empty": squeezed(b""),
    "index is not compressed": squeezed(b'{"tensors": [], "journal": []}'),
    "index is cut": squeezed(zlib.compress(json.dumps(EMPTY).encode())[:-1]),
    "index has a tail": squeezed(zlib.compress(json.dumps(EMPTY).encode()) + b"tail"),
    "index is a bomb": records(b" " * (wire.INDEX_LIMIT + 2**20) + b"{}"),
    "not json": records(b"{tensors"),
    "not utf-8": records(b'{"tensors": "\xff"}'),
    "no table": records([]),
    "deep nesting": records(b"[" * 200_000 + b"]" * 200_000),
    "deep nesting inside": records(b'{"tensors": ' + b"[" * 200_000 + b"]" * 200_000 + b', "journal": []}'),
    "no tensors": records({"journal": []}),
    "no journal": records({"tensors": []}),
    "journal number": records({"tensors": [], "journal": 7}),
    "short line": records({"tensors": [["a", "float32"]], "journal": []}, bytes(8)),
    "long line": records({"tensors": [["a", "float32", [2], 1]], "journal": []}, bytes(8)),
    "line is text": records({"tensors": ["abc"], "journal": []}),
    "name is a number": records(one(7), bytes(8)),
    "name is null": records(one(None), bytes(8)),
    "name twice": records({"tensors": [["a", "float32", [1]]] * 2, "journal": []}, bytes(8)),
    "dtype unknown": records(one(dtype="object"), bytes(8)),
    "dtype list": records(one(dtype=["float32"]), bytes(8)),
    "shape null": records(one(shape=None), bytes(8)),
    "shape number": records(one(shape=2), bytes(8)),
    "shape text": records(one(shape=""), bytes(4)),
    "shape table": records(one(shape={}), bytes(4)),
    "extent true": records(one(shape=[True]), bytes(4)),
    "extent fraction": records(one(shape=[2.0]), bytes(8)),
    "extent negative": records(one(shape=[-1, -2]), bytes(8)),
    "extent too large": records(one(shape=[3]), bytes(8)),
    "extent too small": records(one(shape=[1]), bytes(8)),
    "extents overflow": records(one(shape=[2**62, 4]), bytes(8)),
    "extents overflow to nothing": records(one(shape=[2**62, 2**62, 0])),
    "extent beyond 64 bits": records(one(shape=[2**64, 0])),
    "extent of many digits": records(b'{"tensors": [["a", "float32", [' + b"9" * 5000 + b']]], "journal": []}'),
    "bytes missing": records(one(), bytes(7)),
    "bytes left over": records(one(), bytes(9)),
    "bytes nobody named": records(EMPTY, bytes(1)),
    "entry round is text": records(entry(round="1")),
    "entry round is a fraction": records(entry(round=1.5)),
    "entry seed is infinite": records(entry(seed=float("inf"))),
    "entry seed is null": records(entry(seed=None)),
    "entry is short": records({"tensors": [], "journal": [[1, 2]]}),
    "entry lines null": records(entry(lines=None)),
    "name of half a character": records(one("\ud800"), bytes(8)),
}


def test_the_good_record_is_good():
    assert wire.unpack(GOOD).tensors["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_records_are_refused(case):
    with pytest.raises(Refused) as refused:
        wire.unpack(MALFORMED[case])
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("shape", [[1] * 100_000, [2**60] * 30_000, [2**60] * 30_000 + [0]], ids=["ones", "huge", "0"])
def test_a_shape_with_too_many_axes_is_refused_before_they_are_multiplied(shape):
    with pytest.raises(Refused, match="bad shape") as refused:
        wire.unpack(records(one(shape=shape), bytes(4)))
    assert len(str(refused.value)) < 500


VALID = wire.pack(
    State(
        {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.ones(3, 2).half(), "n": torch.tensor(3)},
        (Entry(1, 5, {"k": torch.ones(3, dtype=torch.bfloat16)}),),
    )
)
INDEX: bytes = VALID["index"]["index"]  # type: ignore[index, assignment]
DATA = VALID.array_records["arrays"]["flat"].data


@st.composite
def mutations(draw: st.DrawFn, original: bytes) -> bytes:
    """Some bytes of the original replaced, cut out or put in."""
    mutated = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(mutated)))
        stop = min(len(mutated), start + draw(st.integers(0, 4)))
        mutated[start:stop] = draw(st.binary(max_size=4))
    return bytes(mutated)


def read_or_refused(damaged: RecordDict) -> None:
    try:
        state = wire.unpack(damaged)
    except Refused:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.tensors.values())


@examples(300)
@given(mutations(zlib.decompress(INDEX)))
def test_a_damaged_index_is_read_or_refused(text):
    read_or_refused(records(text, DATA))


@examples(200)
@given(mutations(INDEX))
def test_a_damaged_compression_is_read_or_refused(index):
    read_or_refused(squeezed(index, DATA))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["float32", "bool"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["tensors", "journal"]), inner),
    max_leaves=12,
)


@examples(300)
@given(
    st.fixed_dictionaries({"tensors": JSON | st.lists(st.tuples(st.text(), JSON, JSON)), "journal": JSON}), st.binary()
)
def test_an_index_of_other_types_is_read_or_refused(index, data):
    read_or_refused(records(index, data))


@given(st.binary(max_size=2 * len(DATA)))
def test_bytes_that_do_not_fill_the_index_are_refused(data):
    if len(data) != len(DATA):
        with pytest.raises(Refused):
            wire.unpack(squeezed(INDEX, data))


def test_arrays_with_bytes_left_over_are_refused():
    with pytest.raises(ValueError, match="bytes"):
        wire.from_arrays(ArrayRecord({"h": Array("bfloat16", (1,), wire.STYPE, bytes(4))}))
