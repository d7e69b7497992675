"""Server optimizers: against the papers' equations, number by number, and beside everything else that a round has."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord
from hypothesis import given, settings
from in_process import QV, federate, resumed
from laws import Plan, Scene, distance, drawn_like, nothing_of, plans, scene, variants

import strategies
from server_app.config import RunConfig
from strategies.algebra.lowrank import rank_axis
from strategies.algebra.tensors import Tensors, added, raw
from strategies.exchange.federation import Federation
from strategies.exchange.server_optimizer import ServerOptimizer, stepped
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import RunFailed, State
from strategies.optimizers.adagrad import Adagrad
from strategies.optimizers.adam import Adam
from strategies.optimizers.momentum import Momentum
from strategies.optimizers.sgd import Sgd
from strategies.optimizers.yogi import Yogi
from strategies.protocol import checkpoint, instructions, wire
from task.schema import ConfigError, flatten
from thistledown.estimates.choices import choices

pytestmark = pytest.mark.about("server-optimizer")
ROUNDS = 30
OPTIMIZERS: list[ServerOptimizer] = [
    Sgd(0.5), Momentum(), Momentum(0.3, 0.5), Adam(), Adam(0.1, 0.5, 0.9, 0.01), Yogi(), Yogi(0.1, 0.5, 0.9, 0.01),
    Adagrad(), Adagrad(0.1, 0.9, 0.01),
]  # fmt: skip
EVERY = [strategies.load_optimizer(name) for name in strategies.optimizer_names()]  # a new file's laws are tested too
MOMENTS = {"sgd": 0, "momentum": 1, "adam": 2, "yogi": 2, "adagrad": 2}


# ---------------------------------------------------------------------- the equations


def by_hand(optimizer: ServerOptimizer, changes: list[float]) -> float:
    """Where a number that starts at 0 is after these mean updates; Python's floats, one equation a line."""
    x = v = m = 0.0
    o = optimizer
    if not isinstance(o, Sgd | Momentum):
        v = o.tau**2
    for delta in changes:
        if isinstance(o, Sgd):
            x = x + o.learning_rate * delta
        elif isinstance(o, Momentum):
            v = o.beta * v + delta
            x = x + o.learning_rate * v
        else:
            m = o.beta1 * m + (1 - o.beta1) * delta
            if isinstance(o, Adam):
                v = o.beta2 * v + (1 - o.beta2) * delta**2
            elif isinstance(o, Yogi):
                v = v - (1 - o.beta2) * delta**2 * math.copysign(1.0, v - delta**2)
            else:
                v = v + delta**2
            x = x + o.learning_rate * m / (math.sqrt(v) + o.tau)
    return x


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_many_rounds_are_the_papers_equations(optimizer):
    """In float64, where nothing is rounded on the way; updates from 1e-6 to 10, of both signs."""
    random = torch.Generator().manual_seed(1)
    scales = 10.0 ** torch.arange(-6, 2, dtype=torch.float64).repeat(5)
    changes = [torch.randn(40, generator=random, dtype=torch.float64) * scales for _ in range(ROUNDS)]
    state = {"w": torch.zeros(40, dtype=torch.float64)}
    server: Tensors = {}
    for change in changes:
        step, server = stepped(optimizer, state, server, {"w": change})
        state = added(state, step)
    expected = [by_hand(optimizer, [float(change[i]) for change in changes]) for i in range(40)]
    torch.testing.assert_close(state["w"], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_step_is_rounded_once(optimizer, dtype):
    """From float64 arithmetic on the mean as it is, to the dtype of the state; moments are not rounded."""
    change = torch.randn(50, generator=torch.Generator().manual_seed(2)).to(dtype)
    zeros = torch.zeros(50, dtype=dtype)
    step, server = stepped(optimizer, {"w": zeros}, {}, {"w": change})
    expected = [by_hand(optimizer, [float(x)]) for x in change]
    assert step["w"].dtype == dtype
    assert torch.equal(step["w"], torch.tensor(expected, dtype=torch.float64).to(dtype))
    assert {moment.dtype for moment in server.values()} <= {torch.float64}
    assert len(server) == MOMENTS[optimizer.name]


# ---------------------------------------------------------------------- laws


def steps_of(optimizer: ServerOptimizer, drawn: Scene, rounds: int) -> list[State]:
    """The states of some rounds, each with updates of its own, as the round loop makes them."""
    state, found = drawn.state, []
    for number in range(rounds):
        random = torch.Generator().manual_seed(number)
        updates = [replace(u, delta=drawn_like(u.delta, random)) for u in drawn.updates]
        combined = drawn.strategy.combine(state.without_server(), iter(updates))
        change, moments = stepped(optimizer, state.tensors, state.server, combined)
        after = drawn.strategy.apply(state, change, number + 1)
        state = replace(after, server=after.server | moments)
        found.append(state)
    return found


def steppable() -> list[Strategy]:
    return [strategy for name in strategies.names() for strategy in variants(name) if not strategy.fixed_step]


@pytest.mark.parametrize("strategy", steppable(), ids=str)
@given(plan=plans())
@settings(max_examples=10)
def test_sgd_of_rate_1_is_the_mean_to_the_bit(strategy, plan):
    drawn = scene(strategy, plan)
    combined = strategy.combine(drawn.state, iter(drawn.updates))
    change, moments = stepped(Sgd(), drawn.state.tensors, {}, combined)
    assert not moments
    assert {n: bytes(raw(t)) for n, t in change.items()} == {n: bytes(raw(t)) for n, t in combined.items()}


@pytest.mark.parametrize("strategy", steppable(), ids=str)
@given(plan=plans())
@settings(max_examples=10)
def test_a_strategy_that_takes_any_step_adds_it(strategy, plan):
    """What the absence of a `fixed_step` declares: the state moves by the change, all of it, and nothing else does."""
    drawn = scene(strategy, plan)
    change = drawn_like(strategy.combine(drawn.state, iter(drawn.updates)), torch.Generator().manual_seed(plan.seed))
    after = strategy.apply(drawn.state, change, 1)
    assert distance(after, State(added(drawn.state.tensors, change))) == 0.0
    assert not after.journal
    assert not after.server


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, *EVERY], ids=str)
@given(plan=plans())
@settings(max_examples=10)
def test_updates_of_zero_leave_model_and_moments_as_they_are(optimizer, plan):
    """For sgd because the step is zero; for the others because nobody trained."""
    drawn = scene(strategies.load("rbla"), plan)
    (before,) = steps_of(optimizer, drawn, 1)
    nothing = [replace(u, delta=nothing_of(u.delta)) for u in drawn.updates]
    combined = drawn.strategy.combine(before.without_server(), iter(nothing))
    change, moments = stepped(optimizer, before.tensors, before.server, combined)
    assert not any(step.any() for step in change.values())
    assert moments.keys() == before.server.keys()
    assert all(torch.equal(moments[name], tensor) for name, tensor in before.server.items())


