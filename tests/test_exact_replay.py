"""Equal bits on every machine: integers are summed exactly, in whatever order; and what makes such integers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiers import examples

from strategies.algebra import hadamard
from strategies.algebra.layout import Layout
from strategies.algebra.philox import Seeds
from strategies.algebra.projection import (
    BASES,
    LARGEST,
    SMALLEST,
    Coordinates,
    Projection,
    allotted,
    from_exact,
    weighted,
)

LENGTH = 1 << 18
ORDERS = {"64 x 64 x 64": [64] * 3, "512 x 512": [512] * 2, "twos": [2] * 18}


def whole() -> torch.Tensor:
    """4096 of 2^18 places hold integers, whose magnitudes sum to just less than 2^24."""
    numbers = torch.Generator().manual_seed(3)
    values = torch.zeros(1, LENGTH)
    places = torch.randperm(LENGTH, generator=numbers)[:4096]
    values[0, places] = torch.randint(-8000, 8001, (4096,), generator=numbers).float()
    values[0, places[0]] += hadamard.EXACT - 1 - float(values.double().abs().sum())
    assert 0 < hadamard.EXACT - float(values.double().abs().sum()) <= 2 * 8000
    return values


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


# ---------------------------------------------------------------------- the transform


@pytest.mark.parametrize("orders", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("count", [1, 2])
def test_integers_come_out_alike_by_any_factors_and_threads(threads, orders, count):
    expected = hadamard.transform(whole())
    threads(count)
    assert torch.equal(hadamard.transform(whole(), orders), expected)


def test_they_come_out_as_in_float64():
    expected = hadamard.transform(whole())
    exact = whole().double().view(512, 512)
    matrix = hadamard._matrix(512, "cpu").double()
    assert torch.equal((matrix @ exact @ matrix).view(1, -1), expected.double())


def test_other_numbers_do_not():
    """The counterexample: why coordinates are integers."""
    values = torch.randn(1, LENGTH, generator=torch.Generator().manual_seed(3))
    one, *others = (hadamard.transform(values, orders) for orders in ORDERS.values())
    assert not any(torch.equal(one, other) for other in others)
    torch.testing.assert_close(one, others[0], rtol=1e-3, atol=1e-2)


def test_integers_of_larger_sums_need_not():
    values = torch.full((1, LENGTH), 8191.0)
    values[0, ::3] = 8190.0
    found = [hadamard.transform(values, orders) for orders in ORDERS.values()]
    assert not all(torch.equal(found[0], other) for other in found[1:])


def test_a_users_matmul_precision_is_neither_used_nor_changed():
    expected = hadamard.transform(whole())
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(hadamard.transform(whole()), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("length", [1, 2, 64, 128, 4096, 65536])
def test_factors_make_up_the_length(length):
    orders = hadamard._orders(length)
    assert np.prod(orders) == length
    assert max(orders) <= 64


# ---------------------------------------------------------------------- coordinates of a cohort


def cohort(basis: str) -> tuple[Projection, list[Coordinates], list[Seeds]]:
    """Three nodes with coordinates in blocks of 4096, 4096 and 2048."""
    of = Projection(Layout.of({"w": torch.zeros(10_000)}, 4096), basis, 300)
    seeds = [Seeds(5, own) for own in (6, 7, 8)]
    numbers = torch.Generator().manual_seed(1)
    nodes = [{"w": torch.randn(10_000, generator=numbers)} for _ in seeds]
    rows = [of.project(node, {"w": torch.zeros(10_000)}, own) for node, own in zip(nodes, seeds, strict=True)]
    return of, weighted(rows, [0.5, 0.3, 0.2]), seeds


def rebuilt(basis: str, device: str = "cpu") -> torch.Tensor:
    of, rows, seeds = cohort(basis)
    parts = [of.rebuilt(rows, seeds, blocks, torch.device(device)).reshape(-1) for blocks in of.layout.groups()]
    return torch.cat(parts).cpu()


@pytest.mark.parametrize("basis", BASES)
def test_what_is_rebuilt_does_not_depend_on_threads(threads, basis):
    expected = rebuilt(basis)
    threads(2)
    assert torch.equal(rebuilt(basis), expected)


@pytest.mark.parametrize("basis", BASES)
def test_what_is_rebuilt_does_not_depend_on_groups(monkeypatch, basis):
    expected = rebuilt(basis)
    monkeypatch.setattr("strategies.algebra.layout.GROUP", 1)
    assert torch.equal(rebuilt(basis), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("basis", BASES)
def test_what_is_rebuilt_has_the_same_bits_on_cuda(basis):
    assert torch.equal(rebuilt(basis, "cuda"), rebuilt(basis))
    for orders in ORDERS.values():
        assert torch.equal(hadamard.transform(whole().cuda(), orders).cpu(), hadamard.transform(whole()))


# ---------------------------------------------------------------------- numbers become integers


def sizes() -> st.SearchStrategy[float]:
    return st.floats(-1e30, 1e30) | st.floats(-1, 1) | st.floats(-1e-35, 1e-35)


@given(st.lists(st.lists(sizes(), min_size=1, max_size=40), min_size=1, max_size=4), st.integers(1, 200))
@examples(200)
def test_integers_are_small_near_and_sum_to_less_than_two_to_the_24(blocks, times):
    """Every number `times` over, so that sums are as large as single numbers."""
    exact = torch.tensor([number for block in blocks for number in block * times], dtype=torch.float64)
    counts = torch.tensor([len(block) * times for block in blocks])
    given_ = from_exact(exact, counts)
    assert given_.numbers.dtype == torch.int16
    assert int(given_.numbers.int().abs().max()) <= LARGEST
    for part in torch.split(given_.numbers.long(), counts.tolist()):
        assert int(part.abs().sum()) < hadamard.EXACT
    scales = given_.scales.double().repeat_interleave(counts)
    tiny = float(torch.finfo(torch.float32).tiny)  # a smaller scale is none
    off = (given_.exact() - exact).abs()
    assert bool((off <= torch.where(scales > 0, scales * 0.5001, LARGEST * tiny * 600)).all())


def test_many_equal_numbers_are_held_down_by_their_sum():
    given_ = from_exact(torch.ones(60_000, dtype=torch.float64), torch.tensor([60_000]))
    total = int(given_.numbers.long().sum())
    assert 0.98 * hadamard.EXACT < total < hadamard.EXACT
    torch.testing.assert_close(given_.exact(), torch.ones(60_000, dtype=torch.float64), rtol=2e-3, atol=0.0)


def test_a_whole_cohorts_integers_sum_to_less():
    """Rows share scales, so that all of them can be put into one vector."""
    rows = [from_exact(torch.ones(6000, dtype=torch.float64), torch.tensor([6000]))] * 20
    shared = weighted(rows, [0.05] * 20)
    assert all(torch.equal(row.scales, shared[0].scales) for row in shared)
    assert sum(int(row.numbers.long().abs().sum()) for row in shared) < hadamard.EXACT
    total = sum(float(row.exact().sum()) for row in shared)
    assert total == pytest.approx(6000, rel=2e-2)


def test_one_huge_number_leaves_no_room_for_the_others():
    exact = torch.tensor([1e30, 1.0, -1.0], dtype=torch.float64)
    given_ = from_exact(exact, torch.tensor([3]))
    assert given_.numbers.tolist() == [LARGEST, 0, 0]
    apart = from_exact(exact, torch.tensor([1, 2]))
    assert apart.numbers.tolist() == [LARGEST, LARGEST, -LARGEST]


@pytest.mark.parametrize("size", [0.0, 1e-300])
def test_what_is_too_small_for_a_scale_is_zero(size):
    given_ = from_exact(torch.full((4,), size, dtype=torch.float64), torch.tensor([4]))
    assert not given_.numbers.any()
    assert not given_.scales.any()


# ---------------------------------------------------------------------- how blocks share coordinates


@st.composite
def shares(draw: st.DrawFn) -> tuple[np.ndarray, int, list[int]]:
    lengths = draw(st.lists(st.sampled_from([1, 2, 64, 256]), min_size=1, max_size=12))
    size = st.floats(0, 1e12) | st.just(0.0) | st.floats(0, 1)
    norms = np.array(draw(st.lists(size, min_size=len(lengths), max_size=len(lengths))))
    return norms, draw(st.integers(len(lengths), sum(lengths))), lengths


@given(shares())
def test_shares_add_up_and_fit(drawn):
    norms, total, lengths = drawn
    counts = allotted(norms, total, lengths)
    assert counts.dtype == np.int32
    assert counts.sum() == total
    assert (counts >= 1).all()
    assert (counts <= lengths).all()


@given(shares())
def test_shares_are_in_proportion_to_norms(drawn):
    """Between two blocks that are at neither limit, within one coordinate each."""
    norms, total, lengths = drawn
    counts = allotted(norms, total, lengths)
    norms = np.maximum(norms, SMALLEST * norms.max())
    free = [n for n in range(len(lengths)) if 1 < counts[n] < lengths[n] - 1 and norms[n] > 0]
    for one in free:
        for other in free:
            ratio = norms[one] / norms[other]
            assert counts[one] <= (counts[other] + 1) * ratio + 1 + 1e-6 * counts[one]


def test_shares_by_hand():
    assert allotted(np.array([3.0, 1.0]), 40, [256, 256]).tolist() == [30, 10]
    assert allotted(np.array([3.0, 1.0]), 300, [200, 256]).tolist() == [200, 100]
    assert allotted(np.array([5.0, 0.0]), 20, [256, 256]).tolist() == [19, 1]
    assert allotted(np.zeros(3), 9, [4, 4, 1]).tolist() == [4, 4, 1]
    assert allotted(np.zeros(2), 30, [256, 128]).tolist() == [20, 10]
