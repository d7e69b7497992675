"""States of any tensors, drawn at random."""

import torch
from hypothesis import strategies as st

from strategies.exchange.types import Entry, State, Tensors
from strategies.protocol import wire

DTYPES = [getattr(torch, name) for name in wire.DTYPES]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any dtype, 0 to 3 axes, any bits: NaN payloads, infinities, -0.0 and subnormals among them."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = int(torch.Size(shape).numel())
    if dtype == torch.bool:
        return torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=dtype).reshape(shape)
    data = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    flat = torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)
    tensor = flat.reshape(shape)
    return tensor.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else tensor


def sections(smallest: int = 0) -> st.SearchStrategy[Tensors]:
    return st.dictionaries(st.text(min_size=1, max_size=8), tensors(), min_size=smallest, max_size=4)


def states(smallest: int = 0) -> st.SearchStrategy[State]:
    entries = st.builds(Entry, st.integers(0, 99), st.integers(0, 2**63 - 1), sections(smallest))
    return st.builds(State, sections(), st.lists(entries, max_size=3).map(tuple))
