"""The aggregation error against dense matrices, by hand, as an estimate, and in what a run writes down."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st
from in_process import QV, Exchange, federate, retold, sent
from laws import FACTORS, INPUTS, OUTPUTS, Plan, Scene, plans, products_of, scene, variants
from matrices import Matrix, dense, mean_product, tail, terms
from tiers import examples

import strategies
from strategies.algebra.lowrank import factor_names, modules
from strategies.algebra.philox import words
from strategies.algebra.tensors import Tensors, added
from strategies.exchange.strategy import EXACT
from strategies.exchange.types import Assignment, State, Update
from strategies.rounds.aggregation_error import PROBES, ErrorMeasurement, _probes

CLOSE = 1e-5  # float32 factors of size 1
EXAMPLES = examples(60)
FLEX = strategies.load("flex-lora")
LOW_RANK = [
    variants(name)[-1]  # the stage of adapters, where there are two
    for name in strategies.names()
    if not strategies.load(name).needs_in_place and not strategies.load(name).personalized
]
EXACTLY = [strategy for strategy in LOW_RANK if EXACT in strategy.laws]


# ---------------------------------------------------------------------- readings


def reading(drawn: Scene) -> dict[str, float]:
    """What the meter says of a scene, used as the round loop uses it."""
    meter, after = ErrorMeasurement(), drawn.next()
    for update in drawn.updates:
        meter.see(drawn.strategy.trained(drawn.state, update), update.weight)
    return meter.read(after.tensors, after.journal[len(drawn.state.journal) :])


def relative(off: Matrix, mean: Matrix) -> float:
    return float(np.linalg.norm(off) / np.linalg.norm(mean))


@pytest.mark.parametrize("strategy", LOW_RANK, ids=lambda strategy: strategy.name)
@EXAMPLES
@given(plan=plans())
def test_readings_are_those_of_dense_matrices(strategy, plan):
    drawn = scene(strategy, plan)
    made, mean = (matrix.numpy() for matrix in products_of(drawn, plan))
    read = reading(drawn)
    assert read.keys() == {"overall", "m0"}
    assert read["overall"] == pytest.approx(read["m0"], rel=1e-12)
    assert read["m0"] == pytest.approx(relative(made - mean, mean), rel=1e-6, abs=1e-6)


def test_rounds_without_factors_read_as_nothing_said():
    """The initiating rounds of SA-FedLoRA: all weights are averaged, and there are no products."""
    assert reading(scene(strategies.load("sa-fedlora"), Plan((3, 2), (0, 1), (1, 4), 8))) == {}


@pytest.mark.parametrize("strategy", EXACTLY, ids=lambda strategy: strategy.name)
@EXAMPLES
@given(plan=plans())
def test_exact_rules_read_as_nothing(strategy, plan):
    assert reading(scene(strategy, plan))["overall"] < CLOSE


@EXAMPLES
@given(plans(), st.integers(min(INPUTS, OUTPUTS), 6))
def test_flex_lora_reads_as_nothing_where_the_rank_suffices(plan, largest):
    assert reading(scene(FLEX, replace(plan, budgets=(largest, *plan.budgets[1:]))))["overall"] < CLOSE


def test_flex_lora_reads_as_what_the_rank_lacks():
    drawn = scene(FLEX, Plan((2, 2, 1), (0, 1, 2), (3, 1, 2), 5))
    mean = mean_product(drawn)
    lacking = math.sqrt(tail(mean, 2)) / np.linalg.norm(mean)
    assert lacking > 1e-2
    assert reading(drawn)["overall"] == pytest.approx(lacking, rel=1e-4)


@pytest.mark.parametrize("name", ["rbla", "zero-pad"])
@pytest.mark.parametrize("seed", range(5))
def test_mixed_ranks_make_factor_averages_inexact(name, seed):
    assert reading(scene(strategies.load(name), Plan((1, 3, 6), (0, 1, 2), (2, 1, 3), seed)))["overall"] > 1e-2


def by_hand(name: str, *nodes: tuple[float, list[int]]) -> dict[str, float]:
    """Two nodes from zero: each has a weight and the axes whose e e^T its product is the sum of."""
    strategy = strategies.load(name)
    rank = max(len(axes) for _, axes in nodes)
    state = State({FACTORS[0]: torch.zeros(OUTPUTS, rank), FACTORS[1]: torch.zeros(rank, INPUTS)})
    updates = [
        Update(
            str(i),
            Assignment(1, 3, 0, len(axes)),
            {FACTORS[0]: torch.eye(OUTPUTS)[:, axes], FACTORS[1]: torch.eye(INPUTS)[axes]},
            w,
        )
        for i, (w, axes) in enumerate(nodes)
    ]
    return reading(Scene(strategy, state, updates))


@pytest.mark.parametrize(("weights", "expected"), [((1.0, 1.0), 1 / math.sqrt(2)), ((3.0, 1.0), 3 / math.sqrt(40))])
def test_two_orthogonal_nodes_under_fedavg(weights, expected):
    """The mean is p e1 e1^T + q e2 e2^T; of the means comes (p e1 + q e2)(p e1 + q e2)^T. Every one of four entries is
    off by p q, so the reading is 2 p q / sqrt(p^2 + q^2)."""
    read = by_hand("fedavg", (weights[0], [0]), (weights[1], [1]))
    assert read == {"overall": pytest.approx(expected, rel=1e-7), "m0": pytest.approx(expected, rel=1e-7)}


@pytest.mark.parametrize(
    ("name", "expected"), [("rbla", 1 / math.sqrt(5)), ("zero-pad", 1 / math.sqrt(20)), ("flex-lora", 0.0)]
)
def test_two_nodes_of_ranks_one_and_two(name, expected):
    """e1 e1^T and e1 e1^T + e2 e2^T have the mean e1 e1^T + e2 e2^T / 2. RBLA keeps the owner's e2 e2^T whole,
    zero padding halves both of its factors; FlexLoRA has the rank that it takes."""
    read = by_hand(name, (1.0, [0]), (1.0, [0, 1]))
    assert read["overall"] == pytest.approx(expected, rel=1e-7, abs=1e-7)


@EXAMPLES
@given(st.lists(terms(), min_size=1, max_size=3), st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_overall_is_all_modules_as_one_vector(shapes, weights):
    """Module i has the factors of the i-th list's terms, scaled anew by every node."""
    meter, numbers = ErrorMeasurement(), torch.Generator().manual_seed(len(weights))
    means = [np.zeros((t[0][1].shape[0], t[0][2].shape[1])) for t in shapes]
    state: Tensors = {}
    for weight in weights:
        trained: Tensors = {"head.weight": torch.ones(2, 2)}
        for i, (_, b, a) in enumerate(t[0] for t in shapes):
            b_name, a_name = factor_names(f"m{i}")
            for name, factor in ((b_name, b), (a_name, a)):
                trained[name] = factor * torch.randn(factor.shape, generator=numbers, dtype=factor.dtype)
            means[i] += weight / sum(weights) * dense([(1.0, trained[b_name], trained[a_name])])
            state |= {b_name: b, a_name: a}
        meter.see(trained, weight)
    read = meter.read(state)
    offs = [dense([(1.0, t[0][1], t[0][2])]) - mean for t, mean in zip(shapes, means, strict=True)]
    assert read == pytest.approx(
        {f"m{i}": relative(off, mean) for i, (off, mean) in enumerate(zip(offs, means, strict=True))}
        | {"overall": math.sqrt(sum((off**2).sum() for off in offs) / sum((mean**2).sum() for mean in means))},
        rel=1e-9,
    )


