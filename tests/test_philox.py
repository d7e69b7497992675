"""Random words, signs, places and vectors of seeded bases: they are what they have always been, on every machine."""

import math

import numpy as np
import pytest
import torch

from strategies.algebra import hadamard, truncated_normal
from strategies.algebra.philox import Seeds, spread, words

MULTIPLIERS, KEY_STEPS = (0xD2E7470EE14C6C93, 0xCA5A826395121157), (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
MASK = 2**64 - 1


def philox(seed: int, stream: int, counter: int) -> list[int]:
    """Philox 4x64 of ten rounds (Salmon et al., SC 2011, Section 3.3), in whole numbers."""
    x, key = [counter, 0, 0, 0], [seed, stream]
    for _ in range(10):
        one, two = MULTIPLIERS[0] * x[0], MULTIPLIERS[1] * x[2]
        x = [(two >> 64) ^ x[1] ^ key[0], two & MASK, (one >> 64) ^ x[3] ^ key[1], one & MASK]
        key = [(word + step) & MASK for word, step in zip(key, KEY_STEPS, strict=True)]
    return x


# ---------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("seed", "stream", "start", "expected"),
    [
        (7, 3, 0, [0x7B6CC7B1862CC5F2, 0xB960F2EA4B3F8D9F, 0xCDD72E015DEB1A6, 0x50EDB0D22A6A6FD5, 0xAE45891BF7AB4DF3]),
        (2**63 - 1, 2**40, 8, [0x7B2342315F1AD8E6, 0x7D1151B69E47A59D]),
    ],
)
def test_words_never_change(seed, stream, start, expected):
    assert words(seed, stream, start, len(expected)).tolist() == expected


@pytest.mark.parametrize("start", [0, 4, 400])
def test_words_are_those_of_the_equations(start):
    """NumPy counts one up before it makes the first four words."""
    blocks = [philox(7, 3, start // 4 + 1 + n) for n in range(3)]
    assert words(7, 3, start, 12).tolist() == [word for block in blocks for word in block]


def test_words_may_be_asked_for_in_any_order():
    whole = words(5, 6, 0, 64)
    for start in (32, 0, 12):
        assert np.array_equal(words(5, 6, start, 9), whole[start : start + 9])


# ---------------------------------------------------------------------- places


def test_places_never_change():
    assert spread(7, 257, 8, np.arange(8)).tolist() == [9, 174, 83, 248, 157, 66, 231, 140]
    assert spread(7, 65537, 16, np.arange(4)).tolist() == [64518, 26283, 53584, 15349]


@pytest.mark.parametrize("bits", [0, 1, 5, 12])
def test_places_are_all_there_are(bits):
    for seed in range(20):
        assert sorted(spread(seed, 1, bits, np.arange(1 << bits))) == list(range(1 << bits))


def test_every_place_is_as_likely_as_another():
    """Of 8 places, the first and the third of 4000 seeds: each 1/8 of the time, within 4 deviations."""
    drawn = np.array([spread(seed, 1, 3, np.arange(3)) for seed in range(4000)])
    allowed = 4 * math.sqrt(4000 * 1 / 8 * 7 / 8)
    for column in (0, 2):
        assert np.abs(np.bincount(drawn[:, column], minlength=8) - 500).max() < allowed


# ---------------------------------------------------------------------- signs and directions

SIGNS = "+------+--++---+---+-+++---++--++++-+-+-++--+-+-++-+--+--+-++---"  # of elements 256 to 319, seed 7


def signs_of(seed: int, start: int, count: int) -> list[float]:
    return hadamard.flipped(torch.ones(1, count), seed, start)[0].tolist()


def test_signs_never_change():
    assert signs_of(7, 256, 64) == [1.0 if sign == "+" else -1.0 for sign in SIGNS]


def test_signs_are_the_bits_of_words():
    """Of each half word in turn, the highest bit is that of its last sign."""
    halves = words(7, hadamard.SIGNS, 0, 8).view("<u4").tolist()
    expected = [-1.0 if half >> (31 - n) & 1 else 1.0 for half in halves for n in range(32)]
    assert signs_of(7, 0, 512) == expected


def test_signs_go_by_the_element_not_by_the_group():
    assert signs_of(7, 0, 1024)[512:] == signs_of(7, 512, 512)
    assert signs_of(7, 0, 40) == signs_of(7, 0, 512)[:40]


def test_signs_are_as_often_up_as_down():
    drawn = hadamard.flipped(torch.ones(1, 1 << 16), 11, 0)
    assert abs(float(drawn.sum())) < 4 * math.sqrt(1 << 16)


def test_flipping_twice_is_nothing():
    values = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
    values[0, 0] = 0.0
    assert torch.equal(hadamard.flipped(hadamard.flipped(values, 3, 512), 3, 512), values)


def test_a_direction_never_changes():
    drawn = hadamard.direction(Seeds(7, 8), 0, 3, (1, 16), torch.device("cpu"))
    assert drawn.tolist() == [[1, -1, -1, -1, -1, -1, 1, 1, 1, -1, 1, 1, 1, 1, -1, -1]]


# ---------------------------------------------------------------------- vectors of truncated normal numbers


@pytest.mark.parametrize(
    ("arguments", "places", "expected"),
    [
        (
            (7, 256, 3, 10),
            range(5),
            ["0x1.271b5ep-4", "0x1.d6c7a8p-5", "0x1.e1d258p-4", "-0x1.78fcdep-3", "0x1.12f2dcp-2"],
        ),
        ((7, 0, 0, 1), [0], ["0x1.c0960ep-2"]),
        ((7, 65536, 1, 65536), [0, 1, 65535], ["-0x1.b37e58p-9", "-0x1.ecad58p-10", "-0x1.fabb64p-10"]),
    ],
)
def test_vectors_never_change(arguments, places, expected):
    assert truncated_normal.vector(*arguments)[list(places)].tolist() == [float.fromhex(number) for number in expected]


def test_vectors_of_one_block_are_different_words():
    """Vector k begins where vector k - 1 ends."""
    one, two = (truncated_normal.vector(7, 0, index, 16) for index in range(2))
    assert not set(one.tolist()) & set(two.tolist())
    assert not torch.equal(one, truncated_normal.vector(7, 16, 0, 16))
    assert not torch.equal(one, truncated_normal.vector(8, 0, 0, 16))
