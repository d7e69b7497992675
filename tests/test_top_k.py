"""The wrapper top-k: what is sent against a plain sort, its bytes, and what its server half refuses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_process import equal
from test_wrappers import ASSIGNMENT, accepted

import strategies
from strategies.algebra.sparse import coded, decoded, largest
from strategies.algebra.tensors import Tensors
from strategies.exchange.types import Refused, State
from strategies.exchange.wrapper import Wrapper
from strategies.protocol import wire
from strategies.wrappers.top_k import PLACES, VALUES


def top_k(**options: object) -> Wrapper:
    return strategies.load_wrapper("top-k", **({"feedback": False} | options))


def sent(wrapper: Wrapper, update: Tensors) -> Tensors:
    return wrapper.encode(update, ASSIGNMENT, {})


@given(
    parts=st.lists(st.lists(st.integers(-4, 4), max_size=12), min_size=1, max_size=4),
    fraction=st.floats(1e-6, 1.0),
)
def test_the_largest_of_all_tensors_come_and_of_equal_ones_the_first(parts: list[list[int]], fraction: float) -> None:
    update = {f"t{number}": torch.tensor(part, dtype=torch.float32) for number, part in enumerate(parts)}
    flat = [value for part in parts for value in part]
    count = math.ceil(fraction * len(flat) - 1e-9)
    chosen = sorted(range(len(flat)), key=lambda place: (-abs(flat[place]), place))[:count]
    wrapper = top_k(fraction=fraction)
    back = wrapper.decode(sent(wrapper, update), update)
    found = torch.cat([back[name] for name in sorted(back)]).tolist()
    assert found == [value if place in chosen else 0 for place, value in enumerate(flat)]


@pytest.mark.parametrize("feedback", [True, False])
def test_all_of_it_is_the_update_bit_for_bit(feedback: bool) -> None:
    update = {
        "w": torch.randn(4, 3),
        "b": torch.randn(2).bfloat16(),
        "d": torch.randn(2).double(),
        "n": torch.arange(3),
    }
    kept: Tensors = {}
    code = top_k(fraction=1.0, feedback=feedback).encode(update, ASSIGNMENT, kept)
    assert equal(code, update)
    assert not kept
    assert equal(accepted(strategies.load("fedavg", [top_k(fraction=1.0)]), code, update), update)


@pytest.mark.parametrize(
    "dtypes", [[torch.float32], [torch.bfloat16], [torch.float16, torch.bfloat16], [torch.float64]]
)
def test_values_are_as_they_are(dtypes: list[torch.dtype]) -> None:
    update = {str(dtype): torch.randn(50, 3).to(dtype) for dtype in dtypes} | {"count": torch.arange(4)}
    wrapper = top_k(fraction=0.2)
    back = accepted(strategies.load("fedavg", [wrapper]), sent(wrapper, update), update)
    assert torch.equal(back["count"], update["count"])
    for name, tensor in update.items():
        assert back[name].dtype == tensor.dtype
        assert bool(((back[name] == tensor) | (back[name] == 0)).all())


@given(st.data())
def test_places_go_in_and_come_out(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 300))
    places = sorted(data.draw(st.sets(st.integers(0, total - 1), min_size=1)))
    code = coded(torch.tensor(places), total)
    assert code.nbytes == min(4 * len(places), -(-total // 8))
    assert decoded(code, len(places), total).tolist() == places


def test_the_largest_of_many() -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(3))
    assert set(largest(values, 1000).tolist()) == set(values.abs().topk(1000).indices.tolist())


@pytest.mark.parametrize(("fraction", "share"), [(0.01, 0.025), (0.1, 0.14)])
def test_its_bytes(fraction: float, share: float) -> None:
    """A hundredth: 4 bytes each and 4 for the place. A tenth: 4 each and a bit for every number."""
    update = {f"layer.{i}.lora_{f}.weight": torch.randn(8, 768) for i in range(12) for f in "AB"}
    plain, code = (sum(t.nbytes for t in update.values()), sent(top_k(fraction=fraction), update))
    assert wire.size(wire.pack(State(code))) < share * plain


# ---------------------------------------------------------------------- hostile replies

UPDATE = {"w": torch.arange(200.0).view(10, 20)}
BAD = [
    (0.01, {PLACES: torch.tensor([3, 3], dtype=torch.int32)}, "are not 2 ascending places below 200"),
    (0.01, {PLACES: torch.tensor([4, 3], dtype=torch.int32)}, "ascending"),
    (0.01, {PLACES: torch.tensor([4, 200], dtype=torch.int32)}, "ascending"),
    (0.01, {PLACES: torch.tensor([-1, 3], dtype=torch.int32)}, "ascending"),
    (0.01, {PLACES: torch.tensor([1, 3])}, "has dtype"),
    (0.01, {PLACES: torch.tensor([3], dtype=torch.int32)}, "has shape"),
    (0.01, {VALUES: torch.tensor([1.0, math.nan])}, "NaN"),
    (0.01, {VALUES: torch.tensor([1.0, 2.0, 3.0])}, "has shape"),
    (0.1, {PLACES: torch.full((25,), 255, dtype=torch.uint8)}, "are not 20 ascending places below 200"),
    (0.01, {"w": UPDATE["w"]}, "not asked for"),
]


@pytest.mark.parametrize(("fraction", "change", "said"), BAD)
def test_a_bad_code_is_refused(fraction: float, change: Tensors, said: str) -> None:
    wrapper = top_k(fraction=fraction)
    with pytest.raises(Refused, match=said):
        accepted(strategies.load("fedavg", [wrapper]), sent(wrapper, UPDATE) | change, UPDATE)