def test_nothing_learned_reads_as_nothing_said():
    meter = ErrorMeasurement()
    assert meter.read({}) == {}
    meter.see({"head.weight": torch.ones(2, 2)}, 3.0)
    assert meter.read({"head.weight": torch.ones(2, 2)}) == {}
    idle = {FACTORS[0]: torch.zeros(OUTPUTS, 2), FACTORS[1]: torch.ones(2, INPUTS)}
    meter.see(idle, 3.0)
    assert meter.read(idle) == {}


# ---------------------------------------------------------------------- estimates


def drawn_factors(rank: int, seed: int, size: tuple[int, int] = (300, 200), count: int = 1) -> Tensors:
    """Return B and A of `count` modules of this size (outputs, inputs)."""
    numbers, tensors = torch.Generator().manual_seed(seed), {}
    for i in range(count):
        b, a = factor_names(f"m{i}")
        tensors |= {b: torch.randn(size[0], rank, generator=numbers), a: torch.randn(rank, size[1], generator=numbers)}
    return tensors


def estimated(nodes: list[Tensors], state: Tensors) -> dict[str, float]:
    meter = ErrorMeasurement()
    for number, trained in enumerate(nodes, 1):
        meter.see(trained, number)
    return meter.read(state)


def exact(nodes: list[Tensors], state: Tensors) -> dict[str, float]:
    """Return the same numbers from dense float64 matrices."""
    weight, offs, means, read = sum(range(1, len(nodes) + 1)), 0.0, 0.0, {}
    for module in modules(state):
        b, a = factor_names(module)
        mean = dense((number / weight, t[b], t[a]) for number, t in enumerate(nodes, 1))
        off = dense([(1.0, state[b], state[a])]) - mean
        read[module] = relative(off, mean)
        offs, means = offs + float((off**2).sum()), means + float((mean**2).sum())
    return read | {"overall": math.sqrt(offs / means)}