@pytest.mark.parametrize(("one", "other"), [(Momentum(0.7, 0.0), Sgd(0.7)), (Momentum(1.0, 0.0), Sgd(1.0))], ids=str)
def test_momentum_that_forgets_is_sgd(one, other):
    drawn = scene(strategies.load("fedavg"), Plan((3, 3), (0, 1), (1, 4), 5))
    for mine, theirs in zip(steps_of(one, drawn, 4), steps_of(other, drawn, 4), strict=True):
        assert distance(mine, theirs) == 0.0


def test_yogi_and_adam_take_the_same_first_step_below_tau():
    """v begins at tau^2, which is above every square: both then move it by (1 - beta2) (Delta^2 - v) or Delta^2."""
    small = {"w": torch.full((3,), 1e-9, dtype=torch.float64)}
    zero = {"w": torch.zeros(3, dtype=torch.float64)}
    (adam, _), (yogi, _) = (stepped(optimizer, zero, {}, small) for optimizer in (Adam(), Yogi()))
    torch.testing.assert_close(adam["w"], yogi["w"], rtol=0.01, atol=0.0)


# ---------------------------------------------------------------------- ranks, whole numbers, statistics


@pytest.mark.parametrize("optimizer", EVERY, ids=str)
@pytest.mark.parametrize("name", ["rbla", "zero-pad", "hetlora"])
def test_moments_have_the_shape_of_the_state(optimizer, name):
    drawn = scene(strategies.load(name), Plan((6, 2, 4), (1, 2), (1, 4, 2), 5))
    for state in steps_of(optimizer, drawn, 3):
        for key, moment in state.server.items():
            assert moment.shape == state.tensors[key.split(" ", 2)[2]].shape


