"""A strategy is one file: put where strategies are looked for, it has a name, options and federations at once."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from in_process import Outcome, federate, retrained

import strategies
from server_app.config import RunConfig
from strategies.protocol import instructions, wire
from strategies.protocol.journal import held
from task.models.model import build
from task.schema import ConfigError

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
EXAMPLE = re.compile(r"```python\n(# strategies/(\w+)\.py\n.*?)```", re.DOTALL)


# ------------------------------------------------------------------------------- a name and options
@pytest.mark.usefixtures("toys")
def test_it_is_found_by_the_name_of_its_file() -> None:
    assert {"median", "signs"} <= set(strategies.names())
    assert strategies.load("median").name == "median"


@pytest.mark.usefixtures("toys")
def test_its_options_are_run_config_keys() -> None:
    assert "median.server-step" in strategies.option_keys()
    assert strategies.load("median", server_step=0.5) == strategies.load("median", **{"server-step": 0.5})
    run = RunConfig.read({"strategy": "median", "median.server-step": 0.5})
    assert run.strategy == strategies.load("median", server_step=0.5)
    assert run.flat["median.server-step"] == 0.5
    with pytest.raises(ConfigError, match=r"median\.server-step must be at least 0, not -1"):
        RunConfig.read({"strategy": "median", "median.server-step": -1.0})


@pytest.mark.usefixtures("toys")
def test_its_options_are_sent_in_the_instructions() -> None:
    run = RunConfig.read({"strategy": "median", "median.server-step": 0.5, "wrappers": "half"})
    assert instructions.strategy_of(instructions.write(run.task, run.strategy, "base")) == run.strategy


@pytest.mark.usefixtures("toys")
def test_its_tunings_are_checked() -> None:
    with pytest.raises(ConfigError, match="strategy = 'signs' needs tuning = 'bias' or 'full' or 'head', not 'lora'"):
        RunConfig.read({"strategy": "signs"})


# ------------------------------------------------------------------------------- a federation
@pytest.mark.first(1)
@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("tuning", ["lora", "bias"])
def test_a_strategy_of_tensors_federates(tmp_path: Path, tuning: str) -> None:
    options = {"strategy": "median", "tuning": tuning, "median.server-step": 0.5}
    outcome = federate(tmp_path, options)
    start = wire.unpack(outcome.grid.of("train")[0].request).tensors
    replies = [wire.unpack(exchange.reply).tensors for exchange in outcome.grid.of("train") if exchange.reply]
    assert len(replies) == 3
    for name, tensor in outcome.state().tensors.items():
        middle = torch.stack([reply[name] for reply in replies]).sort(dim=0).values[1]
        torch.testing.assert_close(tensor, start[name] + 0.5 * middle)


@pytest.fixture
def journal(tmp_path: Path, toys: None) -> Outcome:
    options = {"strategy": "signs", "tuning": "full", "num-server-rounds": 2, "local-steps": 2}
    return federate(tmp_path, options)


def test_a_journal_strategy_federates(journal: Outcome) -> None:
    state = journal.state()
    assert not state.tensors
    assert [entry.round for entry in state.journal] == [1, 2]
    for number, entry in enumerate(state.journal):
        replies = journal.grid.of("train")[3 * number : 3 * number + 3]
        steps = [float(wire.unpack(exchange.reply).tensors["step"]) for exchange in replies if exchange.reply]
        rows = [line["metrics"]["num-examples"] for line in journal.rounds[number + 1]["nodes"]]
        mean = sum(step * row for step, row in zip(steps, rows, strict=True)) / sum(rows)
        assert float(entry.tensors["step"]) == pytest.approx(mean)


def test_the_journal_is_the_model(journal: Outcome) -> None:
    """Base and journal give the model: nothing else is needed, and nothing else came in."""
    model = build(journal.base, journal.task, 0, "cpu")
    before = {name: tensor.detach().clone() for name, tensor in model.trained.items()}
    whole = held(journal.run.strategy, journal.base, journal.task, journal.state())
    steps = [abs(float(entry.tensors["step"])) for entry in journal.state().journal]
    for name, tensor in whole.trained.items():
        moved = (tensor.detach() - before[name]).abs().unique()
        assert moved.max() <= sum(steps) * 1.001 + 1e-6
        assert moved.min() >= abs(steps[0] - steps[1]) * 0.999 - 1e-6


def test_a_journal_moves_little(journal: Outcome) -> None:
    for entry in journal.rounds[1:]:
        assert entry["bytes_up"] < 3 * 1500
        assert entry["bytes_down"] < 3 * 2500


def test_every_node_of_a_journal_starts_from_the_base(journal: Outcome) -> None:
    """What a process did before for another node must not show in an update."""
    for exchange in journal.grid.of("train"):
        assert exchange.reply is not None
        again = retrained(journal, exchange)
        assert torch.equal(wire.unpack(exchange.reply).tensors["step"], again["step"])


def test_the_untrained_best_of_a_journal_is_the_base(tmp_path: Path, toys: None) -> None:
    """A round-0 state holds nothing; installing it must bring back the base."""
    options = {"strategy": "signs", "tuning": "full", "learning-rate": 0.5, "local-steps": 3}
    outcome = federate(tmp_path, options)
    trained = held(outcome.run.strategy, outcome.base, outcome.task, outcome.state())
    assert outcome.state().journal
    start = type(outcome.state())({})
    model = held(outcome.run.strategy, outcome.base, outcome.task, start)
    fresh = build(outcome.base, outcome.task, 0, "cpu")
    assert model.trained.keys() == trained.trained.keys()
    for name, tensor in fresh.trained.items():
        assert torch.equal(model.trained[name], tensor)


# ------------------------------------------------------------------------------- the guide
def test_the_example_of_the_guide_federates(tmp_path: Path, found: Callable[[Path], None]) -> None:
    if not CONTRIBUTING.exists():
        pytest.skip("there is no CONTRIBUTING.md yet")
    example = EXAMPLE.search(CONTRIBUTING.read_text())
    assert example is not None, (
        "CONTRIBUTING.md shows no strategy: a python block that opens with # strategies/<name>.py"
    )
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / f"{example[2]}.py").write_text(example[1])
    found(folder)
    outcome = federate(tmp_path, {"strategy": example[2].replace("_", "-")})
    assert outcome.summary["status"] == "completed"
    assert not any(line["refused"] for line in outcome.rounds[1]["nodes"])