@pytest.mark.parametrize(("rank", "nodes", "bound"), [(1, 1, 0.18), (1, 8, 0.15), (8, 8, 0.07)])
def test_estimates_spread_as_the_docstring_says(rank: int, nodes: int, bound: float) -> None:
    """Both norms of the ratio are estimated: 1 / sqrt(64) = .125 each at rank one, the second far less at rank 64."""
    off = []
    for seed in range(60):
        trained = [drawn_factors(rank, 100 * seed + n) for n in range(nodes)]
        state = drawn_factors(rank, 100 * seed + 99)
        off.append(estimated(trained, state)["m0"] / exact(trained, state)["m0"] - 1)
    assert float(np.std(off)) < bound
    assert abs(float(np.mean(off))) < 4 * bound / math.sqrt(len(off))


@pytest.mark.parametrize("size", [(300, 200), (300, 20), (20, 300)])
def test_overall_of_many_modules_is_close(size: tuple[int, int]) -> None:
    nodes = [drawn_factors(4, seed, size, 36) for seed in range(5)]
    assert estimated(nodes, nodes[0]) == pytest.approx(exact(nodes, nodes[0]), rel=0.25)
    assert estimated(nodes, nodes[0])["overall"] == pytest.approx(exact(nodes, nodes[0])["overall"], rel=0.05)


@pytest.mark.parametrize("size", [(PROBES, PROBES), (PROBES, 3), (5, PROBES)])
def test_sides_no_longer_than_the_probes_are_exact(size: tuple[int, int]) -> None:
    nodes = [drawn_factors(4, seed, size) for seed in range(5)]
    assert estimated(nodes, nodes[0]) == pytest.approx(exact(nodes, nodes[0]), rel=1e-9)


def test_an_estimate_of_nothing_is_nothing() -> None:
    """Every node has the product of the state, in factors of its own."""
    state = drawn_factors(8, 0)
    nodes = [{name: t * (n if ".lora_A." in name else 1 / n) for name, t in state.items()} for n in (1, 3, 7)]
    assert estimated(nodes, state)["overall"] < 1e-6
    assert estimated(nodes, {name: 1.01 * t for name, t in state.items()})["overall"] == pytest.approx(0.0201, rel=1e-3)


def test_memory_and_results_do_not_depend_on_how_many_nodes_there_are_or_in_which_order() -> None:
    nodes = [drawn_factors(1 + seed % 8, seed) for seed in range(50)]
    pairs, meters = list(enumerate(nodes, 1)), []
    for order in (pairs[:1], pairs, pairs[::-1]):
        meters.append(ErrorMeasurement())
        for weight, trained in order:
            meters[-1].see(trained, weight)
    assert [sum(t.numel() for t in meter._sums.values()) for meter in meters] == [PROBES**2] * 3
    assert meters[1].read(nodes[0]) == pytest.approx(meters[2].read(nodes[0]), rel=1e-9)


def test_no_bit_depends_on_the_order_of_modules() -> None:
    """A run that is resumed has its tensors in another order."""
    draw = torch.Generator().manual_seed(7)
    names = [name for number in range(24) for name in factor_names(f"m{number}")]
    shapes = [(40, 4), (4, 48)] * 24
    trained = {n: torch.randn(shape, generator=draw) for n, shape in zip(names, shapes, strict=True)}
    state = {n: torch.randn(shape, generator=draw) for n, shape in zip(names, shapes, strict=True)}
    forth, back = ErrorMeasurement(), ErrorMeasurement()
    forth.see(trained, 1.0)
    back.see(dict(reversed(trained.items())), 1.0)
    assert forth.read(state) == back.read(state)


