"""The `thistledown` command: what it merges, what it shows of a log, and real runs through real Flower."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from task.device import cores
from task.schema import ConfigError
from thistledown.commands import run
from thistledown.main import FAILED, main
from thistledown.processes.client import SuperLinkError
from thistledown.processes.superlink import SuperLink
from thistledown.settings import Settings, app_folder, merged, pairs, preset_path
from thistledown.summary import summary_lines

APP = Path(__file__).parent.parent
COMMAND = str(Path(sys.executable).parent / "thistledown")
ALONE = f"simulation.num-cpus={cores()}"  # one process for all nodes: a second takes 10 s to start
PRESETS = sorted((APP / "presets").glob("*.toml"))


# ------------------------------------------------------------------------------------------------ merging
def test_defaults_then_preset_then_overrides(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("seed = 1\nbatch-size = 4\nlora.ranks = [2, 4]\n[data]\nalpha = 1\n")
    values = merged(APP, "mine.toml", ["seed=2 data.labels=['a','b']", "seed=3"], tmp_path)
    assert values["seed"] == 3
    assert values["batch-size"] == 4
    assert values["lora.ranks"] == "2,4"
    assert values["data.alpha"] == 1
    assert values["data.labels"] == "a|b"
    assert values["strategy"] == "fedavg"


def test_overrides_are_toml_values_with_spaces_between() -> None:
    found = pairs(["a=1 b=0.5  c=true", """d='two words' e="it's" f.g=[1, 2]"""])
    assert found == {"a": 1, "b": 0.5, "c": True, "d": "two words", "e": "it's", "f.g": [1, 2]}


def test_preset_by_name_or_path(tmp_path: Path) -> None:
    assert preset_path(APP, "mixed-ranks", tmp_path) == APP / "presets" / "mixed-ranks.toml"
    own = tmp_path / "mixed-ranks"
    own.write_text("")
    assert preset_path(APP, "mixed-ranks", tmp_path) == own
    assert preset_path(APP, str(own), APP) == own


def test_relative_paths_are_found_here_or_next_to_the_preset(tmp_path: Path) -> None:
    here, beside = tmp_path / "here", tmp_path / "beside"
    for folder in (here, beside):
        folder.mkdir()
    (here / "rows.csv").touch()
    (beside / "model").mkdir()
    (here / "digits").touch()  # the word for the embedded data goes first
    (beside / "mine.toml").write_text("model.name = 'model'\ndata.name = 'owner/rows'\n")
    values = merged(APP, str(beside / "mine.toml"), [], here)
    assert values["model.name"] == str(beside / "model")
    assert values["data.name"] == "owner/rows"
    assert merged(APP, None, ["data.name='rows.csv'"], here)["data.name"] == str(here / "rows.csv")
    assert merged(APP, None, ["data.name='digits'"], here)["data.name"] == "digits"


def test_results_go_where_the_command_is_given(tmp_path: Path) -> None:
    assert Settings.read(APP, None, [], tmp_path).config.server.output_dir == str(tmp_path / "outputs")
    own = Settings.read(APP, None, ["output-dir='/somewhere'"], tmp_path)
    assert own.config.server.output_dir == "/somewhere"


def test_options_of_another_strategy_are_idle(tmp_path: Path) -> None:
    assert Settings.read(APP, None, ["fedprox.mu=0.5"], tmp_path).idle == ("fedprox.mu",)
    assert Settings.read(APP, None, ["fedprox.mu=0.5 strategy='fedprox'"], tmp_path).idle == ()


def test_app_is_the_clone_that_was_installed() -> None:
    assert app_folder(None) == APP
    with pytest.raises(ConfigError, match="is not a Flower app"):
        app_folder(APP / "tests")


@pytest.mark.parametrize("preset", PRESETS, ids=[preset.stem for preset in PRESETS])
def test_preset_is_valid_and_opens_with_its_command(preset: Path, tmp_path: Path) -> None:
    assert preset.read_text().startswith(f"# thistledown run {preset.stem}\n#\n# ")
    assert Settings.read(APP, preset.stem, [], tmp_path).idle == ()


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'flwr', 'transformers'} & set(sys.modules)"
    code = f"import sys, thistledown.main; sys.exit(len({heavy}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ------------------------------------------------------------------------------------------------ the end of a run
SUMMARY = {
    "metric": "accuracy", "metric-source": "server: test part", "base": 0.118, "final": 0.8412, "best": 0.85,
    "best-round": 13, "best-chosen-by": 0.86, "rounds": 15, "failed-rounds": 1, "ranks": {"0": 8, "1": 8},
    "bytes_up": 17_800_000,
    "bytes_down": 17_900_000, "bytes_base": 554_497, "seconds": 61.4, "folder": "/out/run",
}  # fmt: skip


def test_summary_for_people() -> None:
    assert summary_lines(SUMMARY) == [
        "",
        "accuracy on the test part: 0.118 before, 0.841 at the end",
        "round 13 is the best, with the highest accuracy on the validation part (0.860); on the test part it has 0.850",
        "1 round failed and changed nothing; metrics.jsonl says why",
        "15 rounds over 2 nodes in 61 s: 17.8 MB up, 17.9 MB down, and the base once: 554.5 kB",
        "results in /out/run",
    ]


def test_summary_of_a_run_that_nobody_scored() -> None:
    lines = summary_lines(SUMMARY | {"base": None, "final": None, "best": None, "bytes_base": 0})
    assert lines[1] == "accuracy was not measured"
    assert lines[3].endswith("17.9 MB down")


# ------------------------------------------------------------------------------------------------ real Flower
@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short temporary folder for the command: sockets live in it."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def command(temporary: Path, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    """`thistledown` at work in `temporary`, with its temporary files in there too, and these environment variables."""
    (temporary / "t").mkdir()
    return subprocess.Popen(
        [COMMAND, *arguments],
        cwd=temporary,
        env=os.environ | variables | {"TMPDIR": str(temporary / "t")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_nothing_is_left(temporary: Path) -> None:
    assert not list((temporary / "t").iterdir())
    for process in psutil.process_iter():
        try:
            assert not Path(process.cwd()).is_relative_to(temporary / "t"), process
        except (psutil.Error, OSError):
            continue


HOSTILE = {  # what other programs, or many CI services, have in an environment
    "FORCE_COLOR": "1", "ALL_PROXY": "socks5://127.0.0.1:9", "HTTPS_PROXY": "127.0.0.1:9", "XDG_CACHE_HOME": "cache",
    "PYTHONPATH": "theirs", "PYTHONSTARTUP": "/nowhere", "FLWR_HOME": "/nowhere", "FLWR_LOG_LEVEL": "ERROR",
    "RAY_ADDRESS": "192.0.2.1:6379",
}  # fmt: skip


@pytest.mark.smoke
@pytest.mark.flower
def test_run_leaves_results_and_nothing_else(temporary: Path) -> None:
    (temporary / "theirs" / "task").mkdir(parents=True)
    (temporary / "theirs" / "task" / "__init__.py").write_text("raise SystemExit('this is another task')")
    options = f"num-server-rounds=1 simulation.num-supernodes=2 {ALONE} local-epochs=1 strategy=fedavg"
    process = command(temporary, "run", "-c", options, **HOSTILE)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.startswith("checking the configuration\n")
    assert "\nround 1/1  accuracy " in output
    latest = temporary / "outputs" / "latest"
    assert latest.is_symlink()
    folder = latest.resolve()
    assert output.endswith(f"results in {folder}\n")
    assert "\x1b" not in output
    assert "Traceback" not in output
    there = {
        "config.toml",
        "metrics.jsonl",
        "summary.json",
        "run.log",
        "report.html",
        "model",
        "checkpoints",
        "split.json",
    }
    assert {path.name for path in folder.iterdir()} == there
    assert {path.name for path in (temporary / "outputs").iterdir()} == {"latest", folder.name}
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"
    assert tomllib.loads((folder / "config.toml").read_text())["num-server-rounds"] == 1
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert_nothing_is_left(temporary)


@pytest.mark.flower
def test_run_whose_nodes_all_fail_says_why(temporary: Path) -> None:
    divergent = f"optimizer='sgd' learning-rate=1e30 num-server-rounds=1 simulation.num-supernodes=2 {ALONE}"
    process = command(temporary, "run", "-c", divergent)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 3, output
    assert "warning: round 1: dropped the reply of node 0: " in output
    [cause] = [line for line in output.splitlines() if line.startswith("the run failed: ")]
    assert "0 of 2 replies were good" in cause
    log = temporary / "outputs" / "latest" / "run.log"
    assert output.endswith(f"the whole log is in {log.resolve()}\n")
    assert "dropped the reply of node 1" in log.read_text()
    assert_nothing_is_left(temporary)


@pytest.mark.flower
@pytest.mark.parametrize(
    ("line", "number", "code"),
    [("starting Flower's SuperLink", signal.SIGTERM, 143), ("round 0/", signal.SIGINT, 130)],
)
def test_interrupted_run_leaves_no_process(temporary: Path, line: str, number: int, code: int) -> None:
    process = command(temporary, "run", "-c", f"num-server-rounds=1000 simulation.num-supernodes=2 {ALONE}")
    assert process.stdout is not None
    for said in process.stdout:
        if said.startswith(line):
            break
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert_nothing_is_left(temporary)
    if line.startswith("round"):
        assert """resume it: thistledown run -c "resume='latest'\"""" in output
        folder = (temporary / "outputs" / "latest").resolve()
        assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
        assert (folder / "report.html").exists()


@pytest.mark.flower
def test_superlink_that_cannot_start_says_why(temporary: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        superlink = SuperLink()
        superlink.port = taken.getsockname()[1]
        with pytest.raises(SuperLinkError, match="address already in use"), superlink:
            raise AssertionError("it started on a port that is taken")
    assert not superlink.folder.exists()


@pytest.mark.flower
def test_a_run_that_does_not_begin_is_given_up(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (temporary / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "t"))
    monkeypatch.chdir(temporary)
    monkeypatch.setattr(run, "START", 0.5)  # less than the ServerApp takes for its imports
    assert main(["run", "-c", f"num-server-rounds=1 simulation.num-supernodes=2 {ALONE}"]) == FAILED
    said = capsys.readouterr()
    assert "Flower has not begun the run after 0.5 s" in said.err
    assert "thistledown run --engine local" in said.err
    assert_nothing_is_left(temporary)
