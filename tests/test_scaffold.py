"""SCAFFOLD against a float64 loop of the paper's equations, on quadratics and in federations."""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_process import SMALL, InProcessGrid, equal, federate, local
from laws import trainer
from numpy.typing import NDArray
from tiers import examples
from torch import nn

import client_app
import strategies
from client_app.store import ClientStore
from server_app.config import RunConfig
from strategies.algebra.tensors import Tensors
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment, State, Update
from strategies.scaffold import COMMON, OWN, ROUND
from task.config import TaskConfig
from task.models.base import Base
from task.models.model import TunedModel
from task.schema import ConfigError

Vector = NDArray[np.float64]
SCAFFOLD, FEDAVG = strategies.load("scaffold"), strategies.load("fedavg")
RATE, SIZE = 0.2, 3
SGD = {"strategy": "scaffold", "optimizer": "sgd", "learning-rate": 0.05, "local-steps": 2}


# ---------------------------------------------------------------------- quadratics


class Quadratic(nn.Module):
    """Loss 1/2 (w - b)^T H (w - b), whatever the rows."""

    def __init__(self, h: Vector, b: Vector) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(SIZE))
        self.h, self.b = torch.tensor(h, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        off = self.w - self.b
        return SimpleNamespace(loss=off @ self.h @ off / 2)


@dataclass
class Problem:
    """Nodes with a quadratic, rows and a number of local steps each."""

    h: list[Vector]
    b: list[Vector]
    rows: list[int]
    steps: list[int]

    @classmethod
    def drawn(cls, seed: int, nodes: int, steps: int | None = None) -> "Problem":
        numbers = np.random.default_rng(seed)
        roots = numbers.normal(size=(nodes, SIZE, SIZE))
        h = [root @ root.T / 4 + np.eye(SIZE) / 2 for root in roots]
        counts = numbers.integers(1, 8, nodes) if steps is None else [steps] * nodes
        return cls(h, list(numbers.normal(size=(nodes, SIZE)) * 2), [*numbers.integers(1, 9, nodes)], [*counts])

    def shares(self, known: Collection[int]) -> Vector:
        """p_i of all nodes; those that are not known yet count as the mean of those that are."""
        everybody = sum(self.rows[i] for i in known) * len(self.rows) / len(known)
        return np.array(self.rows) / everybody

    @property
    def optimum(self) -> Vector:
        weighted = [p * h for p, h in zip(self.rows, self.h, strict=True)]
        return np.linalg.solve(sum(weighted), sum(w @ b for w, b in zip(weighted, self.b, strict=True)))


@dataclass
class Reference:
    """Algorithm 1, option II, with rows as weights: c is the mean of the c_i, and not updated by what is sent."""

    problem: Problem
    x: Vector = field(default_factory=lambda: np.zeros(SIZE))
    c: Vector = field(default_factory=lambda: np.zeros(SIZE))
    own: dict[int, Vector] = field(default_factory=dict)

    def round(self, cohort: list[int]) -> None:
        problem, moves = self.problem, []
        for i in cohort:
            before, y = self.own.get(i, np.zeros(SIZE)), self.x.copy()
            for _ in range(problem.steps[i]):
                y = y - RATE * (problem.h[i] @ (y - problem.b[i]) - before + self.c)
            self.own[i] = before - self.c + (self.x - y) / (problem.steps[i] * RATE)
            moves.append(y - self.x)
        shares = problem.shares(self.own)
        self.x = self.x + shares[cohort] @ np.array(moves) / shares[cohort].sum()
        self.c = sum((shares[i] * own for i, own in self.own.items()), np.zeros(SIZE))


@dataclass
class Run:
    """The same by the strategy: start, install, restore, train, combine, apply."""

    problem: Problem
    strategy: Strategy = SCAFFOLD
    state: State = State({"w": torch.zeros(SIZE)})
    kept: dict[int, Tensors] = field(default_factory=dict)
    number: int = 0

    def round(self, cohort: list[int]) -> None:
        self.number += 1
        updates = [self.answer(i) for i in cohort]
        assert [self.strategy.refusal(self.state, update) for update in updates] == [""] * len(updates)
        combined = self.strategy.combine(self.state.without_server(), iter(updates))
        self.state = self.strategy.apply(self.state, combined, self.number)

    def answer(self, i: int) -> Update:
        problem, assignment = self.problem, Assignment(self.number, 99, 0, 0, nodes=len(self.problem.rows))
        module = Quadratic(problem.h[i], problem.b[i])
        model = TunedModel(module, Base("toy", Path("toy"), "toy"), TaskConfig(), trained={"w": module.w})
        self.strategy.install(model, self.strategy.start_of(self.state, assignment))
        self.strategy.restore(model, self.kept.get(i, {}))
        node = trainer(optimizer="sgd", learning_rate=RATE, local_steps=problem.steps[i])
        delta, metrics = self.strategy.train(model, node, assignment)
        self.kept[i] = {name: tensor.clone() for name, tensor in self.strategy.private(model).items()}
        return Update(str(i), assignment, delta, float(problem.rows[i]), metrics)

    @property
    def x(self) -> Vector:
        return self.state.tensors["w"].double().numpy()

    @property
    def c(self) -> Vector:
        return self.state.server[f"{COMMON}w"].double().numpy() / RATE

    @property
    def mean(self) -> Vector:
        """sum_i p_i c_i over all nodes."""
        own = {i: kept[f"{OWN}w"].double().numpy() / RATE for i, kept in self.kept.items()}
        return sum((p * own[i] for i, p in enumerate(self.problem.shares(own)) if i in own), np.zeros(SIZE))


def cohorts(seed: int, nodes: int, most: int, rounds: int) -> list[list[int]]:
    numbers = np.random.default_rng(seed)
    return [[*map(int, numbers.choice(nodes, most, replace=False))] for _ in range(rounds)]


@examples(10)
@given(st.integers(0, 2**20), st.integers(1, 6), st.data())
def test_rounds_are_the_papers(seed: int, nodes: int, data: st.DataObject) -> None:
    problem = Problem.drawn(seed, nodes)
    ours, papers = Run(problem), Reference(problem)
    for cohort in cohorts(seed, nodes, data.draw(st.integers(1, nodes)), 6):
        ours.round(cohort)
        papers.round(cohort)
        np.testing.assert_allclose(ours.x, papers.x, rtol=0, atol=1e-4)
        np.testing.assert_allclose(ours.c, papers.c, rtol=0, atol=1e-4)
        np.testing.assert_allclose(ours.c, ours.mean, rtol=0, atol=1e-4)


def test_round_one_is_fedavg_bit_for_bit() -> None:
    problem = Problem.drawn(1, 4)
    ours, averaged = Run(problem), Run(problem, FEDAVG)
    for run in (ours, averaged):
        run.round([0, 2, 3])
    assert equal(ours.state.tensors, averaged.state.tensors)


@pytest.mark.slow
def test_it_finds_the_optimum_of_all_nodes_from_half_cohorts_where_fedavg_is_biased() -> None:
    problem = Problem.drawn(2, 6, steps=4)
    off = {}
    for strategy in (SCAFFOLD, FEDAVG):
        run = Run(problem, strategy)
        for cohort in cohorts(0, 6, 3, 60):
            run.round(cohort)
        off[strategy.name] = float(np.linalg.norm(run.x - problem.optimum))
    assert off["scaffold"] < 1e-3
    assert off["fedavg"] > 0.1


# ---------------------------------------------------------------------- controls that are lost


def lost(run: Run, caplog: pytest.LogCaptureFixture) -> bool:
    said = "all controls start anew" in caplog.text
    caplog.clear()
    return said


def consistent(run: Run) -> None:
    np.testing.assert_allclose(run.c, run.mean, rtol=0, atol=1e-4)


def test_an_emptied_store_starts_all_controls_anew(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(Problem.drawn(3, 3, steps=5))
    for _ in range(3):
        run.round([0, 1, 2])
    assert not lost(run, caplog)
    del run.kept[1]
    run.round([0, 1])
    assert lost(run, caplog)
    assert not run.c.any()
    for cohort in ([2], [0, 1, 2], [1]):  # what nodes kept of the time before does not count
        run.round(cohort)
        assert not lost(run, caplog)
    assert run.c.any()
    consistent(run)


def test_so_does_an_answer_that_did_not_count(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(Problem.drawn(4, 3, steps=5))
    run.round([0, 1, 2])
    run.number += 1
    run.answer(2)  # trained, and dropped
    run.round([0, 1])
    assert not lost(run, caplog)
    run.round([0, 2])
    assert lost(run, caplog)
    run.round([0, 1, 2])
    assert not lost(run, caplog)
    consistent(run)


@pytest.mark.slow
def test_the_optimum_is_found_after_a_loss_too() -> None:
    problem = Problem.drawn(2, 6, steps=4)
    run = Run(problem)
    for number, cohort in enumerate(cohorts(0, 6, 3, 60)):
        if number == 10:
            run.kept.pop(cohort[0])
        run.round(cohort)
    assert np.linalg.norm(run.x - problem.optimum) < 1e-3


# ---------------------------------------------------------------------- federations


def controls(grid: InProcessGrid, round: int) -> dict[int, Tensors]:
    """What every node keeps after a round, by partition."""
    newest = {exchange.partition: exchange for exchange in grid.of("train")}
    return {p: ClientStore(local(grid, e), round, after=True).client_state()["private"] for p, e in newest.items()}


@pytest.mark.slow
def test_in_a_run_c_is_the_mean_of_what_nodes_keep(tmp_path: Path) -> None:
    outcome = federate(tmp_path, SGD | {"num-server-rounds": 3, "fraction-train": 0.7})
    kept = controls(outcome.grid, 3)
    assert len(kept) == 3
    rows = {line["node"]: line["metrics"]["num-examples"] for entry in outcome.rounds[1:] for line in entry["nodes"]}
    everyone = SMALL["data.train-rows"]
    assert sum(rows.values()) == everyone
    server = outcome.state().server
    names = [name for name in server if name.startswith(COMMON)]
    assert {COMMON + name for name in outcome.state().tensors} == set(names)
    for name in names:
        own = name.replace(COMMON, OWN)
        mean = sum(rows[str(p)] / everyone * tensors[own].double() for p, tensors in kept.items())
        torch.testing.assert_close(server[name].double(), mean, rtol=0.0, atol=1e-6)
    assert all(int(tensors[ROUND]) > 0 for tensors in kept.values())


@pytest.mark.slow
def test_a_run_whose_node_loses_its_store_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grid = InProcessGrid(client_app.app, 3)

    def forget(partition: int, kind: str, reply: object) -> object:
        if partition == 1 and kind == "train" and len(grid.of("train")) == 4:  # its second answer
            own = ClientStore(local(grid, grid.of("train")[1]), 2)._own
            for file in own.glob("*.safetensors"):
                file.unlink()
        return reply

    grid.spoil = forget  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING, "flwr"):
        outcome = federate(tmp_path, SGD | {"num-server-rounds": 4}, grid)
    assert outcome.summary["status"] == "completed"
    assert caplog.text.count("round 3: 1 nodes trained with another control") == 1
    assert "round 4: 1 nodes trained" not in caplog.text


@pytest.mark.slow
def test_a_node_downloads_the_control_and_uploads_the_update_alone(tmp_path: Path) -> None:
    outcome = federate(tmp_path, SGD | {"num-server-rounds": 2})
    first, second = (outcome.rounds[number] for number in (1, 2))
    assert second["bytes_down"] > 1.8 * first["bytes_down"]
    assert second["bytes_up"] < 1.01 * first["bytes_up"]


# ---------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("flat", "said"),
    [
        ({"optimizer": "adamw"}, "set optimizer = 'sgd', without momentum"),
        ({"momentum": 0.9}, "set optimizer = 'sgd', without momentum"),
        ({"max-grad-norm": 1.0}, "or max-grad-norm"),
        ({"learning-rate-min": 0.001}, "set learning-rate-min = 0"),
        ({"warmup-rounds": 1}, "set warmup-rounds = 0"),
        ({"wrappers": "half"}, "wrapper 'half' changes them: leave it out"),
        ({"wrappers": "median"}, "strategy = 'scaffold'"),
    ],
)
def test_what_controls_cannot_follow_is_refused(flat: dict[str, object], said: str) -> None:
    RunConfig.read(SGD)
    with pytest.raises(ConfigError, match=said):
        RunConfig.read(SGD | flat)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"kept-round": 0}, "metric 'steps' is None; a policy with reports.rows = 'rounded' hides it"),
        ({"steps": 0, "kept-round": 0}, "metric 'steps' is 0"),
        ({"steps": 3}, "metric 'kept-round' is None"),
        ({"steps": 3, "kept-round": 2}, "metric 'kept-round' is 2, and not an earlier round"),
    ],
)
def test_an_answer_without_its_steps_or_round_is_refused(metrics: dict[str, int], said: str) -> None:
    state, assignment = State({"w": torch.zeros(SIZE)}), Assignment(2, 3, 0, 0)
    assert said in SCAFFOLD.refusal(state, Update("0", assignment, {"w": torch.ones(SIZE)}, 3.0, metrics))
