"""The wrapper quantize: its rounding against plain float64, its bytes, and what its server half refuses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_wrappers import accepted

import strategies
from strategies.algebra.quantiser import packed, quantised, uniform, unpacked
from strategies.algebra.tensors import Tensors
from strategies.exchange.types import Assignment, Refused, State
from strategies.exchange.wrapper import Wrapper
from strategies.protocol import wire
from strategies.wrappers.quantize import LEVELS, SCALES

LARGEST = {8: 127, 4: 7}
ADAPTER = {  # of rank 8, on queries and values of twelve layers of a ViT-B
    f"vit.encoder.layer.{i}.attention.{part}.lora_{f}.weight": torch.Size((8, 768) if f == "A" else (768, 8))
    for i in range(12)
    for part in ("query", "value")
    for f in "AB"
} | {"classifier.weight": torch.Size((100, 768)), "classifier.bias": torch.Size((100,))}


def quantize(**options: object) -> Wrapper:
    return strategies.load_wrapper("quantize", **({"feedback": False} | options))


def assignment(seed: int) -> Assignment:
    return Assignment(1, 3, seed, 2)


def travel(wrapper: Wrapper, update: Tensors, seed: int = 9) -> Tensors:
    return wrapper.decode(wrapper.encode(update, assignment(seed), {}), update)


def scales_of(values: list[float], block: int, largest: int) -> list[float]:
    """Every number's scale, in float64."""
    starts = range(0, len(values), block)
    return [max(map(abs, values[i : i + block])) / largest for i in starts for _ in values[i : i + block]]


@pytest.mark.first(1)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("block", [8, 128])
@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=70))
def test_it_is_the_nearest_level_in_float64(bits: int, block: int, values: list[float]) -> None:
    back = travel(quantize(bits=bits, block=block, rounding="nearest"), {"w": torch.tensor(values)})["w"]
    for value, found, scale in zip(values, back.tolist(), scales_of(values, block, LARGEST[bits]), strict=True):
        assert abs(found - value) <= scale * (0.5 + 1e-5) + 2e-43  # the rest is float32 and its smallest numbers


@pytest.mark.parametrize("bits", [8, 4])
@given(values=st.lists(st.floats(-1e30, 1e30), max_size=70), seed=st.integers(0, 2**63 - 1))
def test_rounding_at_random_errs_by_less_than_a_scale(bits: int, values: list[float], seed: int) -> None:
    update = {"w": torch.tensor(values, dtype=torch.float64)}
    back = travel(quantize(bits=bits), update, seed)["w"]
    for value, found, scale in zip(values, back.tolist(), scales_of(values, 128, LARGEST[bits]), strict=True):
        assert abs(found - value) <= scale * (1 + 1e-5) + 2e-43