@pytest.mark.parametrize("optimizer", EVERY, ids=str)
def test_ranks_that_nobody_owned_rest_with_their_moments(optimizer):
    """A cohort of ranks 2 and 4 in a state of rank 6, after a round in which the node of rank 6 had a part."""
    everyone = scene(strategies.load("rbla"), Plan((6, 2, 4), (0, 1, 2), (1, 4, 2), 5))
    (before,) = steps_of(optimizer, everyone, 1)
    combined = everyone.strategy.combine(before.without_server(), iter(everyone.updates[1:]))
    change, moments = stepped(optimizer, before.tensors, before.server, combined)
    factors = [name for name in change if rank_axis(name) is not None]
    assert len(factors) == 2
    for name in factors:
        by_rank = change[name].movedim(rank_axis(name), 0)
        assert not by_rank[4:].any()
        assert by_rank[:4].flatten(1).any(dim=1).all()
        for moment in optimizer.initial():
            key = f"{optimizer.name} {moment} {name}"
            old, new = (side[key].movedim(rank_axis(name), 0) for side in (before.server, moments))
            assert torch.equal(old[4:], new[4:])
            assert not torch.equal(old[:4], new[:4])


def test_a_factor_that_rests_takes_no_step():
    """RoLoRA trains B in odd rounds and A in even ones."""
    drawn = scene(strategies.load("rolora"), Plan((3, 3), (0, 1), (1, 4), 5))
    combined = drawn.strategy.combine(drawn.state, iter(drawn.updates))
    change, moments = stepped(Adam(), drawn.state.tensors, {}, combined)
    assert not change["m0.lora_A.weight"].any()
    assert {name.split(" ", 2)[2] for name in moments} == {"m0.lora_B.weight", "classifier.weight"}


def test_whole_numbers_and_running_statistics_change_as_combined():
    state = {
        "norm.running_mean": torch.zeros(2), "norm.running_var": torch.ones(2),
        "norm.num_batches_tracked": torch.tensor(3), "norm.weight": torch.ones(2),
    }  # fmt: skip
    combined = {
        "norm.running_mean": torch.ones(2), "norm.running_var": torch.full((2,), -0.5),
        "norm.num_batches_tracked": torch.tensor(7), "norm.weight": torch.ones(2),
    }  # fmt: skip
    change, moments = stepped(Momentum(0.1, 0.5), state, {}, combined)
    for name in state.keys() - {"norm.weight"}:
        assert torch.equal(change[name], combined[name])
    assert change["norm.weight"].tolist() == pytest.approx([0.1, 0.1])
    assert moments.keys() == {"momentum velocity norm.weight"}


def test_a_strategy_that_combines_something_else_is_named():
    with pytest.raises(RunFailed, match="cannot step along 'residual', which is not a tensor of the state"):
        stepped(Adam(), {"w": torch.ones(1)}, {}, {"w": torch.ones(1), "residual": torch.ones(1)})


# ---------------------------------------------------------------------- by name


def test_it_is_chosen_by_name_and_named_in_the_results():
    flat = {"server-optimizer": "adam", "server-adam.learning-rate": 0.05}
    run = RunConfig.read(flat)
    assert run.strategy.server_optimizer == Adam(0.05)
    assert run.strategy == replace(strategies.load("fedavg"), server_optimizer=Adam(0.05))
    assert strategies.load("fedavg", server_optimizer="adam").server_optimizer == Adam()
    assert strategies.load("fedavg", server_optimizer=Yogi(0.5)).server_optimizer == Yogi(0.5)
    assert run.strategy.to_flat().items() >= flat.items()
    assert run.flat["server-adam.tau"] == 0.001
    assert RunConfig.read({}).strategy.server_optimizer is None
    assert RunConfig.read({}).strategy == strategies.load("fedavg", server_optimizer="sgd") == strategies.load("fedavg")


