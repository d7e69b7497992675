"""Central privacy: what the mechanism does to updates and their mean, what is refused, and whole federations."""

import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from in_process import InProcessGrid, equal, federate, retold

import client_app
import strategies
from server_app.config import RunConfig
from strategies.algebra.accountant import Release, epsilon_of
from strategies.algebra.clipping import norm
from strategies.algebra.mean import WeightedSum
from strategies.exchange import cohort, compatibility
from strategies.exchange.privacy import Plan
from strategies.exchange.types import Assignment, Profile, Update
from strategies.protocol import wire
from strategies.wrappers.central_privacy import CentralMechanism
from task.schema import ConfigError

PLAN = Plan(rounds=50, nodes=256, fraction=0.125)
NODES = [Profile(i, str(i), 8, 10, "store") for i in range(PLAN.nodes)]
LIKE = {"w": torch.zeros(400, 50), "b": torch.zeros(7)}


def mechanism(plan: Plan = PLAN, **options: Any) -> CentralMechanism:
    found = strategies.load_wrapper("central-privacy", **options).mechanism(plan)
    assert isinstance(found, CentralMechanism)
    return found


def update(scale: float, weight: float = 5.0, seed: int = 0) -> Update:
    generator = torch.Generator().manual_seed(seed)
    delta = {name: scale * torch.randn(tensor.shape, generator=generator) for name, tensor in LIKE.items()}
    return Update("0", Assignment(1, 50, 0, 0), delta, weight)


def mean_of(updates: list[Update]) -> dict[str, torch.Tensor]:
    total = WeightedSum(LIKE)
    for one in updates:
        total.add(one.delta, one.weight)
    return total.mean()


# ---------------------------------------------------------------------- one round


def test_every_node_counts_once_and_no_further_than_the_clip() -> None:
    central = mechanism(clip=0.5)
    for scale, weight in ((100.0, 1.0), (1e-5, 1000.0)):
        admitted = central.admitted(update(scale, weight))
        assert admitted.weight == 1.0
        assert norm(admitted.delta) <= 0.5
    assert equal(central.admitted(update(1e-5)).delta, update(1e-5).delta)


