"""Named-tensor arithmetic against plain loops over Python floats, which are float64."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strategies.algebra.lowrank import rank_axis, truncated
from strategies.algebra.mean import WeightedSum
from strategies.algebra.tensors import Tensors, added, change_since, corner, difference, snapshot

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = st.lists(st.integers(1, 4), max_size=3).map(tuple)
WEIGHTS = st.integers(1, 1000)
SEEDS = st.integers(0, 2**32)


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def places(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(extent) for extent in shape))


def rounded(number: float, dtype: torch.dtype) -> float:
    return torch.tensor(number, dtype=torch.float64).to(dtype).item()


@st.composite
def terms(draw: st.DrawFn) -> tuple[tuple[int, ...], torch.dtype, list[tuple[torch.Tensor, int]]]:
    """A shape, a dtype and weighted terms, each of them a leading corner of that shape."""
    shape, dtype = draw(SHAPES), draw(st.sampled_from(DTYPES))
    found = []
    for _ in range(draw(st.integers(1, 5))):
        small = tuple(draw(st.integers(1, extent)) for extent in shape)
        found.append((values(small, dtype, draw(SEEDS)), draw(WEIGHTS)))
    return shape, dtype, found


@given(terms())
def test_weighted_sum_is_the_sum_of_corners(drawn):
    shape, dtype, weighted = drawn
    total = WeightedSum({"x": torch.zeros(shape, dtype=dtype)})
    for term, weight in weighted:
        total.add({"x": term}, weight)
    mean = total.mean()["x"]
    assert mean.shape == shape
    assert mean.dtype == dtype
    assert total.total == sum(weight for _, weight in weighted)
    for place in places(shape):
        owners = [(t[place].item(), w) for t, w in weighted if all(i < n for i, n in zip(place, t.shape, strict=True))]
        expected = sum(value * weight for value, weight in owners)
        assert total.sums["x"][place].item() == pytest.approx(expected, rel=1e-12, abs=1e-9)
        exact = expected / sum(weight for _, weight in weighted)
        steps = torch.finfo(dtype)  # between numbers, of which those nearest to zero are all equally far apart
        assert abs(mean[place].item() - exact) <= steps.eps * (abs(exact) + steps.smallest_normal) + 1e-9


@given(st.permutations(range(6)), SEEDS)
def test_weighted_sum_does_not_depend_on_the_order_of_terms(order, seed):
    numbers = torch.Generator().manual_seed(seed)
    parts = [torch.randint(-(2**20), 2**20, (7,), generator=numbers).float() / 2**12 for _ in range(6)]
    sums = []
    for arrangement in (range(6), order):
        total = WeightedSum({"x": parts[0]})
        for position in arrangement:
            total.add({"x": parts[position]}, 10.0 + position)
        sums.append(total.mean()["x"])
    assert torch.equal(*sums)


def test_weighted_sum_adds_what_float32_would_lose():
    total = WeightedSum({"x": torch.zeros(1)})
    for value in (2.0**30, 1.0, -(2.0**30)):
        total.add({"x": torch.tensor([value])}, 1)
    assert total.mean()["x"].item() == pytest.approx(1 / 3)


def test_weighted_sum_refuses_what_does_not_fit():
    total = WeightedSum({"x": torch.zeros(2, 2)})
    with pytest.raises(KeyError):
        total.add({"y": torch.zeros(2, 2)}, 1)
    with pytest.raises(RuntimeError):
        total.add({"x": torch.zeros(3, 2)}, 1)


@given(SHAPES, st.data())
def test_corner_is_a_view_of_the_leading_part(shape, data):
    tensor = values(shape, torch.float32, data.draw(SEEDS))
    small = tuple(data.draw(st.integers(0, extent)) for extent in shape)
    part = corner(tensor, torch.Size(small))
    assert part.shape == small
    assert all(part[place] == tensor[place] for place in places(small))
    part.fill_(7.0)
    assert all((tensor[place] == 7.0) for place in places(small))


@given(SHAPES, st.sampled_from(DTYPES), SEEDS)
def test_added_rounds_once(shape, dtype, seed):
    start = {"x": values(shape, dtype, seed), "rest": torch.ones(2)}
    change = {"x": values(shape, dtype, seed + 1) / 64}
    total = added(start, change)
    assert total["rest"] is start["rest"]
    assert total["x"].dtype == dtype
    for place in places(shape):
        assert total["x"][place].item() == rounded(start["x"][place].item() + change["x"][place].item(), dtype)


@given(SHAPES, st.sampled_from(DTYPES), SEEDS)
def test_difference_rounds_once(shape, dtype, seed):
    before = {"x": values(shape, dtype, seed)}
    after = {"x": values(shape, torch.float32, seed + 1), "new": torch.ones(2)}
    change = difference(after, before)
    assert set(change) == {"x"}
    assert change["x"].dtype == dtype
    for place in places(shape):
        assert change["x"][place].item() == rounded(after["x"][place].item() - before["x"][place].item(), dtype)


@given(SHAPES, st.sampled_from(DTYPES), SEEDS)
def test_a_change_is_the_difference_and_takes_the_place_of_before(shape, dtype, seed):
    before = {"x": values(shape, dtype, seed), "y": values((2,), dtype, seed)}
    after = {name: values(tuple(tensor.shape), torch.float32, seed + 1) for name, tensor in before.items()}
    expected = difference(after, before)
    change = change_since(before, after)
    assert change is before
    assert list(change) == list(expected)
    assert all(torch.equal(change[name], expected[name]) for name in expected)


@given(SHAPES, st.sampled_from(DTYPES), SEEDS)
def test_difference_and_added_undo_each_other(shape, dtype, seed):
    before = {"x": values(shape, dtype, seed)}
    after = {"x": values(shape, dtype, seed + 1)}
    back = added(before, difference(after, before))["x"]
    slack = torch.finfo(dtype).eps * (before["x"].abs() + after["x"].abs()).double()
    assert bool(((back.double() - after["x"].double()).abs() <= slack).all())


def test_difference_of_live_parameters_carries_no_gradient():
    live = torch.nn.Parameter(torch.ones(3))
    before = snapshot({"x": live})
    with torch.no_grad():
        live += 1
    change = difference({"x": live}, before)["x"]
    assert not change.requires_grad
    assert change.tolist() == [1.0, 1.0, 1.0]
    assert before["x"].tolist() == [1.0, 1.0, 1.0]


@given(st.integers(1, 5), st.integers(1, 8), SEEDS)
def test_truncated_keeps_the_leading_slices_of_factors(own, rank, seed):
    tensors: Tensors = {
        "m.lora_A.weight": values((own, 3), torch.float32, seed),
        "m.lora_B.weight": values((4, own), torch.float32, seed + 1),
        "head.weight": values((own, own), torch.float32, seed + 2),
    }
    small = truncated(tensors, rank)
    kept = min(own, rank)
    assert small["m.lora_A.weight"].tolist() == tensors["m.lora_A.weight"].tolist()[:kept]
    assert small["m.lora_B.weight"].tolist() == [row[:kept] for row in tensors["m.lora_B.weight"].tolist()]
    assert small["head.weight"] is tensors["head.weight"]


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        ("layer.0.q.lora_A.weight", 0),
        ("layer.0.q.lora_B.weight", 1),
        ("layer.0.q.weight", None),
        ("lora_A", None),
        ("classifier.bias", None),
    ],
)
def test_rank_axis(name, axis):
    assert rank_axis(name) == axis


def test_overflow_shows_as_infinity_and_not_as_a_number():
    big = torch.finfo(torch.float16).max
    total = added({"x": torch.tensor([big], dtype=torch.float16)}, {"x": torch.tensor([big], dtype=torch.float16)})
    assert math.isinf(total["x"].item())
