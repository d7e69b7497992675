"""Error feedback, and chains of wrappers with it."""

from typing import Any

import pytest
import torch
from in_process import equal, suiting
from test_wrappers import ASSIGNMENT, accepted

import strategies
from server_app.config import RunConfig
from strategies.algebra.tensors import Tensors, corner
from strategies.exchange.types import Assignment
from strategies.exchange.wrapper import Wrapper
from task.schema import ConfigError

LOSSY = {
    "8 bits": ("quantize", {}),
    "4 bits, nearest": ("quantize", {"bits": 4, "rounding": "nearest", "block": 8}),
    "a tenth": ("top-k", {}),
    "a thousandth": ("top-k", {"fraction": 0.001}),
}
SHAPES = {"w": (7, 5), "b": (3,), "x": ()}


def drawn(seed: int, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def plus(total: Tensors, change: Tensors) -> None:
    for name, tensor in change.items():
        corner(total[name], tensor.shape).add_(tensor)


@pytest.fixture(params=LOSSY)
def lossy(request: pytest.FixtureRequest) -> Wrapper:
    name, options = LOSSY[request.param]
    return strategies.load_wrapper(name, **options)


# ---------------------------------------------------------------------- laws


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_was_sent_and_what_is_kept_is_what_was_learned(lossy: Wrapper, dtype: torch.dtype) -> None:
    """sum C(p_t) + e_T = sum u_t, up to the rounding of sums; without feedback it is not."""
    learned, received = ({n: torch.zeros(s).double() for n, s in SHAPES.items()} for _ in range(2))
    kept: Tensors = {}
    for round in range(1, 9):
        update = drawn(round, SHAPES, dtype)
        plus(learned, update)
        plus(received, lossy.decode(lossy.encode(update, Assignment(round, 9, round, 2), kept), update))
    assert not all(torch.allclose(received[n], learned[n], atol=1e-5) for n in SHAPES)
    plus(received, kept)
    for name in SHAPES:
        torch.testing.assert_close(
            received[name], learned[name], rtol=0, atol=1e-13 if dtype == torch.float64 else 1e-5
        )


def test_nothing_is_lost_where_ranks_change_and_factors_rest(lossy: Wrapper) -> None:
    """A factor of 4, 2, 5 ranks; another that every second round leaves out."""
    learned, received = ({"a": torch.zeros(5, 6).double(), "b": torch.zeros(6, 4).double()} for _ in range(2))
    kept: Tensors = {}
    for round, rank in enumerate((4, 2, 5, 3, 3), 1):
        update = drawn(round, {"a": (rank, 6)} | ({"b": (6, 4)} if round % 2 else {}))
        plus(learned, update)
        plus(received, lossy.decode(lossy.encode(update, Assignment(round, 9, round, rank), kept), update))
    plus(received, kept)
    for name, tensor in learned.items():
        torch.testing.assert_close(received[name], tensor, rtol=0, atol=1e-5)


def test_errors_of_another_kind_of_shape_are_dropped(lossy: Wrapper) -> None:
    kept = {"w": torch.ones(4)}
    lossy.encode({"w": torch.randn(4, 40)}, ASSIGNMENT, kept)
    assert kept["w"].shape == (4, 40)


def test_switched_off_nothing_is_kept_or_added(lossy: Wrapper) -> None:
    plain = strategies.load_wrapper(lossy.name, feedback=False)
    kept = {"w": torch.ones(7, 5)}
    update = drawn(1, SHAPES)
    assert equal(plain.encode(update, ASSIGNMENT, kept), plain.encode(update, ASSIGNMENT, {}))
    assert equal(kept, {"w": torch.ones(7, 5)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_reported_and_not_stored(lossy: Wrapper, bad: float) -> None:
    kept: Tensors = {}
    with pytest.raises(ValueError, match="'w' holds NaN or infinity after training"):
        lossy.encode({"w": torch.tensor([1.0, bad])}, ASSIGNMENT, kept)
    assert not kept


# ---------------------------------------------------------------------- chains

GOOD = [
    "proximal,quantize", "quantize,proximal", "half,top-k", "top-k,half", "proximal,top-k,half",
    "top-k,quantize quantize.feedback=false",
]  # fmt: skip
BAD = {
    "quantize,half": "'quantize' sends a code that 'half' must not change; put 'quantize' last",
    "quantize,top-k": "'quantize' sends a code that 'top-k' must not change; put 'quantize' last",
    "half,quantize": "'half' before 'quantize' rounds twice and saves nothing",
    "top-k,quantize": "quantize.feedback = true cannot follow 'top-k'.*: set quantize.feedback = false",
    "quantize,quantize": "wrappers names 'quantize' twice",
    "quantize quantize.bits=6": "quantize.bits must be 8 or 4, not 6",
    "quantize quantize.block=100": "quantize.block = 100 is not a multiple of 8",
    "top-k top-k.fraction=0": "top-k.fraction must be at least 1e-06, not 0",
}


def settings(text: str) -> dict[str, Any]:
    chain, *options = text.split()
    told = {"true": True, "false": False}
    pairs = [option.split("=") for option in options]
    return {"wrappers": chain} | {key: told[v] if v in told else (float(v) if "." in v else int(v)) for key, v in pairs}


@pytest.mark.parametrize("text", GOOD)
def test_wrappers_are_decoded_by_the_server(text: str) -> None:
    strategy = RunConfig.read(settings(text)).strategy
    update = drawn(1, {"w": (30, 20), "b": (9,)}) | {"n": torch.arange(3)}
    code = dict(update)
    for wrapper in strategy.wrappers:
        code = wrapper.encode(code, ASSIGNMENT, {})
    back = accepted(strategy, code, update)
    assert torch.equal(back["n"], update["n"])
    both = torch.cat([back["w"].view(-1), back["b"]]), torch.cat([update["w"].view(-1), update["b"]])
    there = both[0] != 0
    assert there.sum() >= 60
    torch.testing.assert_close(both[0][there], both[1][there], rtol=0.02, atol=0.03)


@pytest.mark.parametrize("text", BAD)
def test_incompatible_wrappers_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=BAD[text]):
        RunConfig.read(settings(text))


@pytest.mark.parametrize("name", ["flora", "flex-lora", "raflora", "fedrot-lora", "ferret", "sa-fedlora"])
@pytest.mark.parametrize("wrapper", ["quantize", "top-k"])
def test_feedback_needs_updates_that_add_up(name: str, wrapper: str) -> None:
    said = (
        f"{wrapper}.feedback = true needs updates that add up over rounds; "
        f"the updates of '{name}' do not: set {wrapper}"
    )
    with pytest.raises(ConfigError, match=said):
        RunConfig.read(suiting(name) | {"strategy": name, "wrappers": wrapper})
