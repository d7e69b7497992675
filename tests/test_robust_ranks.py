"""Robust rules for every strategy that has numbers for them: references slice by slice, laws, liars, and runs."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from hypothesis import find, given
from hypothesis import strategies as st
from in_process import federate, retold, suiting
from laws import LAWS, Plan, Scene, distance, drawn_like, plans, scene, variants
from numpy.typing import NDArray
from test_laws import BROKEN, SEARCH
from test_robust import reference_median, reference_trimmed
from tiers import examples

import strategies
from strategies.algebra.lowrank import rank_axis
from strategies.algebra.robust import cut
from strategies.algebra.tensors import Tensors
from strategies.exchange.algorithm import DECLARED
from strategies.exchange.compatibility import problems as incompatibilities
from strategies.exchange.strategy import EQUAL_RANKS, EXACT, FIXED_POINT, IDENTITY, ORDER, WEIGHTS, Strategy
from strategies.exchange.types import State, Update
from strategies.ferret import COUNTS, NUMBERS, SCALES, SEEDS, Ferret
from task.config import TaskConfig
from task.tunings import registry

EXAMPLES = examples(40)
CLOSE = 1e-5
RULES: list[tuple[str, dict[str, Any]]] = [("median", {}), ("trimmed-mean", {"trim": 0.2})]
RAGGED = ["rbla", "zero-pad", "hetlora"]
PRODUCTS = ["flora", "flex-lora", "raflora", "lora-fair", "fedex-lora"]
TASK = TaskConfig(optimizer="sgd", evaluate="nodes")


def ruled(name: str, rule: str, options: dict[str, Any]) -> list[Strategy]:
    """The variants of a strategy for which there is a robust rule, with this one round them."""
    wrapper = strategies.load_wrapper(rule, **options)
    return [strategy for strategy in variants(name, [wrapper]) if not strategy.apart(TASK)]


SETTLED = [name for name in strategies.names() if ruled(name, "median", {})]


def said(strategy: Strategy, config: TaskConfig = TASK) -> str:
    return "\n".join(incompatibilities(strategy, config))


# ---------------------------------------------------------------------- what has a middle


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_strategies_that_combine_products_say_what_works_instead(rule: str) -> None:
    assert not set(PRODUCTS) & set(SETTLED)
    for name in PRODUCTS:
        found = said(strategies.load(name, [strategies.load_wrapper(rule)]))
        assert f"wrapper '{rule}' takes the middle of every number over nodes, and strategy = '{name}'" in found
        assert "it combines products of factors" in found
        assert "'norm-bound' bounds what a node can do there" in found
        assert not said(strategies.load(name, [strategies.load_wrapper("norm-bound")]))


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_bases_of_a_nodes_own_have_no_middle(rule: str) -> None:
    bias, wrapper = replace(TASK, tuning=registry.load("bias")()), strategies.load_wrapper(rule)
    assert "'ferret.seeds = 'fresh'" not in said(strategies.load("ferret", [wrapper], seeds="shared"), bias)
    assert "with ferret.seeds = 'fresh' every node has a basis of its own" in said(
        strategies.load("ferret", [wrapper]), bias
    )
    for seeds in ("shared", "pool"):
        assert not said(strategies.load("ferret", [wrapper], seeds=seeds), bias)


def test_directions_that_few_try_have_no_middle() -> None:
    bias, wrapper = replace(TASK, tuning=registry.load("bias")()), strategies.load_wrapper("median")
    few = strategies.load("fedkseed", [wrapper], directions=8)
    assert not said(few, replace(bias, local_steps=8))
    assert "in local-steps = 7 a node tries few of fedkseed.directions = 8" in said(few, replace(bias, local_steps=7))


class NoMean(strategies.strategy_class("fedavg")):  # type: ignore[misc]
    """Somebody's, which says that it takes no mean."""

    is_weighted_mean = False


class Bounded(strategies.strategy_class("fedavg")):  # type: ignore[misc]
    """Somebody's, which changes updates before their mean is taken."""

    is_weighted_mean = False

    def combine(self, state: State, updates: Iterable[Update]) -> Tensors:
        return dict(super().combine(state, updates))


