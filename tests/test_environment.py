"""What private processes get of the user's environment."""

import os
from pathlib import Path

import pytest

from thistledown.processes.environment import clean

FOREIGN = {
    "FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "PY_COLORS": "1", "TTY_COMPATIBLE": "1", "PYTHONSTARTUP": "start.py",
    "PYTHONWARNINGS": "error", "PYTHONHOME": "/nowhere", "FLWR_HOME": "/nowhere", "FLWR_LOG_LEVEL": "ERROR",
    "RAY_ADDRESS": "10.0.0.1:6379", "RAY_NAMESPACE": "theirs", "grpc_proxy": "http://proxy:1", "no_grpc_proxy": "",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://10.0.0.1:4318",
}  # fmt: skip
OTHERS = {
    "HF_TOKEN": "secret",
    "CUDA_VISIBLE_DEVICES": "1",
    "OMP_NUM_THREADS": "2",
    "RAY_memory_usage_threshold": ".98",
}
PROXIES = {
    "socks5://127.0.0.1:1080": "", "socks4://127.0.0.1:1080": "", "proxy:3128": "http://proxy:3128",
    "http://proxy:3128": "http://proxy:3128", "https://proxy": "https://proxy", "nonsense://proxy": "",
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_meant_for_other_programs_stays_behind(name: str) -> None:
    assert name not in clean({name: FOREIGN[name]})


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_user_sets_for_a_run_goes_along(name: str) -> None:
    assert clean(OTHERS)[name] == OTHERS[name]


@pytest.mark.parametrize("given", PROXIES)
@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "http_proxy"])
def test_proxies_that_no_client_could_use_are_left_out(name: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's client does not start with these, although it talks to this machine alone."""
    monkeypatch.setattr(
        "thistledown.processes.environment.find_spec", lambda name: None
    )  # as where socksio is not installed
    assert clean({name: given}).get(name, "") == PROXIES[given]


def test_this_machine_is_asked_without_a_proxy() -> None:
    assert clean({"NO_PROXY": "internal"})["NO_PROXY"] == "internal,127.0.0.1,localhost"
    assert clean({})["no_proxy"] == "127.0.0.1,localhost"


@pytest.mark.parametrize("name", ["XDG_CACHE_HOME", "HF_HOME", "THISTLEDOWN_CACHE", "SSL_CERT_FILE"])
def test_relative_folders_are_those_of_the_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Private processes work in another folder."""
    monkeypatch.chdir(tmp_path)
    assert clean({name: "some/place"})[name] == str(tmp_path / "some" / "place")
    assert clean({name: "/some/place"})[name] == "/some/place"


def test_packages_that_are_called_as_ours_are_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other folders on PYTHONPATH stay: machines of many users keep torch there."""
    (tmp_path / "mine" / "task").mkdir(parents=True)
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "strategies.py").touch()
    (tmp_path / "site").mkdir()
    monkeypatch.chdir(tmp_path)
    given = os.pathsep.join(["mine", str(tmp_path / "file"), "site", ""])
    assert clean({"PYTHONPATH": given})["PYTHONPATH"] == str(tmp_path / "site")
    assert "PYTHONPATH" not in clean({"PYTHONPATH": "mine"})


def test_nothing_is_coloured() -> None:
    found = clean({"FORCE_COLOR": "3", "TERM": "xterm-256color"})
    assert (found["NO_COLOR"], found["TERM"]) == ("1", "dumb")