@pytest.mark.first(1)
@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_at_random_is_unbiased(bits: int) -> None:
    """The mean over seeds is within four standard errors, scale * sqrt(f (1 - f) / seeds) with f the fraction that is
    rounded. Where hardly any seed changes the level, as of the largest of a block, errors are not normal: left out.
    """
    seeds, update = 2000, {"w": torch.randn(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}
    found = torch.stack([travel(quantize(bits=bits), update, seed)["w"] for seed in range(seeds)])
    errors = found - update["w"]
    scales = torch.tensor(scales_of(update["w"].tolist(), 128, LARGEST[bits]), dtype=torch.float64)
    fraction = (update["w"] / scales).frac().abs()
    standard = scales * (fraction * (1 - fraction) / seeds).sqrt()
    normal = seeds * fraction * (1 - fraction) >= 9
    assert int(normal.sum()) > 250
    assert bool((errors.mean(0).abs() <= 4 * standard)[normal].all())
    nearest = travel(quantize(bits=bits, rounding="nearest"), update)["w"] - update["w"]
    assert bool((nearest.abs() > 4 * standard).any()), "rounding to nearest has a bias that this would see"


def test_a_level_is_the_floor_of_value_over_scale_plus_noise() -> None:
    values = torch.linspace(-3, 3, 61, dtype=torch.float64)
    levels, scales = quantised(values, 16, 7, uniform(5, 2))
    u = uniform(5, 2)(0, 61)
    expected = [math.floor(v / scales[i // 16].item() + u[i].item()) for i, v in enumerate(values.tolist())]
    assert levels.tolist() == expected
    assert bool((levels.abs() <= 7).all())


def test_random_numbers_never_change() -> None:
    """Two of every word of Philox (see test_philox.py), the low half first; in pieces as in one."""
    assert uniform(7, 3)(0, 2).tolist() == [0x862CC5F2 / 2**32, 0x7B6CC7B1 / 2**32]
    assert torch.equal(uniform(7, 3)(0, 100)[40:], uniform(7, 3)(40, 60))


def test_rounding_depends_only_on_the_seed_of_the_assignment() -> None:
    update = {"w": torch.randn(500), "v": torch.randn(500)}
    one, again, other = (quantize().encode(update, assignment(seed), {})[LEVELS] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    same = quantize().encode({"a": update["w"], "b": update["w"]}, assignment(1), {})[LEVELS]
    assert not torch.equal(same[:500], same[500:])


def test_large_tensors_are_worked_on_in_pieces() -> None:
    values = torch.randn(2**20 + 300)
    levels, scales = quantised(values, 24, 127, uniform(1, 0))
    assert bool(((levels.double() * scales.double().repeat_interleave(24)[: len(values)] - values).abs() < 0.05).all())


@given(levels=st.lists(st.integers(-8, 7), max_size=9))
def test_pairs_of_levels_are_bytes(levels: list[int]) -> None:
    pairs = packed(torch.tensor(levels, dtype=torch.int8))
    assert len(pairs) == -(-len(levels) // 2)
    assert unpacked(pairs, len(levels)).tolist() == levels


@pytest.mark.parametrize("bits", [8, 4])
def test_odd_shapes_and_what_is_no_float(bits: int) -> None:
    update = {
        "number": torch.tensor(3.5),
        "none": torch.zeros(0, 4),
        "zeros": torch.zeros(5),
        "odd": torch.randn(3, 43),
        "turned": torch.randn(4, 7).T,
        "brain": torch.randn(9).bfloat16(),
        "coordinates": torch.arange(7, dtype=torch.int16),
        "flag": torch.tensor([True]),
    }
    back = accepted(strategies.load("fedavg", [quantize(bits=bits)]), _sent(quantize(bits=bits), update), update)
    assert {n: (t.shape, t.dtype) for n, t in back.items()} == {n: (t.shape, t.dtype) for n, t in update.items()}
    for name in ("zeros", "none", "coordinates", "flag"):
        assert torch.equal(back[name], update[name])
    assert back["number"].item() == pytest.approx(3.5)


def _sent(wrapper: Wrapper, update: Tensors) -> Tensors:
    return wrapper.encode(update, assignment(1), {})


def test_an_update_without_floats_passes() -> None:
    update = {"count": torch.arange(4)}
    assert _sent(quantize(), update).keys() == update.keys()
    assert torch.equal(travel(quantize(), update)["count"], update["count"])


@pytest.mark.parametrize(("bits", "share"), [(8, 0.27), (4, 0.145)])
def test_its_bytes(bits: int, share: float) -> None:
    update = {name: torch.randn(shape) for name, shape in ADAPTER.items()}
    code = _sent(quantize(bits=bits, feedback=True), update)
    assert wire.size(wire.pack(State(code))) < share * sum(tensor.nbytes for tensor in update.values())


# ---------------------------------------------------------------------- hostile replies

UPDATE = {"w": torch.ones(5, 3), "n": torch.arange(3)}
BAD = [
    (8, {LEVELS: torch.full((15,), -128, dtype=torch.int8)}, "holds a level below -127"),
    (4, {LEVELS: torch.zeros(8, dtype=torch.uint8)}, "holds a level below -7"),
    (8, {LEVELS: torch.zeros(14, dtype=torch.int8)}, "has shape"),
    (8, {LEVELS: torch.zeros(15)}, "has dtype torch.float32, expected torch.int8"),
    (8, {SCALES: torch.tensor([-1.0])}, "holds a negative number"),
    (8, {SCALES: torch.tensor([math.nan])}, "holds NaN or infinity"),
    (8, {SCALES: torch.tensor([math.inf])}, "holds NaN or infinity"),
    (8, {SCALES: torch.tensor([3e38])}, f"'{SCALES}' holds 3e"),
    (8, {SCALES: torch.tensor([1e12])}, "'w' holds .*; the largest number allowed in an update is 1e"),
    (8, {SCALES: torch.ones(2)}, "has shape"),
    (8, {"w": torch.ones(5, 3)}, "'w' not asked for"),
    (8, {"n": torch.ones(3)}, "has dtype"),
]


@pytest.mark.parametrize(("bits", "change", "said"), BAD)
def test_a_bad_code_is_refused(bits: int, change: Tensors, said: str) -> None:
    wrapper = quantize(bits=bits, rounding="nearest")
    with pytest.raises(Refused, match=said):
        accepted(strategies.load("fedavg", [wrapper]), _sent(wrapper, UPDATE) | change, UPDATE)


@pytest.mark.parametrize("missing", [LEVELS, SCALES, "n"])
def test_a_part_is_missing(missing: str) -> None:
    code = _sent(quantize(), UPDATE)
    del code[missing]
    with pytest.raises(Refused, match=f"'{missing}' missing"):
        accepted(strategies.load("fedavg", [quantize()]), code, UPDATE)
