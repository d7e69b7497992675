"""Convert tensors to Flower records and back.

A state or an update crosses as one contiguous byte array and a compressed index of names, dtypes and shapes. Compared
with one array per tensor, this halves the bytes of small adapters, carries every dtype bit for bit (bfloat16 included,
which Flower's own arrays refuse), and makes sizes depend on shapes alone. Nothing here unpickles, and everything is
validated before it is used.
"""

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import InflatableObject, no_object_id_recompute

from strategies.algebra.tensors import Tensors, raw
from strategies.exchange.types import BASE_POSITION, Entry, Refused, State
from task.storage.paging import Buffer, release_pages, stored

STYPE = "thistledown.flat"
INDEX_LIMIT = 16 * 2**20  # bytes an index may take when decompressed
INDEX_SLACK = 2**14  # beyond the expected index, so that an error can name the wrong tensor
MAX_AXES, MAX_EXTENT = 16, 2**48  # of a tensor; torch's own errors for larger ones are slow and long
POSITION = re.compile(r"[0-9a-f]{32}")
IN_JOURNAL = re.compile(r"journal/([0-9]+)/([0-9]+)/([0-9]+)/(.*)", re.DOTALL)  # names of an entry's tensors
SHOWN = 200  # characters of an error that a reason repeats
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip
Line = list[Any]  # [name, dtype, shape] in the index


def pack(state: State) -> RecordDict:
    """Return the records `arrays` and `index` of a state (an update is a state without a journal)."""
    sections = [_aligned(part) for part in (state.tensors, state.base_weights, *(e.tensors for e in state.journal))]
    index = {
        "tensors": _lines(sections[0]),
        "journal": [[e.round, e.seed, _lines(s)] for e, s in zip(state.journal, sections[2:], strict=True)],
        **({"since": state.since} if state.since else {}),
        **({"ground": _lines(sections[1])} if state.base_weights else {}),
    }
    data = _bytes_of([tensor for section in sections for _, tensor in section])
    arrays = {"flat": Array("uint8", (len(data),), STYPE, data)} if data else {}
    squeezed = zlib.compress(json.dumps(index, separators=(",", ":")).encode(), 9)
    return RecordDict({"arrays": ArrayRecord(arrays), "index": ConfigRecord({"index": squeezed})})


def unpack(records: RecordDict, limit: int = INDEX_LIMIT) -> State:
    """Return the state in `records`, whose index is no larger than `limit`. Raises Refused if bytes and index do not
    match. No tensor is made before the bytes of its shape are known to be there."""
    try:
        index = _read_index(_only(records.config_records["index"], "index"), limit)
        array = _only(records.array_records["arrays"], "flat")
        data = stored(array.data if array is not None else b"")
        reader = _Reader(data)
        tensors = reader.section(index["tensors"])
        base_weights = reader.section(index.get("ground", []))
        journal = tuple(Entry(_whole(r), _whole(s), reader.section(lines)) for r, s, lines in index["journal"])
        since = _position(index.get("since", BASE_POSITION))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise Refused(f"unreadable record: {type(error).__name__}: {str(error)[:SHOWN]}") from error
    if reader.offset != len(data):
        raise Refused(f"record holds {len(data)} bytes, its index accounts for {reader.offset}")
    return State(tensors, journal, since, base_weights)


def taken(records: RecordDict) -> State:
    """Return the state in a message as `unpack` does, and take its bytes out of the message: those of a whole model
    would otherwise stay in memory while the node trains."""
    state = unpack(records)
    del records["arrays"]
    return state


def index_limit(expected: Mapping[str, torch.Tensor]) -> int:
    """Return the largest size that the index of an update like this may have."""
    return len(json.dumps(_lines(expected.items()))) + INDEX_SLACK


def size(record: InflatableObject) -> int:
    """Return the bytes of a record as Flower encodes it for the wire, including nested objects and headers.

    The bytes of arrays are hashed for Flower's names of objects, once for each array, and not encoded.
    """
    with no_object_id_recompute():
        return sum(_length(part) for part in _parts(record.object_id, record).values())


def _parts(name: str, record: InflatableObject) -> dict[str, InflatableObject]:
    """Return a record and its nested objects by Flower's names for them; objects that are equal count once."""
    parts = {name: record}
    for own, child in (record.children or {}).items():
        parts |= _parts(own, child)
    return parts


def _length(part: InflatableObject) -> int:
    """Return the bytes of one object. Those of a chunk follow a header that ends with their number."""
    if not isinstance(part, ArrayChunk):
        return len(part.deflate())
    count = len(part.data)
    return len(ArrayChunk(memoryview(b"")).deflate()) - len("0") + len(str(count)) + count


@lru_cache
def head(names: tuple[str, ...]) -> int:
    """Return the part of this size that a RecordDict itself takes: names and references, whatever the records hold."""
    return len(RecordDict({name: ConfigRecord({"n": n}) for n, name in enumerate(names)}).deflate())


def to_arrays(state: State) -> ArrayRecord:
    """Return a state as Flower's `Result.arrays` carries it: tensors by name, and tensors of the journal as
    `journal/<number>/<round>/<seed>/<name>`. Tensors that only the server has are left out. Raises ValueError for a
    tensor that has such a name itself."""
    named = dict(state.tensors)
    if taken := [name for name in named if IN_JOURNAL.fullmatch(name)]:
        raise ValueError(f"a tensor is named {taken[0]!r:.80}, as those of the journal are; rename it")
    for number, entry in enumerate(state.journal):
        named |= {f"journal/{number}/{entry.round}/{entry.seed}/{n}": t for n, t in entry.tensors.items()}
    return ArrayRecord({name: _array(tensor) for name, tensor in named.items()})


