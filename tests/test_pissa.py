"""LoRA that starts as the base's largest singular values (FeDeRA, PiSSA): the equations, the journal, the folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import exported
from in_process import QV, InProcessGrid, Outcome, federate, sent

import client_app
import strategies
from server_app.config import RunConfig
from strategies.algebra.lowrank import pair
from strategies.exchange.compatibility import problems
from strategies.exchange.replay import replay_start, start_entry
from strategies.exchange.types import RunFailed, State
from strategies.protocol import wire
from strategies.protocol.journal import held
from task.config import TaskConfig
from task.data.prepared import prepare
from task.models.model import TunedModel, build
from task.schema import ConfigError
from task.storage.store import server_store
from task.tunings.base import TuningError
from task.tunings.parts import principal

pytestmark = pytest.mark.about("lora")
PISSA = QV | {"lora.init": "pissa", "num-server-rounds": 2}
SCALING = 2.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return federate(tmp_path_factory.mktemp("pissa"), PISSA)


def started(outcome: Outcome) -> tuple[TunedModel, TunedModel]:
    """A model before and after its start."""
    before, after = (build(outcome.base, outcome.task, 8, "cpu") for _ in range(2))
    entry = start_entry(after)
    assert entry is not None
    replay_start(after, entry)
    return before, after


def logits(outcome: Outcome, module: Any) -> torch.Tensor:
    batch = prepare(outcome.task, outcome.base.folder, server_store()).test.batch(torch.arange(20), "cpu")
    with torch.no_grad():
        return torch.as_tensor(module.eval()(**batch).logits)


# ---------------------------------------------------------------------- the start


def test_the_start_is_the_papers_equations(run: Outcome) -> None:
    before, after = started(run)
    layers = before.linear_weights()
    assert len(layers) == 8
    for layer, weight in layers.items():
        w = weight.detach().double().numpy()
        u, s, vh = np.linalg.svd(w)
        b, a = (tensor.detach().double().numpy() for tensor in pair(after.trained, layer))
        best = (u[:, :8] * s[:8]) @ vh[:8]
        np.testing.assert_allclose(SCALING * b @ a, best, rtol=0, atol=1e-5)
        np.testing.assert_allclose(b.T @ b, np.diag(s[:8] / SCALING), rtol=0, atol=1e-5)
        np.testing.assert_allclose(a @ a.T, np.diag(s[:8] / SCALING), rtol=0, atol=1e-5)
        moved = after.frozen[f"{layer}.weight"].detach().double().numpy()
        np.testing.assert_allclose(moved, w - SCALING * b @ a, rtol=0, atol=1e-7)
        assert np.linalg.norm(moved - w) > 0.1 * np.linalg.norm(w)


def test_the_function_at_the_start_is_the_bases(run: Outcome) -> None:
    before, after = started(run)
    torch.testing.assert_close(logits(run, after.module), logits(run, before.module), rtol=0.0, atol=1e-4)
    assert run.rounds[0]["accuracy"] == federate_start(run)


def federate_start(run: Outcome) -> float:
    """The accuracy of the base by itself, on the same rows."""
    module = build(run.base, run.task, 8, "cpu").module
    rows = prepare(run.task, run.base.folder, server_store()).test
    batch = rows.batch(torch.arange(len(rows)), "cpu")
    with torch.no_grad():
        return float((module.eval()(**batch).logits.argmax(-1) == batch["labels"]).double().mean())


def test_a_large_matrix_is_decomposed_well_too(monkeypatch: pytest.MonkeyPatch) -> None:
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(70, 50, generator=source) @ torch.diag(0.8 ** torch.arange(50.0))
    u, s, vh = principal.principal(weight, 6)
    monkeypatch.setattr(principal, "WHOLE", 10)
    drawn = torch.get_rng_state()
    for left, values, right in (principal.principal(weight, 6), principal.principal(weight, 6)):
        torch.testing.assert_close(left * values @ right, u * s @ vh, rtol=0.0, atol=1e-6)
    assert torch.equal(drawn, torch.get_rng_state())


def test_a_rank_that_no_weight_has_is_refused(run: Outcome) -> None:
    smallest = min(min(weight.shape) for weight in started(run)[0].linear_weights().values())
    with pytest.raises(TuningError, match=f"set lora.ranks to at most {smallest}"):
        build(run.base, run.task, smallest + 1, "cpu")


# ---------------------------------------------------------------------- the journal


def test_the_start_travels_once(run: Outcome) -> None:
    shares = [wire.unpack(exchange.request) for exchange in run.grid.of("train")]
    assert [len(share.journal) for share in shares] == [1] * 3 + [0] * 3
    entry = shares[0].journal[0]
    assert (entry.round, len(entry.tensors)) == (0, 16)
    assert all(torch.equal(shares[0].tensors[name], tensor) for name, tensor in entry.tensors.items())
    state = run.state()
    assert [one.digest for one in state.journal] == [entry.digest]
    assert any(not torch.equal(state.tensors[name], tensor) for name, tensor in entry.tensors.items())


@pytest.mark.slow
def test_factors_that_do_not_travel_start_there_too(tmp_path: Path) -> None:
    outcome = federate(tmp_path, PISSA | {"strategy": "ffa-lora"})
    model = held(outcome.run.strategy, outcome.base, outcome.task, outcome.state())
    for name, tensor in outcome.state().journal[0].tensors.items():
        assert torch.equal(model.trained[name].detach(), tensor) == (".lora_A." in name)
    assert not any(".lora_A." in name for name in sent(outcome.grid.of("train")[0].request))


# ---------------------------------------------------------------------- the folder


def test_the_adapter_fits_the_base_as_it_was(run: Outcome) -> None:
    folder = run.folder / "model" / "last"
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (16, SCALING * 16)
    assert not (folder / "base").exists()
    trained = held(run.run.strategy, run.base, run.task, run.state()).module
    torch.testing.assert_close(logits(run, exported(run, "last")), logits(run, trained), rtol=0.0, atol=1e-4)
    plain = build(run.base, run.task, 8, "cpu").module
    assert float((logits(run, trained) - logits(run, plain)).abs().max()) > 1e-2


@pytest.mark.slow
def test_a_base_that_moves_on_is_in_the_folder(tmp_path: Path) -> None:
    outcome = federate(tmp_path, PISSA | {"strategy": "fedex-lora"})
    folder = outcome.folder / "model" / "last"
    assert (folder / "base").is_dir()
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8
    trained = held(outcome.run.strategy, outcome.base, outcome.task, outcome.state()).module
    assert torch.equal(logits(outcome, exported(outcome, "last")), logits(outcome, trained))


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", strategies.names())
def test_mixed_ranks_are_refused(name: str) -> None:
    strategy, config = strategies.load(name), TaskConfig.read({"lora.init": "pissa"})
    found = [problem for problem in problems(strategy, config) if "needs equal ranks" in problem]
    assert bool(found) == strategy.heterogeneous_ranks


def test_dora_keeps_its_own_start() -> None:
    with pytest.raises(ConfigError, match=r"lora\.init is for tuning = 'lora'"):
        RunConfig.read({"tuning": "dora", "lora.init": "pissa"})


def test_arrays_without_their_start_are_refused(run: Outcome) -> None:
    arrays = wire.to_arrays(State(run.state().tensors))
    grid = InProcessGrid(client_app.app, 3)
    with pytest.raises(RunFailed, match="initial_arrays lack what tuning = 'lora'"):
        run.run.strategy.start(grid, arrays, num_rounds=1, train_config=run.run.task)


@pytest.mark.slow
def test_a_node_of_a_smaller_rank_is_left_out(tmp_path: Path) -> None:
    """It came later, or has run out of memory."""
    outcome = federate(tmp_path, PISSA | {"num-server-rounds": 3}, grid=Later())
    assert [[node["node"] for node in line["nodes"]] for line in outcome.rounds[1:]] == [["0", "1"]] * 3
    assert outcome.state().rank == 8


class Later(InProcessGrid):
    """Partition 2 can train rank 2, and comes in round 2."""

    def __init__(self) -> None:
        super().__init__(client_app.app, 3, {2: {"rank": 2}})
        self.away = {2}

    def answer(self, message: Any, context: Any) -> Any:
        if message.metadata.message_type == "train":
            self.away = set()
        return super().answer(message, context)