def test_the_sum_is_over_the_expected_cohort_whoever_answers() -> None:
    """A float64 reference: clipped by hand, added up, over 32 whether 3 nodes answer or 40."""
    central = mechanism(epsilon=0.0, clip=0.5)
    for count in (3, 40):
        updates = [update(0.01, seed=i) for i in range(count)]
        combined = central.combined(mean_of([central.admitted(one) for one in updates]), count, LIKE)
        for name in LIKE:
            total = sum(one.delta[name].double() * min(1.0, 0.5 / norm(one.delta)) for one in updates)
            torch.testing.assert_close(combined[name].double(), total / 32, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("good", [0, 1])
def test_the_noise_on_the_mean_has_the_moments_that_the_account_is_of(good: int) -> None:
    """Standard deviation noise * clip / 32 in every number, to six standard errors; an empty cohort is noise alone."""
    central = mechanism(noise=3.0, clip=2.0)
    central.spend(NODES, NODES[:good], 1)
    mean = mean_of([central.admitted(update(0.0))]) if good else {}
    drawn = torch.cat([t.double().flatten() for t in central.combined(mean, good, LIKE).values()]) / (3.0 * 2.0 / 32)
    for power, (expected, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert abs(float((drawn**power).mean()) - expected) < 6 * math.sqrt(variance / len(drawn))


def test_noise_is_on_what_trains_alone() -> None:
    central = mechanism(noise=1.0)
    central.spend(NODES, NODES[:1], 1)
    mean = {"w": torch.zeros(3, 6), "resting": torch.zeros(4)}
    combined = central.combined(mean, 1, {"w": torch.zeros(3, 2)})
    assert bool((combined["w"][:, :2] != 0).all())
    assert not bool(combined["w"][:, 2:].any())
    assert not bool(combined["resting"].any())


@pytest.mark.slow
def test_a_clip_that_follows_a_quantile_finds_it() -> None:
    """Norms are spread evenly from 0 to 1: the clip ends where 70 % are below. Andrew et al., Algorithm 1."""
    size = norm(update(1.0).delta)
    central = mechanism(replace(PLAN, nodes=8000, fraction=0.1), noise=1.0, clip=0.1, quantile=0.7)
    for _ in range(60):
        central.spend(NODES, [], 1)
        for number in range(1, 801):
            central.admitted(Update("0", Assignment(1, 1, 0, 0), {"w": torch.tensor([number / 801])}, 1.0))
        central.combined({}, 0, {})
    assert size > 1
    assert central.clip == pytest.approx(0.7, abs=0.15)


def test_the_counted_bits_are_paid_for_by_the_noise() -> None:
    """Two Gaussian queries at once cost what one of `noise` does: 1/z^2 = 1/z_sum^2 + 1/(2 sigma_count)^2."""
    central = mechanism(noise=1.5, quantile=0.5)
    count, on_sum = central._noises()
    assert 1 / on_sum**2 + 1 / (2 * count) ** 2 == pytest.approx(1 / 1.5**2)
    assert on_sum > 1.5
    assert mechanism(noise=1.5)._noises() == (0.0, 1.5)


# ---------------------------------------------------------------------- cohorts and account


def test_poisson_cohorts_have_the_sizes_of_independent_draws() -> None:
    """Over 2,000 rounds: mean 32 and variance 28, within six standard errors; every node as often as the others."""
    source = random.Random(3)
    drawn = [cohort.poisson(NODES, 0.125, source) for _ in range(2000)]
    sizes = torch.tensor([float(len(one)) for one in drawn])
    assert abs(float(sizes.mean()) - 32) < 6 * math.sqrt(28 / 2000)
    assert abs(float(sizes.var()) - 28) < 6 * 28 * math.sqrt(2 / 2000)
    turns = torch.zeros(PLAN.nodes)
    for one in drawn:
        turns[[profile.node_id for profile in one]] += 1
    assert float((turns - 250).abs().max()) < 6 * math.sqrt(2000 * 0.125 * 0.875)
    assert cohort.poisson(NODES, 1.0, source) == NODES


def test_cohorts_are_secret_where_they_protect_and_repeatable_where_they_do_not() -> None:
    def drawn(**options: Any) -> list[str]:
        return [profile.name for profile in mechanism(**options).cohort(NODES, 1)]

    assert drawn() != drawn()
    assert drawn(epsilon=0.0) == drawn(epsilon=0.0)
    assert drawn(sampling="fixed", noise=9.0, epsilon=0.0) != drawn(sampling="fixed", noise=9.0, epsilon=0.0)
    assert len(drawn(sampling="fixed", noise=9.0, epsilon=0.0)) == 32


def test_the_account_is_of_rounds_that_were_begun_and_ends_the_run_in_time() -> None:
    central = mechanism(replace(PLAN, rounds=5), delta=1e-3)
    for number in range(5):
        assert not central.exhausted()
        assert central.spent()["epsilon"] == epsilon_of({Release(central.noise, 0.125): number}, 1e-3)
        central.spend(NODES, [], 1)
    assert 7.9 < (central.spent()["epsilon"] or 0) <= 8.0
    assert "another round would make it" in central.exhausted()


def test_an_account_resumes_from_its_saved_state() -> None:
    first = mechanism(noise=2.0, quantile=0.5)
    first.spend(NODES, NODES[:3], 1)
    first.combined({}, 0, LIKE)
    second = mechanism(noise=2.0, quantile=0.5)
    second.restore(first.memory())
    assert (second.clip, second.spent()) == (first.clip, first.spent())
    assert second.clip != 1.0


# ---------------------------------------------------------------------- refusals

PRIVATE = {"wrappers": "central-privacy"}
REFUSED = [
    ({"strategy": "rbla"}, "needs a mean of updates; strategy = 'rbla' takes none"),
    ({"strategy": "flora"}, "needs a mean of updates; strategy = 'flora' takes none"),
    ({"wrappers": "top-k,central-privacy"}, "is for the update itself, not for what 'top-k' sends; put it first"),
    ({"wrappers": "quantize,central-privacy"}, "is for the update itself, not for what 'quantize' sends; put it first"),
    ({"wrappers": "central-privacy,local-privacy"}, "each keep an account of privacy; choose one"),
    ({"evaluate": "nodes"}, "reports scores of the nodes' own rows, without noise"),
    ({"evaluate": "both"}, "reports scores of the nodes' own rows, without noise"),
    ({"strategy": "fedsa-lora", "evaluate": "nodes"}, "leaves tensors on the nodes"),
    ({"central-privacy.clip": 0.0}, "noise needs a bound"),
    ({"min-train-nodes": 2}, "would change who is drawn"),
    ({"central-privacy.noise": 0.3, "fraction-train": 0.5}, "is not enough for one round"),
    ({"wrappers": "half,local-privacy"}, "is for the update itself, not for what 'half' sends; put it first"),
    ({"wrappers": "local-privacy", "strategy": "flex-lora"}, "needs a mean of updates"),
    ({"wrappers": "local-privacy", "evaluate": "nodes"}, "reports scores of the nodes' own rows, without noise"),
    ({"wrappers": "local-privacy", "local-privacy.noise": 0.3}, "is not enough for one round"),
    ({"wrappers": "local-privacy", "local-privacy.clip": 0.0}, "noise needs a bound"),
    ({"wrappers": "example-privacy", "evaluate": "nodes"}, "reports scores of the nodes' own rows, without noise"),
    ({"wrappers": "example-privacy", "example-privacy.clip": 0.0}, "noise needs a bound"),
    ({"wrappers": "example-privacy", "max-grad-norm": 1.0}, "clips whole gradients"),
    ({"wrappers": "example-privacy", "model.dtype": "bfloat16"}, "rounds clipped gradients"),
    (
        {"wrappers": "example-privacy", "strategy": "fedkseed", "tuning": "bias", "optimizer": "sgd"},
        "learns without gradients",
    ),
    (
        {
            "wrappers": "example-privacy",
            "task.kind": "causal-lm",
            "model.name": "/no/model",
            "data.name": "/no/data",
            "data.partitioner": "iid",
        },
        "mean over the tokens of a batch",
    ),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_what_no_guarantee_would_hold_for_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig.read(PRIVATE | options)
    assert any(said in problem for problem in error.value.problems), error.value.problems


def test_a_budget_too_small_for_a_cohort_of_fixed_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not enough for one round"):
        mechanism(sampling="fixed", noise=0.5)


def test_whole_numbers_in_the_state_are_refused() -> None:
    with pytest.raises(ConfigError, match="whole numbers, such as 'batches'"):
        mechanism(noise=1.0).start(LIKE | {"batches": torch.tensor(0)})


def test_what_the_plan_gives_is_said() -> None:
    run = RunConfig.read(PRIVATE | {"num-server-rounds": 5, "fraction-train": 0.5})
    said = compatibility.mechanism(run.strategy, run.plan()).promise()
    assert re.match(r"epsilon (7\.99|8\.00) at delta 1e-05 for all data of a node after 5 rounds; noise", said)
    assert said.endswith("about 5 of 10 nodes a round, each drawn by itself")
    assert "no noise is added" in mechanism(epsilon=0.0).promise()


def test_a_delta_that_protects_nobody_is_said() -> None:
    assert "Weak" not in mechanism(noise=1.0, delta=1 / 256).promise()
    assert "a delta above 1/256 allows that one of the nodes is exposed" in mechanism(noise=1.0, delta=0.004).promise()


# ---------------------------------------------------------------------- federations

SAME = {"data.partitioner": "iid", "num-server-rounds": 2, "tuning": "bias"}  # 30 rows for each of 3 nodes
OFF = PRIVATE | {"central-privacy.epsilon": 0.0, "central-privacy.clip": 0.0}


@pytest.mark.first(1)
@pytest.mark.parametrize("options", [{}, {"data.partitioner": "dirichlet", "fraction-train": 0.6}])
def test_switched_off_a_run_is_the_plain_one_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    plain, off = (federate(tmp_path, SAME | options | more) for more in ({}, OFF))
    assert equal(plain.state().tensors, off.state().tensors)
    assert [line.get("train-loss") for line in plain.rounds] == [line.get("train-loss") for line in off.rounds]


@pytest.mark.slow
def test_without_noise_and_beyond_every_norm_a_run_of_all_nodes_is_the_plain_one_bit_for_bit(tmp_path: Path) -> None:
    plain, wide = (federate(tmp_path, SAME | more) for more in ({}, OFF | {"central-privacy.clip": 1e9}))
    assert equal(plain.state().tensors, wide.state().tensors)


def test_a_run_says_what_it_has_spent_and_nothing_of_training(tmp_path: Path) -> None:
    outcome = federate(tmp_path, SAME | PRIVATE | {"fraction-train": 0.5, "central-privacy.delta": 0.01})
    epsilons = [line["epsilon"] for line in outcome.rounds]
    assert epsilons[0] == 0 < epsilons[1] < epsilons[2] <= 8
    assert outcome.summary["epsilon"] == epsilons[-1]
    assert {line["delta"] for line in outcome.rounds} == {0.01}
    assert '<th scope="col">epsilon</th>' in (outcome.folder / "report.html").read_text()
    for line in outcome.rounds:
        assert line["train-loss"] is None
        assert not line["aggregation-error"]
        assert not any(node["metrics"] for node in line["nodes"])


def test_a_run_ends_where_its_budget_does(tmp_path: Path) -> None:
    options = {"num-server-rounds": 9, "central-privacy.noise": 1.0, "central-privacy.epsilon": 9.0}
    outcome = federate(tmp_path, SAME | PRIVATE | options)
    assert outcome.summary["status"] == "completed"
    assert "another round would make it" in outcome.summary["stopped"]
    last = outcome.summary["rounds"]
    assert 0 < last < 9
    cost = [epsilon_of({Release(1.0): rounds}, 1e-5) for rounds in (last, last + 1)]
    assert cost[0] <= 9 < cost[1]


def test_a_greedy_node_moves_the_state_no_further_than_the_clip(tmp_path: Path) -> None:
    """It sends its update a million times as large; the server does not rely on what a node has clipped."""

    def greedy(partition: int, kind: str, reply: Message) -> Message:
        return retold(reply, lambda t: {n: x * 1e6 for n, x in t.items()}) if kind == "train" else reply

    grid = InProcessGrid(client_app.app, 3, spoil=greedy)
    outcome = federate(tmp_path, SAME | OFF | {"central-privacy.clip": 0.25, "num-server-rounds": 1}, grid)
    after, before = outcome.state().tensors, grid.of("train")[0].request
    start = wire.unpack(before).tensors
    assert norm({name: after[name].double() - start[name].double() for name in after}) <= 0.25 + 1e-5


@pytest.mark.slow
def test_it_goes_round_compression_with_feedback(tmp_path: Path) -> None:
    outcome = federate(tmp_path, SAME | PRIVATE | {"wrappers": "central-privacy,top-k", "central-privacy.delta": 0.01})
    assert not any(line["failed"] for line in outcome.rounds)
    assert outcome.summary["status"] == "completed"


@pytest.mark.slow
def test_nodes_that_drop_out_shrink_the_sum_and_not_what_it_is_divided_by(tmp_path: Path) -> None:
    """One of three nodes is gone: a plain mean is over the others, a guarded one is two thirds of that."""
    options = SAME | {"num-server-rounds": 1, "simulation.dropout": 0.9, "min-success-fraction": 0.0}
    states = [federate(tmp_path, options | more) for more in ({}, OFF | {"central-privacy.clip": 1e9})]
    gone = [node["refused"] for node in states[0].rounds[1]["nodes"]]
    assert "it dropped out (simulation.dropout)" in gone
    good = gone.count("")
    assert 0 < good < 3
    start = wire.unpack(states[0].grid.of("train")[0].request).tensors
    for name, before in start.items():
        plain, guarded = (outcome.state().tensors[name].double() - before.double() for outcome in states)
        torch.testing.assert_close(guarded, plain * good / 3, rtol=1e-3, atol=1e-6)


def test_the_round_that_a_budget_ends_is_said_before() -> None:
    said = mechanism(replace(PLAN, rounds=40), noise=1.0, epsilon=4.0).promise()
    rounds = int(re.search(r"after (\d+) rounds, of 40: there the budget ends the run", said)[1])  # type: ignore[index]
    assert epsilon_of({Release(1.0, 0.125): rounds}, 1e-5) <= 4 < epsilon_of({Release(1.0, 0.125): rounds + 1}, 1e-5)
