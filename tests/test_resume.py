"""What may be resumed, with which configuration, and what is said of the rest."""

import json
from pathlib import Path

import pytest
from flwr.app import Message
from fragile import ROUNDS, Fragile, Killed, assert_same_run, options, stopped
from in_process import InProcessGrid, federate, resumed

import client_app
from server_app.config import RunConfig
from server_app.resuming import given
from strategies.exchange.types import RunFailed
from strategies.protocol import checkpoint
from task.schema import ConfigError
from thistledown.commands.results.export import export
from thistledown.settings import Settings

APP = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("dead_servers_write_no_summary")


@pytest.mark.slow
def test_more_rounds_may_be_asked_of_a_run_that_is_over(tmp_path: Path) -> None:
    over = federate(tmp_path / "over", options("fedavg") | {"num-server-rounds": 2})
    with pytest.raises(ConfigError, match=r"nothing left to do: all 2 rounds of .* set num-server-rounds above 2"):
        resumed(over.folder)
    more = resumed(over.folder, {"num-server-rounds": ROUNDS})
    assert_same_run(more, federate(tmp_path / "whole", options("fedavg")))
    assert "num-server-rounds = 3" in (more.folder / "config.toml").read_text()
    assert "resume" not in (more.folder / "config.toml").read_text()


@pytest.mark.slow
def test_another_configuration_is_refused_key_by_key(tmp_path: Path) -> None:
    folder = stopped(tmp_path)
    changed = {"seed": 4, "learning-rate": 0.1, "strategy": "rbla", "device": "cpu", "round-timeout": 60.0}
    with pytest.raises(ConfigError) as raised:
        resumed(folder, changed)
    assert sorted(raised.value.problems) == [
        "learning-rate = 0.1, but the run to resume has 0.005",
        "seed = 4, but the run to resume has 0",
        "strategy = 'rbla', but the run to resume has 'fedavg'",
    ]
    with pytest.raises(
        ConfigError, match=r"num-server-rounds = 2, but the run to resume has 3; choose at least as many"
    ):
        resumed(folder, {"num-server-rounds": 2})
    assert resumed(folder, {"device": "cpu", "round-timeout": 60.0, "seed": 0}).summary["status"] == "completed"


def test_flower_fills_in_defaults_which_nobody_chose() -> None:
    config = Settings.read(APP, None, [], Path("/")).config.flat
    assert given(config | {"output-dir": ""}) == {}
    chosen = {"resume": "/r", "seed": 2, "lora.ranks": "8,4", "no-such-key": 0, "batch-size": "x"}
    assert given(config | {"output-dir": ""} | chosen) == chosen


def test_the_command_goes_on_with_the_runs_own_configuration(tmp_path: Path) -> None:
    """What is set on the command line counts as chosen, at its default too; paths are those of the current folder."""
    folder = stopped(tmp_path / "outputs", "rbla")

    def read(*overrides: str) -> RunConfig:
        return Settings.read(APP, None, list(overrides), tmp_path).config

    for word in ("latest", "outputs/latest", f"outputs/{folder.name}", str(folder)):
        found = read(f"resume='{word}' num-server-rounds=5")
        assert (found.server.resume, found.server.num_server_rounds) == (str(folder), 5)
        assert (found.strategy.name, found.task.tuning.budgets()) == ("rbla", (2, 4, 8))
        assert found.server.output_dir == str(tmp_path / "outputs")
    with pytest.raises(ConfigError, match=r"1 problem.*\n.*lora\.ranks = '8', but the run to resume has '2,4,8'"):
        read("resume='latest' lora.ranks='8'")
    with pytest.raises(ConfigError, match="num-server-rnds'; did you mean 'num-server-rounds'"):
        read("resume='latest' num-server-rnds=9")
    with pytest.raises(ConfigError, match="elsewhere is not a results folder"):
        read("resume='elsewhere'")
    with pytest.raises(ConfigError, match="resume must be text, not 3"):
        read("resume=3")


def test_what_is_no_results_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a results folder"):
        resumed(tmp_path)
    folder = stopped(tmp_path)
    (folder / "checkpoints" / checkpoint.LAST).write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"cannot resume: .*last\.safetensors is damaged"):
        resumed(folder)
    with pytest.raises(ConfigError, match="must be an absolute path"):
        resumed(Path("latest"))