@pytest.mark.parametrize(
    ("flat", "said"),
    [
        ({"server-optimizer": "adams"}, "there is no server optimizer 'adams'.*adam"),
        ({"server-optimizer": "adam", "server-adam.beta1": 1.5}, "server-adam.beta1 must be at most 0.999"),
        ({"server-optimizer": "adam", "server-adam.tau": 0.0}, "server-adam.tau must be at least 1e-12"),
        ({"server-adam.eta": 1.0}, "there is no key 'server-adam.eta'"),
    ],
)
def test_bad_choices_are_named(flat, said):
    with pytest.raises(ConfigError, match=said):
        RunConfig.read(flat)


def test_nodes_do_not_learn_of_it():
    run = RunConfig.read({"server-optimizer": "adam"})
    record = instructions.write(run.task, run.strategy, "base")
    assert not [key for key in record if key.startswith("server-")]
    assert instructions.strategy_of(record) == strategies.load("fedavg")


REFUSED = {
    "flora",
    "fedsvd",
    "slora",
    "fedex-lora",
    "flex-lora",
    "raflora",
    "ferret",
    "sa-fedlora",
    "fedsa-lora",
    "scaffold",
    "lora-fair",
}


@pytest.mark.parametrize("name", strategies.names())
def test_it_is_refused_where_updates_are_no_step(name):
    tuning = "full" if strategies.strategy_class(name).needs_in_place else "lora"
    flat = {"strategy": name, "tuning": tuning, "optimizer": "sgd", "evaluate": "nodes", "server-optimizer": "adam"}
    for optimizer in ({}, {"server-optimizer": "sgd", "server-sgd.learning-rate": 0.5}):
        if name in REFUSED:
            with pytest.raises(ConfigError, match=f"strategy = '{name}' has none: .*; set server-optimizer = 'sgd'"):
                RunConfig.read(flat | optimizer)
        else:
            assert RunConfig.read(flat | optimizer).strategy.server_optimizer
    assert RunConfig.read(flat | {"server-optimizer": "sgd"}).strategy.server_optimizer is None


def test_it_is_refused_where_counts_are_combined_too():
    flat = {"strategy": "fedkseed", "tuning": "full", "optimizer": "sgd", "server-optimizer": "yogi"}
    assert RunConfig.read(flat).strategy.server_optimizer
    with pytest.raises(ConfigError, match=r"fedkseed\.pro = true also counts"):
        RunConfig.read(flat | {"fedkseed.pro": True})


def test_it_is_refused_from_python_before_any_node_is_asked():
    grid = object()
    with pytest.raises(ConfigError, match="strategy = 'flora' has none"):
        strategies.load("flora", server_optimizer="adam").start(grid)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- federations


def replies_of(outcome) -> list[list[Tensors]]:
    """The updates of every round, from the wire."""
    trained = [wire.unpack(exchange.reply).tensors for exchange in outcome.grid.of("train")]
    nodes = len(outcome.rounds[1]["nodes"])
    return [trained[start : start + nodes] for start in range(0, len(trained), nodes)]


