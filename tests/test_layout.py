"""Named tensors as one vector in blocks: what is read is what was written, whatever sizes, dtypes and strides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strategies.algebra import layout as module
from strategies.algebra.layout import Layout
from strategies.algebra.tensors import Tensors

SIZES = [(3, 5), (1,), (), (0, 4), (17, 31), (256,), (2, 3, 7)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def drawn(shapes: list[tuple[int, ...]], dtypes: list[torch.dtype], seed: int = 0) -> Tensors:
    numbers = torch.Generator().manual_seed(seed)
    pairs = zip(shapes, dtypes, strict=True)
    return {f"t{n}": torch.randn(shape, generator=numbers).to(dtype) for n, (shape, dtype) in enumerate(pairs)}


def vector(tensors: Tensors) -> torch.Tensor:
    """All elements in the order of names, float32."""
    return torch.cat([tensors[name].float().reshape(-1) for name in sorted(tensors)])


def whole(layout: Layout, tensors: Tensors, like: Tensors | None = None) -> torch.Tensor:
    """All blocks in a row, the last one's filling included."""
    return torch.cat([layout.read(tensors, blocks, like).reshape(-1) for blocks in layout.groups()])


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Tensors, int, bool]:
    shapes = draw(st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=6))
    dtypes = [draw(st.sampled_from(DTYPES)) for _ in shapes]
    return drawn(shapes, dtypes), 1 << draw(st.integers(0, 7)), draw(st.booleans())


@given(layouts())
def test_blocks_hold_all_elements_in_the_order_of_names(parts):
    tensors, block, even = parts
    layout = Layout.of(tensors, block, even)
    numbers = vector(tensors)
    assert layout.total == len(numbers)
    assert [b for blocks in layout.groups() for b in blocks] == list(range(layout.count))
    if layout.count:
        read = whole(layout, tensors)
        assert torch.equal(read[: len(numbers)], numbers)
        assert not read[len(numbers) :].any()
        assert len(read) == sum(layout.lengths)


@given(layouts())
def test_what_is_written_is_read_again(parts):
    tensors, block, even = parts
    layout, empty = Layout.of(tensors, block, even), {name: torch.zeros_like(t) for name, t in tensors.items()}
    for blocks in layout.groups():
        layout.write(empty, blocks, layout.read(tensors, blocks))
    for name, tensor in tensors.items():  # those of float64 hold float32 numbers
        assert torch.equal(empty[name], tensor)


@given(layouts())
def test_lengths_are_powers_of_two_that_suffice(parts):
    tensors, block, even = parts
    layout = Layout.of(tensors, block, even)
    assert all(length & (length - 1) == 0 for length in layout.lengths)
    assert sum(layout.lengths) >= layout.total
    if layout.count:
        last = layout.total - (layout.count - 1) * block
        assert layout.lengths[-1] == block if even else last <= layout.lengths[-1] < 2 * last


def test_a_group_is_whole_blocks_of_one_length(monkeypatch):
    monkeypatch.setattr(module, "GROUP", 64)
    layout = Layout.of(drawn([(10, 33)], [torch.float32]), 16)
    assert layout.count == 21
    assert layout.lengths[-1] == 16
    assert [len(blocks) for blocks in layout.groups()] == [4, 4, 4, 4, 4, 1]
    shorter = Layout.of(drawn([(5,), (30,)], [torch.float32] * 2), 16)
    assert shorter.lengths == [16, 16, 4]
    assert list(shorter.groups()) == [range(2), range(2, 3)]


def test_a_block_larger_than_a_group_is_a_group(monkeypatch):
    monkeypatch.setattr(module, "GROUP", 8)
    assert list(Layout.of(drawn([(50,)], [torch.float32]), 16).groups()) == [range(n, n + 1) for n in range(4)]


def test_strides_do_not_show_in_what_is_read():
    tensors = drawn([(6, 9), (4, 5, 3)], [torch.float32, torch.bfloat16])
    turned = {name: t.transpose(0, -1).contiguous().transpose(0, -1) for name, t in tensors.items()}
    layout = Layout.of(tensors, 256)
    assert not any(t.is_contiguous() for t in turned.values())
    assert torch.equal(whole(layout, turned), whole(layout, tensors))


def test_tensors_that_a_write_could_not_reach_are_refused():
    """A copy would be written to, and lost."""
    turned = {"t": torch.zeros(6, 9).T}
    layout = Layout.of(turned, 256)
    with pytest.raises(RuntimeError, match="view"):
        layout.write(turned, range(1), torch.ones(1, layout.lengths[0]))


def test_numbers_are_rounded_to_the_dtypes_of_others():
    tensors = drawn([(7, 9)], [torch.float32])
    like = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    read = whole(Layout.of(tensors, 256), tensors, like)
    assert torch.equal(read[:63], vector(like))
    assert not torch.equal(read[:63], vector(tensors))


@pytest.mark.parametrize("block", [0, -4, 3, 96])
def test_a_block_is_a_power_of_two(block):
    with pytest.raises(ValueError, match=f"power of two of elements, not {block}"):
        Layout.of({"w": torch.ones(4)}, block)
