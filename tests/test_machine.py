"""What `thistledown check` and the start of a run say of the machine: cores, memory, nodes at a time, idle GPUs."""

import pytest

from server_app.config import RunConfig
from server_app.results.amounts import human
from thistledown.estimates import machine as said
from thistledown.estimates.machine import at_once, machine


def lines(monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int = 0, **options: object) -> list[str]:
    monkeypatch.setattr(said, "cores", lambda: cores)
    monkeypatch.setattr(said, "_count", lambda: gpus)
    monkeypatch.setattr(said, "found", lambda wanted: wanted if wanted != "auto" else ("cuda" if gpus else "cpu"))
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    return list(machine(RunConfig.read({key.replace("__", ".").replace("_", "-"): v for key, v in options.items()})))


def test_nodes_at_a_time_and_what_limits_them(monkeypatch: pytest.MonkeyPatch) -> None:
    first, plan, *_ = lines(monkeypatch, 8)
    assert first.startswith("machine   8 cores, ")
    assert first.endswith("no GPU that torch can use")
    assert plan.startswith("plan      8 nodes at a time (8 cores, simulation.num-cpus = 1), 1 thread each")
    assert lines(monkeypatch, 8, simulation__num_cpus=3)[1].startswith("plan      2 nodes at a time (8 cores, ")
    assert "3 nodes at a time (3 nodes a round)" in lines(monkeypatch, 8, simulation__num_supernodes=3)[1]
    assert at_once(RunConfig.read({"simulation.num-supernodes": 30, "fraction-train": 0.1})) == (3, "3 nodes a round")


def test_the_gpu_of_a_mac_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert lines(monkeypatch, 8)[0].endswith("the GPU of this Mac")


def test_as_many_nodes_as_a_round_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "7 nodes a round" in lines(monkeypatch, 64, simulation__num_supernodes=70, fraction_train=0.1)[1]
    least = {"simulation__num_supernodes": 70, "fraction_train": 0.1, "min_train_nodes": 9}
    assert "9 nodes a round" in lines(monkeypatch, 64, **least)[1]


def test_a_container_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(said, "memory_left", lambda: 10**6)
    first, *_ = lines(monkeypatch, 2)
    assert first.startswith("machine   2 cores of 8 (affinity or the container's quota), ")
    assert f"{human(10**6)} of memory (what the container's limit leaves)" in first


def test_what_is_idle_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(line.startswith("notice") for line in lines(monkeypatch, 2))
    cpu = lines(monkeypatch, 2, gpus=2, device="cpu")
    assert "notice    2 GPUs of this machine will be idle: device = 'cpu'" in cpu
    unlimited = lines(monkeypatch, 2, gpus=1, device="auto")
    assert unlimited[-1].startswith("notice    simulation.num-gpus = 0 does not limit how many nodes use the same GPU")
    shared = lines(monkeypatch, 8, gpus=1, device="auto", simulation__num_gpus=0.25)
    assert "4 nodes at a time (1 GPU, simulation.num-gpus = 0.25)" in shared[1]
    few = lines(monkeypatch, 8, simulation__num_supernodes=2)
    assert few[-1] == "notice    6 of 8 cores will be idle while nodes train; see threads"
    wide = lines(monkeypatch, 8, simulation__num_cpus=4)  # each node has one thread
    assert wide[-1] == "notice    6 of 8 cores will be idle while nodes train; see threads"


def test_nodes_with_rows_of_their_own_have_machines_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"data__partitioner": "none", "data__labels": "0|1", "evaluate": "nodes"}
    assert len(lines(monkeypatch, 2, **own)) == 1