def test_lost_lines_are_said(tmp_path: Path) -> None:
    folder = stopped(tmp_path)
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines()[0] + "\n")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl lacks rounds up to 1"):
        resumed(folder)


@pytest.mark.slow
def test_a_run_that_is_still_going_is_left_alone(tmp_path: Path) -> None:
    folder = stopped(tmp_path)

    class Busy(InProcessGrid):
        def get_node_ids(self) -> list[int]:
            with pytest.raises(ConfigError, match="another process is at work in"):
                resumed(folder)
            raise Killed

    with pytest.raises(Killed):
        resumed(folder, None, Busy(client_app.app, 3))
    assert resumed(folder).summary["status"] == "completed"


@pytest.mark.slow
def test_a_run_that_failed_may_fail_as_often_again(tmp_path: Path) -> None:
    def bad(partition: int, kind: str, reply: Message) -> Message:
        if kind == "train":
            raise ValueError("no luck")
        return reply

    run = options("fedavg") | {"num-server-rounds": 6, "max-failed-rounds": 2}
    with pytest.raises(RunFailed, match="2 failed rounds in a row"):
        federate(tmp_path, run, spoil=bad)
    folder = (tmp_path / "latest").resolve()
    with pytest.raises(RunFailed, match="2 failed rounds in a row"):
        resumed(folder, None, InProcessGrid(client_app.app, 3, spoil=bad))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [bool(line["failed"]) for line in lines] == [False, True, True, True, True]
    assert resumed(folder).summary["failed-rounds"] == 4


@pytest.mark.slow
def test_what_is_spent_of_a_budget_is_kept(tmp_path: Path) -> None:
    """Noise is drawn anew, but the account goes on: as without the kill, and it ends the run where the budget ends."""
    private = {"wrappers": "central-privacy", "central-privacy.noise": 2.0, "central-privacy.epsilon": 8.0}
    run = options("fedavg") | private | {"fraction-train": 0.7, "num-server-rounds": 50}
    plain = federate(tmp_path / "whole", run)
    spent = [line["epsilon"] for line in plain.rounds if "epsilon" in line]
    assert 2 < len(spent) < 50
    with pytest.raises(Killed):
        federate(tmp_path, run, grid=Fragile(trained=4))
    outcome = resumed((tmp_path / "latest").resolve())
    assert [line["epsilon"] for line in outcome.rounds if "epsilon" in line] == spent
    assert outcome.summary["stopped"] == plain.summary["stopped"]
    with pytest.raises(RunFailed, match=r"nothing left to do: central-privacy.epsilon = 8 is spent"):
        resumed((tmp_path / "latest").resolve())


@pytest.mark.slow
def test_an_edited_configuration_is_named_key_by_key(tmp_path: Path) -> None:
    """A rate times 100 resumed in silence."""
    folder = stopped(tmp_path)
    path = folder / "config.toml"
    before = path.read_text()
    path.write_text(before.replace("learning-rate = 0.005", "learning-rate = 0.5").replace("seed = 0", "seed = 1"))
    with pytest.raises(ConfigError) as raised:
        resumed(folder)
    assert sorted(raised.value.problems) == [
        f"{path}: {key}, but the run was started with {then}; restore that value or start a new run"
        for key, then in (("learning-rate = 0.5", 0.005), ("seed = 1", 0))
    ]
    with pytest.raises(ConfigError, match="restore that value"):
        export(folder, "last", None, print)
    path.write_text(before.replace("round-timeout = 3600.0", "round-timeout = 60.0"))
    assert resumed(folder).summary["status"] == "completed"  # these are free


@pytest.mark.slow
def test_damaged_settings_are_refused_and_those_of_an_earlier_version_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = stopped(tmp_path)
    kept = folder / "checkpoints" / "settings.json"
    kept.write_text(kept.read_text().replace("0.005", "0.006"))
    with pytest.raises(ConfigError, match=r"settings\.json is damaged"):
        resumed(folder)
    kept.unlink()
    assert resumed(folder).summary["status"] == "completed"
    assert "cannot be verified" in caplog.text
