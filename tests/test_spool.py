"""Updates in a file: what is read is what was added, as often as it is read."""

import torch

from strategies.algebra.tensors import Tensors
from strategies.exchange.types import Assignment, Update
from strategies.rounds.defence.spool import Spool


def update(name: str, delta: Tensors) -> Update:
    return Update(name, Assignment(1, 1, 0, 0), delta, 2.0, {"num-examples": 2})


def assorted(seed: int) -> Tensors:
    """Tensors of many kinds, two of which share memory."""
    torch.manual_seed(seed)
    whole = torch.randn(6, 4)
    return {
        "turned": whole.T,
        "part": whole[:2],
        "count": torch.tensor(7 + seed),
        "none": torch.empty(0, 3),
        "flags": torch.tensor([True, False]),
        "half": torch.randn(3).bfloat16(),
        "eight bits": torch.randn(5).to(torch.float8_e5m2),
    }


def same_bits(one: Tensors, other: Tensors) -> bool:
    """Whether names in their order, shapes, dtypes and bytes are the same."""
    pairs = [(one[name], other[name]) for name in one]
    return list(one) == list(other) and all(
        a.shape == b.shape and a.dtype == b.dtype and a.tolist() == b.tolist() for a, b in pairs
    )


def test_updates_come_back_bit_for_bit_and_in_their_order() -> None:
    with Spool() as spool:
        added = [update(str(seed), assorted(seed)) for seed in range(3)]
        for one in added:
            spool.add(one)
        for _ in range(2):
            read = list(spool)
            assert [one.node for one in read] == ["0", "1", "2"]
            assert all(same_bits(one.delta, own.delta) for one, own in zip(read, added, strict=True))
        read[0].delta["part"].zero_()  # it is nobody else's
        assert same_bits(next(iter(spool)).delta, added[0].delta)
        assert not any(one.delta for one in spool.heads)


def test_a_file_that_may_not_grow_lacks_what_is_too_much() -> None:
    large = {"a": torch.ones(100)}
    with Spool(900) as spool:
        for number in range(3):
            spool.add(update(str(number), large))
        assert spool.full
        assert [one.node for one in spool] == ["0", "1"]