def from_arrays(arrays: ArrayRecord) -> State:
    """Return the state in an ArrayRecord, either ours or one made from a torch state dict."""
    tensors: Tensors = {}
    entries: dict[int, tuple[int, int, Tensors]] = {}
    for name, array in arrays.items():
        tensor = _tensor(array)
        if found := IN_JOURNAL.fullmatch(name):
            number, round_, seed, own = found.groups()
            entries.setdefault(int(number), (int(round_), int(seed), {}))[2][own] = tensor
        else:
            tensors[name] = tensor
    return State(tensors, tuple(Entry(*entries[number]) for number in sorted(entries)))


def _array(tensor: torch.Tensor) -> Array:
    """Return NumPy's format if NumPy has the dtype, so that plain Flower code can read it too."""
    if tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        return Array(_dtype_name(tensor), tuple(tensor.shape), STYPE, bytes(raw(tensor)))
    return Array(tensor.detach().cpu().contiguous().numpy())


def _tensor(array: Array) -> torch.Tensor:
    if array.stype == STYPE:
        reader = _Reader(bytearray(array.data))
        tensor = reader.tensor(array.dtype, list(array.shape))
        if reader.offset != len(reader.data):
            raise ValueError(f"array holds {len(reader.data)} bytes, its shape accounts for {reader.offset}")
        return tensor
    return torch.from_numpy(array.numpy().copy())


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _bytes_of(tensors: list[torch.Tensor]) -> bytes:
    """Return the bytes of tensors in a row."""

    def pieces() -> Iterator[memoryview]:
        for tensor in tensors:
            yield raw(tensor)
            release_pages()

    return joined(pieces(), sum(tensor.nbytes for tensor in tensors))


def joined(pieces: Iterable[bytes | memoryview], size: int) -> bytes:
    """Return pieces in a row, `size` bytes together, with one of them in memory at a time. The room for all is taken at
    once: where it grows, it leaves a hole of this size in the heap when it is freed."""
    file = BytesIO()
    file.seek(max(0, size - 1))
    file.write(b"\0"[:size])
    file.seek(0)
    for piece in pieces:
        file.write(piece)
    return file.getvalue()  # without a copy


def _aligned(tensors: Tensors) -> list[tuple[str, torch.Tensor]]:
    """Return the names, widest dtype first, so that every tensor starts at a multiple of its own item size."""
    return sorted(tensors.items(), key=lambda item: -item[1].element_size())


def _lines(section: Iterable[tuple[str, torch.Tensor]]) -> list[Line]:
    return [[name, _dtype_name(tensor), list(tensor.shape)] for name, tensor in section]


def _only(record: Mapping[str, Any], name: str) -> Any:
    """Return what a record holds under this name, and under no other; None if it is empty."""
    if strange := [key for key in record if key != name]:
        raise ValueError(f"{strange[0]!r:.80} is next to '{name}'")
    return record.get(name)


def _read_index(squeezed: object, limit: int) -> dict[str, Any]:
    if not isinstance(squeezed, bytes):
        raise ValueError("the index is not bytes")
    opener = zlib.decompressobj()
    try:
        text = opener.decompress(squeezed, limit)
    except zlib.error as error:
        raise ValueError(f"the index cannot be decompressed: {error}") from error
    if (not opener.eof and not opener.unconsumed_tail) or opener.unused_data:
        raise ValueError("the index is cut off, or something follows it")
    if opener.unconsumed_tail:
        raise ValueError(f"the index is larger than {limit} bytes")
    index = json.loads(text)
    if not isinstance(index, dict):
        raise ValueError("the index is not a table")
    return index


def _whole(number: object) -> int:
    if type(number) is not int:
        raise ValueError(f"{number!r} is not a whole number")
    return number


def _position(text: object) -> str:
    if not isinstance(text, str) or (text != BASE_POSITION and not POSITION.fullmatch(text)):
        raise ValueError(f"{text!r:.80} is not a journal position")  # on a node it becomes a folder's name
    return text


class _Reader:
    """Reads tensors off a byte buffer, one after the other; they share its memory."""

    def __init__(self, data: Buffer) -> None:
        self.data, self.offset = data, 0

    def section(self, lines: list[Line]) -> Tensors:
        tensors: Tensors = {}
        for name, dtype, shape in lines:
            if not isinstance(name, str) or name in tensors:
                raise ValueError(f"bad or repeated name {name!r}")
            name.encode()  # UnicodeEncodeError for half a character, which no log or file could hold
            tensors[name] = self.tensor(dtype, shape)
        return tensors

    def tensor(self, dtype: str, shape: list[int]) -> torch.Tensor:
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}")
        if len(shape) > MAX_AXES or any(type(n) is not int or not 0 <= n <= MAX_EXTENT for n in shape):
            raise ValueError(f"bad shape {shape!r}")
        kind = DTYPES[dtype]
        count = 1
        for extent in shape:
            count *= extent
        end = self.offset + count * kind.itemsize
        if end > len(self.data):
            raise ValueError(f"{len(self.data)} bytes end inside a tensor of shape {shape}")
        if count == 0:
            return torch.empty(shape, dtype=kind)
        start, self.offset = self.offset, end
        if kind is torch.bool and max(self.data[start:end]) > 1:  # torch takes any byte, and then counts wrong
            raise ValueError(f"a bool is 0 or 1, not {max(self.data[start:end])}")
        if start % kind.itemsize:
            own = bytearray(self.data[start:end])  # sections after the first may begin unaligned
            return torch.frombuffer(own, dtype=kind).reshape(shape)
        return torch.frombuffer(self.data, dtype=kind, count=count, offset=start).reshape(shape)