@pytest.mark.first(1)
@pytest.mark.parametrize("wrappers", ["", "median"])
@pytest.mark.parametrize("name", ["adam", "yogi", "momentum"])
def test_a_federation_takes_the_papers_steps(tmp_path: Path, name, wrappers):
    """From the updates that came over the wire, combined by hand in float64, along the equations."""
    options = {"num-server-rounds": 3, "server-optimizer": name, "wrappers": wrappers, "examine-rows": 0}
    outcome = federate(tmp_path, QV | options | {"outlier-factor": 0.0, "collapse-factor": 0.0})
    run = outcome.run
    start = wire.unpack(outcome.grid.of("train")[0].request).tensors
    rows = [line["metrics"]["num-examples"] for line in outcome.rounds[1]["nodes"]]
    means = []
    for updates in replies_of(outcome):
        stacked = {n: torch.stack([u[n].double() for u in updates]) for n in start}
        if wrappers:
            means.append({n: t.sort(dim=0).values[1] for n, t in stacked.items()})
        else:
            weights = torch.tensor(rows, dtype=torch.float64) / sum(rows)
            means.append({n: torch.einsum("i,i...->...", weights, t) for n, t in stacked.items()})
    optimizer = run.strategy.server_optimizer
    picked = torch.Generator().manual_seed(4)
    for tensor, after in outcome.state().tensors.items():
        for place in torch.randint(after.numel(), (20,), generator=picked).tolist():
            moved = by_hand(optimizer, [float(mean[tensor].flatten()[place]) for mean in means])
            expected = float(start[tensor].flatten()[place]) + moved
            assert float(after.flatten()[place]) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert not outcome.rounds[-1]["aggregation-error"]  # a step that is not the mean is no error of a rule


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "options",
    [
        {"server-optimizer": "adam"},
        {"server-optimizer": "yogi", "strategy": "rbla", "lora.ranks": "2,4", "wrappers": "quantize"},
        {"server-optimizer": "momentum", "wrappers": "trimmed-mean", "fraction-train": 0.7},
    ],
    ids=lambda options: options["server-optimizer"],
)
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, options):
    """Killed in the middle of round 3, while replies come in."""
    whole = federate(tmp_path / "whole", QV | options | {"num-server-rounds": 4}).state()

    class Killed(BaseException):
        pass

    def at_round_3(partition, kind, message):
        if kind == "train" and checkpoint.about(last())["round"] == 2 and partition == 1:
            raise Killed
        return message

    def last() -> Path:
        return next((tmp_path / "part").glob("*/checkpoints")) / checkpoint.LAST

    with pytest.raises(Killed):
        federate(tmp_path / "part", QV | options | {"num-server-rounds": 4}, spoil=at_round_3)
    again = resumed(last().parent.parent, {}).state()
    assert again.server
    for mine, theirs in ((again.tensors, whole.tensors), (again.server, whole.server)):
        assert {n: bytes(raw(t)) for n, t in mine.items()} == {n: bytes(raw(t)) for n, t in theirs.items()}


def test_another_optimizer_does_not_go_on_with_these_moments(tmp_path: Path):
    outcome = federate(tmp_path, QV | {"server-optimizer": "adam"})
    config = ConfigRecord(dict(flatten(outcome.run.task, changed_only=True)))
    federation = Federation(resume=True, checkpoint=outcome.folder / "checkpoints")
    strategy = strategies.load("fedavg", server_optimizer="yogi")
    with pytest.raises(RunFailed, match="is of a run with server-optimizer adam, not yogi"):
        strategy.start(outcome.grid, num_rounds=3, train_config=config, federation=federation)


@pytest.mark.slow
def test_noise_on_the_mean_stays_inside_of_it(tmp_path: Path):
    """The account is that of the same run without a server optimizer, and the step is taken of the noisy mean."""
    options = {"wrappers": "central-privacy", "central-privacy.noise": 1.0, "central-privacy.epsilon": 0.0}
    plain, moved = (
        federate(tmp_path / name, QV | options | {"server-optimizer": name, "num-server-rounds": 2})
        for name in ("sgd", "adam")
    )
    accounts = [{key: run.rounds[-1][key] for key in ("epsilon", "delta", "clip")} for run in (plain, moved)]
    assert accounts[0] == accounts[1]
    assert accounts[0]["epsilon"] > 0
    assert all(moved.state().server[f"adam second {name}"].all() for name in moved.state().tensors)


def test_a_collapse_takes_the_moments_back_too(tmp_path: Path):
    """What a run goes back to is a checkpoint, moments included."""
    outcome = federate(tmp_path, QV | {"server-optimizer": "adam", "num-server-rounds": 2})
    first, _ = checkpoint.load(outcome.folder / "checkpoints" / checkpoint.kept(1))
    assert first.server.keys() == outcome.state().server.keys()
    assert not torch.equal(*(s.server["adam second classifier.weight"] for s in (first, outcome.state())))


def test_check_explains_it():
    said = "\n".join(choices(RunConfig.read({"server-optimizer": "adam"})))
    assert "step      adam (learning-rate 0.01, beta1 0.9, beta2 0.99, tau 0.001)" in said
    assert "server-optimizer sgd, learning-rate 1" in "\n".join(choices(RunConfig.read({})))