@pytest.mark.parametrize("kind", [NoMean, Bounded])
def test_what_a_strategy_of_somebodys_does_is_not_passed_over(kind: type[Strategy]) -> None:
    strategy = kind(wrappers=(strategies.load_wrapper("median"),))
    assert "gives it none: it has a rule of its own (combine)" in said(strategy)


@pytest.mark.parametrize(("method", "declaration"), DECLARED.items())
def test_a_rule_of_somebodys_must_say_what_it_is(method: str, declaration: str) -> None:
    """Whoever forgets it would have a wrapper take the middle of what the rule changes."""
    with pytest.raises(TypeError, match=f"Forgotten has a {method} of its own: it must say whether {declaration}"):
        type("Forgotten", (Strategy,), {method: lambda self, *arguments: {}})


# ---------------------------------------------------------------------- references, slice by slice


def slices(name: str, values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    axis = rank_axis(name)
    return [values] if axis is None else list(np.moveaxis(values, axis, 0))


def middle(numbers: Sequence[float], rule: str, options: dict[str, Any]) -> float:
    if rule == "median":
        return reference_median(numbers)
    return reference_trimmed(numbers, cut(options["trim"], len(numbers)))


def reference(drawn: Scene, rule: str, options: dict[str, Any], least: int, padded: bool) -> dict[str, NDArray[Any]]:
    """Every slice by its owners, one number after the other; where these are too few, they learned nothing."""
    least, result = min(least, len(drawn.updates)), {}
    for name, tensor in drawn.state.tensors.items():
        result[name] = tensor.double().numpy().copy()
        for k, own in enumerate(slices(name, result[name])):
            changes = [slices(name, update.delta[name].double().numpy()) for update in drawn.updates]
            owners = [change[k] for change in changes if k < len(change)]
            for place in np.ndindex(own.shape):
                numbers = [float(owner[place]) for owner in owners]
                learned = middle(numbers, rule, options) if len(owners) >= max(1, least) else 0.0
                share = len(owners) / len(drawn.updates) if padded else 1.0
                own[place] = share * (own[place] + learned)
    return result


@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize(("rule", "options"), RULES)
@pytest.mark.parametrize("name", RAGGED)
@EXAMPLES
@given(plan=plans())
def test_a_slice_is_settled_by_its_owners(name: str, rule: str, options: dict[str, Any], least: int, plan: Plan):
    (strategy,) = ruled(name, rule, options | {"min-owners": least})
    drawn = scene(strategy, plan)
    after = drawn.next().tensors
    for key, values in reference(drawn, rule, options, least, name != "rbla").items():
        np.testing.assert_allclose(after[key].double().numpy(), values, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("seeds", ["shared", "pool"])
@pytest.mark.parametrize(("rule", "options"), RULES)
@EXAMPLES
@given(seed=st.integers(0, 2**20), nodes=st.integers(1, 6), step=st.sampled_from([1.0, 0.25]))
def test_a_coordinate_is_settled_by_all(
    rule: str, options: dict[str, Any], seeds: str, seed: int, nodes: int, step: float
):
    """Block by block and coordinate by coordinate; nodes of a shared basis share out theirs as they like."""
    wrapper = strategies.load_wrapper(rule, **options)
    strategy = Ferret(coordinates=12, block=16, seeds=seeds, step=step, wrappers=(wrapper,))
    drawn = scene(strategy, Plan((1,) * nodes, tuple(range(nodes)), (1,) * nodes, seed))
    dealt, blocks = random.Random(seed), len(drawn.updates[0].delta[COUNTS])
    rows, updates = [], []
    for update in drawn.updates:
        delta = dict(update.delta)
        if seeds == "shared":
            counts = [1] * blocks
            for _ in range(12 - blocks):
                counts[dealt.choice([n for n in range(blocks) if counts[n] < 16])] += 1
            delta[COUNTS] = torch.tensor(counts, dtype=torch.int32)
        numbers, place, row = delta[NUMBERS].tolist(), 0, {}
        for n, count in enumerate(delta[COUNTS].tolist()):
            for k in range(count):
                row[n, k] = numbers[place] * float(delta[SCALES][n])
                place += 1
        rows.append(row)
        updates.append(replace(update, delta=delta))
    combined = strategy.wrappers[0].combine(strategy, drawn.state, iter(updates))
    if seeds == "pool":
        found = dict(zip(sorted(rows[0]), combined["exact"].tolist(), strict=True))
        largest = {n: max(abs(v) for row in rows for v in row.values()) for n in range(blocks)}
    else:
        assert combined[SEEDS].shape == (1, 2)
        numbers, place, found = combined[NUMBERS][0].tolist(), 0, {}
        for n, count in enumerate(combined[COUNTS][0].tolist()):
            assert count == max(int(update.delta[COUNTS][n]) for update in updates)
            for k in range(count):
                found[n, k] = numbers[place] * float(combined[SCALES][n])
                place += 1
        largest = {n: max(abs(v) for row in rows for v in row.values()) for n in range(blocks)}
    for key, value in found.items():
        wanted = step * middle([row.get(key, 0.0) for row in rows], rule, options)
        assert value == pytest.approx(wanted, abs=largest[key[0]] / 32767 + 1e-12)  # half a step of the integers


# ---------------------------------------------------------------------- laws


@pytest.mark.parametrize(("rule", "options"), RULES)
@pytest.mark.parametrize("name", SETTLED)
@EXAMPLES
@given(plan=plans())
def test_laws_hold_under_a_robust_rule(name: str, rule: str, options: dict[str, Any], plan: Plan) -> None:
    for strategy in ruled(name, rule, options):
        for law in strategy.laws & {ORDER, WEIGHTS, FIXED_POINT, IDENTITY}:
            assert LAWS[law](strategy, plan) <= CLOSE, law


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "options"), RULES)
@pytest.mark.parametrize("name", SETTLED)
def test_the_other_laws_break_under_a_robust_rule(name: str, rule: str, options: dict[str, Any]) -> None:
    """Neither is it federated averaging, nor do products become their mean, unless B or A alone travels."""
    for law in strategies.load(name).laws & {EQUAL_RANKS, EXACT}:
        found = ruled(name, rule, options)
        find(
            plans(),
            lambda plan: max(LAWS[law](one, plan) for one in found) > BROKEN,  # noqa: B023
            settings=SEARCH,
            random=random.Random(0),
        )


