"""Combinations that liars cannot move far: against float64 references and laws, and in runs with a liar."""

import gc
import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_process import equal
from laws import Plan, plans, scene
from tiers import examples

import strategies
from strategies.algebra.robust import Spill, cut, median, settled, trimmed_mean
from strategies.algebra.tensors import Tensors
from strategies.exchange import compatibility
from strategies.exchange.types import Assignment, State, Update

EXAMPLES = examples(60)
ASSIGNMENT = Assignment(1, 3, 9, 0)
RULES = [
    ("median", {}),
    ("trimmed-mean", {"trim": 0.0}),
    ("trimmed-mean", {"trim": 0.2}),
    ("trimmed-mean", {"trim": 0.5}),
]
matrices = st.integers(1, 9).flatmap(
    lambda n: st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=n, max_size=n), min_size=1, max_size=5)
)  # places of n terms


def reference_median(numbers: Sequence[float]) -> float:
    ordered = sorted(numbers)
    n = len(ordered)
    return ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2


def reference_trimmed(numbers: Sequence[float], k: int) -> float:
    left = sorted(numbers)
    for _ in range(k):
        left.remove(max(left))
        left.remove(min(left))
    return math.fsum(left) / len(left)


def update(node: int, delta: Tensors, weight: float = 1.0) -> Update:
    return Update(str(node), ASSIGNMENT, delta, weight)


def combined(name: str, options: dict[str, Any], state: State, updates: Sequence[Update]) -> Tensors:
    strategy = strategies.load("fedavg", [strategies.load_wrapper(name, **options)])
    return compatibility.combination(strategy)(state, iter(updates))


# ---------------------------------------------------------------------- numbers


@EXAMPLES
@given(matrices)
def test_the_median_is_the_middle(places: list[list[float]]) -> None:
    found = median(np.array(places).T)
    assert found.tolist() == pytest.approx([reference_median(numbers) for numbers in places], rel=1e-12, abs=1e-300)


@EXAMPLES
@given(matrices, st.floats(0, 0.5))
def test_the_trimmed_mean_leaves_out_both_ends(places: list[list[float]], share: float) -> None:
    k = cut(share, len(places[0]))
    found = trimmed_mean(np.array(places).T, share)
    assert found.tolist() == pytest.approx([reference_trimmed(numbers, k) for numbers in places], rel=1e-9, abs=1e-6)


def test_a_share_is_rounded_up_and_leaves_one() -> None:
    assert [cut(0.1, n) for n in (1, 2, 3, 10, 11, 30)] == [0, 0, 1, 1, 2, 3]
    assert [cut(0.5, n) for n in (1, 2, 3, 4, 5)] == [0, 0, 1, 1, 2]
    assert cut(0.0, 100) == 0


@EXAMPLES
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**20))
def test_blocks_do_not_show(terms: int, at_once: int, seed: int) -> None:
    numbers = torch.Generator().manual_seed(seed)
    like = {"a": torch.zeros(3, 4), "b": torch.zeros(5), "c": torch.zeros(())}
    with Spill(like) as spill:
        drawn = [{n: torch.randn(t.shape, generator=numbers) for n, t in like.items()} for _ in range(terms)]
        for term in drawn:
            spill.add(term)
        found = spill.reduced(median, 1, at_once).numbers
    for name in like:
        whole = np.median(torch.stack([term[name].double() for term in drawn]).numpy(), axis=0)
        assert torch.equal(found[name], torch.from_numpy(np.asarray(whole)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.float32])
def test_results_have_the_dtypes_of_the_state(dtype: torch.dtype) -> None:
    like = {"w": torch.zeros(2, dtype=dtype)}
    terms = [{"w": torch.tensor([v, -v]).to(dtype)} for v in (1, 2, 2**20 if dtype == torch.int64 else 4)]
    found = settled(median, 1, like, terms)
    for change in (found.over_owners(like), found.over_all(like), found.padded(like)):
        assert torch.equal(change["w"], torch.tensor([2, -2]).to(dtype))


def test_float64_is_not_narrowed() -> None:
    with Spill({"w": torch.zeros(1, dtype=torch.float64)}) as spill:
        spill.add({"w": torch.tensor([1 / 3], dtype=torch.float64)})
        assert spill.reduced(median).numbers["w"].item() == 1 / 3


