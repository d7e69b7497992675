"""Cohorts are a pure function of seed, purpose, round and the names that are there."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.exchange.cohort import draw, drops_out
from strategies.exchange.types import Profile

NAMES = st.lists(st.integers(0, 50).map(str) | st.text(max_size=4), min_size=1, max_size=12, unique=True)
FRACTIONS = st.floats(0.01, 1.0)
SEEDS = st.integers(0, 2**63 - 1)


def node(name: str, node_id: int = 1) -> Profile:
    return Profile(node_id, name, 8, 10, "store")


def names(profiles: list[Profile]) -> list[str]:
    return [profile.name for profile in profiles]


@pytest.mark.slow
@given(NAMES, FRACTIONS, SEEDS, st.integers(0, 99), st.randoms(use_true_random=False))
def test_ids_and_the_order_of_arrival_do_not_matter(there, fraction, seed, number, shuffler):
    first = [node(name, i) for i, name in enumerate(there)]
    second = [node(name, shuffler.randrange(10**18)) for name in shuffler.sample(there, len(there))]
    drawn = [draw(profiles, fraction, 1, seed, "train", number) for profiles in (first, second)]
    assert names(drawn[0]) == names(drawn[1])


@given(NAMES, FRACTIONS, st.integers(0, 15), SEEDS)
def test_the_size_is_the_fraction_or_the_minimum_or_all(there, fraction, minimum, seed):
    drawn = draw([node(name) for name in there], fraction, minimum, seed, "train", 1)
    assert len(drawn) == min(len(there), max(minimum, math.ceil(fraction * len(there) - 1e-9)))
    assert len(set(names(drawn))) == len(drawn)
    assert set(names(drawn)) <= set(there)


@pytest.mark.parametrize(("fraction", "count", "size"), [(0.1, 10, 1), (0.3, 10, 3), (0.25, 10, 3), (0.07, 100, 7)])
def test_a_fraction_is_not_inflated_by_rounding(fraction, count, size):
    assert len(draw([node(str(i)) for i in range(count)], fraction, 1, 0, "train", 1)) == size


def test_nobody_there_is_nobody_drawn():
    assert draw([], 1.0, 1, 0, "train", 1) == []


def test_partition_numbers_are_sorted_as_numbers_and_before_words():
    there = ["10", "b", "9", "a", "100", "2"]
    assert names(draw([node(name) for name in there], 1.0, 1, 0, "train", 1)) == ["2", "9", "10", "100", "a", "b"]


@pytest.mark.parametrize("name", ["²", "①", "٣", "9" * 5000, "-1", "1.5", ""])
def test_any_name_can_be_sorted(name):
    drawn = draw([node("b"), node(name), node("3")], 1.0, 1, 0, "train", 1)
    assert set(names(drawn)) == {"3", "b", name}


def test_rounds_purposes_and_seeds_draw_differently():
    there = [node(str(i)) for i in range(50)]
    cohorts = {
        tuple(names(draw(there, 0.5, 1, seed, purpose, number)))
        for seed in (0, 1)
        for purpose in ("train", "evaluate")
        for number in range(5)
    }
    assert len(cohorts) == 20


def test_every_node_gets_its_turn():
    there = [node(str(i)) for i in range(10)]
    turns = dict.fromkeys(names(there), 0)
    for number in range(300):
        for name in names(draw(there, 0.2, 1, 3, "train", number)):
            turns[name] += 1
    assert all(30 <= count <= 90 for count in turns.values())  # 60 expected, standard deviation 7


def test_profiles_are_handed_on_as_they_are():
    there = [replace(node(str(i), 100 + i), rank=i) for i in range(5)]
    assert all(profile in there for profile in draw(there, 0.5, 1, 0, "train", 1))


@pytest.mark.slow
def test_another_process_draws_the_same():
    program = (
        "from strategies.exchange.cohort import draw; from strategies.exchange.types import Profile;"
        "there = [Profile(i, str(i), 8, 10, 's') for i in range(20)];"
        "print(*(p.name for p in draw(there, 0.3, 1, 5, 'train', 7)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert said == names(draw([node(str(i)) for i in range(20)], 0.3, 1, 5, "train", 7))


def test_nodes_drop_out_by_themselves_and_repeatably() -> None:
    there = [node(str(i)) for i in range(2000)]
    gone = [profile.name for profile in there if drops_out(profile, 0.3, 5, 1)]
    assert abs(len(gone) - 600) < 6 * math.sqrt(2000 * 0.3 * 0.7)
    assert gone == [profile.name for profile in there if drops_out(profile, 0.3, 5, 1)]
    assert gone != [profile.name for profile in there if drops_out(profile, 0.3, 5, 2)]
    assert not any(drops_out(profile, 0.0, 5, 1) for profile in there)
    assert all(drops_out(profile, 1.0, 5, 1) for profile in there)