@pytest.mark.parametrize("name", [name for name in SETTLED if name != "hetlora"])
@EXAMPLES
@given(plan=plans())
def test_without_trimming_it_is_the_strategys_own_rule_with_equal_weights(name: str, plan: Plan) -> None:
    """HetLoRA's own weighs nodes by norms."""
    for strategy in ruled(name, "trimmed-mean", {"trim": 0.0, "min-owners": 1}):
        drawn = scene(strategy, plan)
        updates = [replace(update, weight=1.0) for update in drawn.updates]
        plain = replace(drawn, strategy=replace(strategy, wrappers=()))
        assert distance(drawn.next(updates), plain.next(updates)) <= 1e-4


# ---------------------------------------------------------------------- liars


@pytest.mark.first(1)
@pytest.mark.parametrize(("rule", "options"), RULES)
@pytest.mark.parametrize("name", RAGGED)
@EXAMPLES
@given(
    honest=st.lists(st.integers(1, 6), min_size=2, max_size=7),
    liars=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    seed=st.integers(0, 2**20),
    lie=st.sampled_from([1e12, -1e12, 3.0, -0.01]),
)
def test_liars_do_not_leave_the_range_of_a_slices_honest_owners(
    name: str, rule: str, options: dict[str, Any], honest: list[int], liars: list[int], seed: int, lie: float
) -> None:
    """Slice by slice, wherever the liars among its owners are no more than the rule leaves out."""
    (strategy,) = ruled(name, rule, options | {"min-owners": 1})
    ranks = (*honest, *liars)
    drawn = scene(strategy, Plan(ranks, tuple(range(len(ranks))), (1,) * len(ranks), seed))
    updates = [
        replace(u, delta={n: torch.full_like(t, lie) for n, t in u.delta.items()}, weight=1e12)
        if int(u.node) >= len(honest)
        else u
        for u in drawn.updates
    ]
    combined = strategy.wrappers[0].combine(strategy, drawn.state, iter(updates))
    held = 0
    for key, tensor in combined.items():
        start = slices(key, drawn.state.tensors[key].double().numpy())
        for k, found in enumerate(slices(key, tensor.double().numpy())):
            owners = [u for u in updates if k < len(slices(key, u.delta[key].numpy()))]
            true = [slices(key, u.delta[key].double().numpy())[k] for u in owners if int(u.node) < len(honest)]
            lies, n = len(owners) - len(true), len(owners)
            out = (n - 1) // 2 if rule == "median" else cut(options["trim"], n)
            if lies > out:
                continue
            held += 1
            if not owners:
                continue
            share = 1.0 if name == "rbla" else n / len(updates)
            value = (found + start[k]) / share - start[k]
            assert bool((value >= np.min(true, axis=0) - 1e-4).all())
            assert bool((value <= np.max(true, axis=0) + 1e-4).all())
    assert held or len(liars) > cut(0.2, len(ranks))