def test_smaller_factors_are_corners_and_what_is_missing_is_absent() -> None:
    with Spill({"a": torch.zeros(3, 2), "b": torch.zeros(2)}) as spill:
        for value, rows in ((1.0, 3), (2.0, 2), (7.0, 2)):
            spill.add({"a": torch.full((rows, 2), value)})
        found, pairs = spill.reduced(median), spill.reduced(median, 2)
    assert found.numbers["a"].tolist() == [[2, 2], [2, 2], [1, 1]]
    assert found.share["a"].tolist() == [[1, 1], [1, 1], [1 / 3, 1 / 3]]
    assert pairs.numbers["a"].tolist() == [[2, 2], [2, 2], [0, 0]]
    assert found.numbers["b"].tolist() == found.share["b"].tolist() == [0, 0]
    with Spill({"a": torch.zeros(1)}) as spill, pytest.raises(KeyError):
        spill.add({"strange": torch.zeros(1)})


@pytest.mark.slow
def test_memory_does_not_grow_with_terms() -> None:
    like = {"w": torch.zeros(50_000)}

    def peak(terms: int) -> int:
        gc.collect()
        tracemalloc.start()
        with Spill(like) as spill:
            for number in range(terms):
                spill.add({"w": torch.full((50_000,), float(number))})
            spill.reduced(median, 1, 2**16)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(80) < 1.5 * peak(10)


# ---------------------------------------------------------------------- laws


@pytest.mark.parametrize(("name", "options"), RULES)
@EXAMPLES
@given(plans())
def test_laws(name: str, options: dict[str, Any], plan: Plan) -> None:
    drawn = scene(strategies.load("fedavg"), plan)
    state, updates = drawn.state, drawn.updates
    whole = combined(name, options, state, updates)
    assert equal(whole, combined(name, options, state, updates[::-1])), "the order does not matter, to the last bit"
    assert equal(whole, combined(name, options, state, [replace(u, weight=7.0**n) for n, u in enumerate(updates)]))
    nothing = [replace(u, delta={n: torch.zeros_like(t) for n, t in u.delta.items()}) for u in updates]
    assert not any(tensor.any() for tensor in combined(name, options, state, nothing).values())
    lone = combined(name, options, state, updates[:1])
    assert equal(lone, updates[0].delta), "one node: its update"


@pytest.mark.parametrize(
    ("name", "options", "liars", "of"),
    [
        ("median", {}, 1, 3),
        ("median", {}, 4, 9),
        ("trimmed-mean", {"trim": 0.1}, 1, 10),
        ("trimmed-mean", {"trim": 0.3}, 3, 9),
    ],
)
@EXAMPLES
@given(st.integers(0, 2**20), st.lists(st.floats(-1e12, 1e12), min_size=4, max_size=4))
def test_liars_do_not_leave_the_range_of_the_honest(
    name: str, options: dict[str, Any], liars: int, of: int, seed: int, lies: list[float]
) -> None:
    numbers = torch.Generator().manual_seed(seed)
    honest = [{"w": torch.randn(20, generator=numbers)} for _ in range(of - liars)]
    wild = [{"w": torch.full((20,), lies[n])} for n in range(liars)]
    sent = [update(n, delta, 1e12 if n >= len(honest) else 1) for n, delta in enumerate(honest + wild)]
    found = combined(name, options, State({"w": torch.zeros(20)}), sent)["w"]
    stacked = torch.stack([delta["w"] for delta in honest])
    assert bool((found >= stacked.amin(0)).all())
    assert bool((found <= stacked.amax(0)).all())


def test_without_trimming_it_is_the_mean_of_nodes() -> None:
    drawn = scene(strategies.load("fedavg"), Plan((2, 2, 2), (0, 1, 2), (5, 5, 5), 3))
    plain = drawn.strategy.combine(drawn.state, iter(drawn.updates))
    for tensor, other in zip(
        combined("trimmed-mean", {"trim": 0.0}, drawn.state, drawn.updates).values(), plain.values()
    ):
        torch.testing.assert_close(tensor, other)