def test_probes_are_the_bits_of_words_which_are_the_same_everywhere() -> None:
    probes, own = _probes(70, 1), words(0, 1, 0, 70)
    signs = [[1 if int(word) >> column & 1 else -1 for column in range(PROBES)] for word in own]
    assert torch.equal(probes * math.sqrt(PROBES), torch.tensor(signs, dtype=torch.float32))


# ---------------------------------------------------------------------- what is written down


def measured(exchanges: Iterable[Exchange], state: Tensors) -> dict[str, float]:
    """The readings from what went over the wire, as dense float64 matrices."""
    pairs = [(sent(e.request), sent(e.reply), e.reply) for e in exchanges if e.reply is not None]
    weights = [float(reply["metrics"]["num-examples"]) for *_, reply in pairs]  # type: ignore[index,arg-type]
    trained = [added(start, delta) for start, delta, _ in pairs]
    offs, means, read = 0.0, 0.0, {}
    for module in modules(state):
        names = factor_names(module)
        mean = dense((w / sum(weights), t[names[0]], t[names[1]]) for w, t in zip(weights, trained, strict=True))
        off = dense([(1.0, state[names[0]], state[names[1]])]) - mean
        read[module] = relative(off, mean)
        offs, means = offs + float((off**2).sum()), means + float((mean**2).sum())
    return read | {"overall": math.sqrt(offs / means)}


@pytest.mark.judged
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "rbla", "zero-pad", "flex-lora"])
def test_a_runs_readings_are_those_of_its_messages(name: str, tmp_path: Path) -> None:
    outcome = federate(
        tmp_path, QV | {"strategy": name, "lora.ranks": "2,4,8", "num-server-rounds": 2, "learning-rate": 0.05}
    )
    exchanges = outcome.grid.of("train")
    # A node of full rank is sent the whole state; where ranks are equal everybody is.
    states = [sent(exchanges[5].request), outcome.state().tensors]
    assert outcome.rounds[0]["aggregation-error"] == {}
    for number, state in enumerate(states, 1):
        read = outcome.rounds[number]["aggregation-error"]
        assert read.keys() == {"overall", *modules(state)}
        assert len(read) == 1 + 8
        assert read == pytest.approx(measured(exchanges[3 * number - 3 : 3 * number], state), rel=1e-6, abs=1e-6)
    assert outcome.rounds[2]["aggregation-error"]["overall"] > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["bias", "head"])
def test_without_adapters_there_is_nothing_to_read(tuning: str, tmp_path: Path) -> None:
    assert [line["aggregation-error"] for line in federate(tmp_path, {"tuning": tuning}).rounds] == [{}, {}]


def not_a_number(reply: Message) -> Message:
    return retold(reply, lambda tensors: {name: torch.full_like(t, float("nan")) for name, t in tensors.items()})


@pytest.mark.judged
@pytest.mark.slow
def test_a_refused_node_does_not_count(tmp_path: Path) -> None:
    def spoil(partition: int, kind: str, reply: Message) -> Message:
        return not_a_number(reply) if (partition, kind) == (1, "train") else reply

    outcome = federate(tmp_path, QV, spoil=spoil)
    line = outcome.rounds[1]
    assert [bool(entry["refused"]) for entry in line["nodes"]] == [False, True, False]
    good = [exchange for exchange in outcome.grid.of("train") if exchange.partition != 1]
    assert line["aggregation-error"] == pytest.approx(measured(good, outcome.state().tensors), rel=1e-6, abs=1e-6)
    assert line["aggregation-error"]["overall"] > 1e-4


@pytest.mark.judged
def test_a_failed_round_has_no_readings(tmp_path: Path) -> None:
    seen: list[int] = []

    def spoil(partition: int, kind: str, reply: Message) -> Message:
        seen.extend([partition] if kind == "train" else [])
        return not_a_number(reply) if kind == "train" and len(seen) <= 2 else reply

    _, failed, good = federate(tmp_path, QV | {"num-server-rounds": 2}, spoil=spoil).rounds
    assert failed["failed"]
    assert failed["aggregation-error"] == {}
    assert not good["failed"]
    assert good["aggregation-error"]["overall"] > 0