def test_a_node_that_is_alone_at_a_rank_changes_nothing_there() -> None:
    """Claiming the largest rank is no way round the rule; with `min-owners` 1 it would be."""
    for least, moved in ((3, False), (1, True)):
        (strategy,) = ruled("rbla", "median", {"min-owners": least})
        drawn = scene(strategy, Plan((2, 2, 2, 6), (0, 1, 2, 3), (1, 1, 1, 1), 3))
        after = drawn.next().tensors
        for name, tensor in drawn.state.tensors.items():
            if (axis := rank_axis(name)) is not None:
                changed = [not torch.equal(after[name].select(axis, k), tensor.select(axis, k)) for k in range(6)]
                assert changed == [True, True, moved, moved, moved, moved]


@pytest.mark.parametrize(("rule", "options"), RULES)
@EXAMPLES
@given(seed=st.integers(0, 2**20), scale=st.sampled_from([1e-9, 1.0, 1e12]))
def test_a_liars_coordinates_do_not_leave_the_range(
    rule: str, options: dict[str, Any], seed: int, scale: float
) -> None:
    (strategy,) = [s for s in ruled("ferret", rule, options) if s.seeds == "pool"]  # type: ignore[attr-defined]
    drawn = scene(strategy, Plan((1,) * 5, tuple(range(5)), (1,) * 5, seed))
    wild = drawn_like(drawn.updates[0].delta, torch.Generator().manual_seed(seed))
    wild[SCALES] = torch.full_like(wild[SCALES], scale)
    honest = drawn.updates[1:]
    combined = strategy.wrappers[0].combine(
        strategy, drawn.state, iter([replace(drawn.updates[0], delta=wild), *honest])
    )["exact"]
    rows = [u.delta for u in honest]
    exact = torch.stack([r[NUMBERS].double() * r[SCALES].double().repeat_interleave(r[COUNTS]) for r in rows])
    slack = float(exact.abs().max()) / 32767
    assert bool((combined >= exact.amin(0) - slack).all())
    assert bool((combined <= exact.amax(0) + slack).all())


# ---------------------------------------------------------------------- runs


def huge(partition: int, kind: str, reply: Message) -> Message:
    """Node 2 goes ten thousand times as far the other way, in the right form."""
    if kind != "train" or partition != 2:
        return reply

    def stretched(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return -tensor if name == NUMBERS else tensor
        return tensor * (1e4 if name == SCALES else -1e4)

    return retold(reply, lambda tensors: {name: stretched(name, tensor) for name, tensor in tensors.items()})


MIXED: list[tuple[str, dict[str, Any]]] = [
    ("rbla", {}),
    ("zero-pad", {}),
    ("hetlora", {}),
    ("ferret", {"ferret.seeds": "shared"}),
    ("ferret", {"ferret.seeds": "pool"}),
]


@pytest.mark.judged
@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), MIXED, ids=str)
def test_a_liar_ruins_a_run_but_not_one_of_a_robust_rule(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    options = {
        "strategy": name,
        "num-server-rounds": 2,
        "simulation.num-supernodes": 5,
        "lora.ranks": "8,4,8,8,2",
        "trimmed-mean.trim": 0.2,
        "outlier-factor": 0.0,  # which would refuse such an update before a rule sees it
        **suiting(name),
        **more,
    }
    honest = federate(tmp_path / "honest", options).rounds[-1]["loss"]
    for rule in ("", "median", "trimmed-mean"):
        lied = federate(tmp_path / f"lied {rule}", options | {"wrappers": rule}, spoil=huge)
        assert not any(line["refused"] for line in lied.rounds[-1]["nodes"])
        assert (lied.rounds[-1]["loss"] < honest + 1) == bool(rule)
