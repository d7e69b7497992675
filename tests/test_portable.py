"""Portable kernels: runs that end with the same bits whatever else a processor offers."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from task.arithmetic import PORTABLE, X86, environment_of, set_arithmetic
from task.config import TaskConfig
from task.schema import ConfigError

PORTABLY = TaskConfig.read({"portable": True, "device": "cpu"})
SMALL = "num-server-rounds=1 local-steps=2 simulation.num-supernodes=2 data.partitioner='iid'"
# What a lesser processor would let oneDNN, NumPy and the C library use.
OLDER = {
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX",
}
HERE = Path(__file__).parents[1]


def test_accelerators_are_refused() -> None:
    for device in ("auto", "cuda"):
        with pytest.raises(ConfigError, match=f"device = '{device}'; set device = 'cpu'"):
            TaskConfig.read({"portable": True, "device": device})
    with pytest.raises(ConfigError, match="this process computes on cuda:1"):
        set_arithmetic(PORTABLY, "cuda:1")  # as a node's own config may say


def test_a_process_that_was_started_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.mkldnn.enabled
    with pytest.raises(ConfigError, match="without ATEN_CPU_CAPABILITY=default and MKL_CBWR=COMPATIBLE in its"):
        set_arithmetic(PORTABLY, "cpu")
    for name, value in PORTABLE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")  # the variables came too late
    with pytest.raises(ConfigError, match="chosen its kernels for AVX512"):
        set_arithmetic(PORTABLY, "cpu")
    assert torch.backends.mkldnn.enabled == before


def test_other_runs_are_left_as_they_are() -> None:
    assert not environment_of(TaskConfig.read({}))
    before = torch.backends.mkldnn.enabled
    set_arithmetic(TaskConfig.read({}), "cuda")
    assert torch.backends.mkldnn.enabled == before


@pytest.mark.skipif(platform.machine() not in X86, reason="for x86-64 processors")
def test_a_run_after_a_portable_one_computes_as_if_it_were_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node's process may serve both."""
    before = torch.backends.mkldnn.enabled
    for name, value in PORTABLE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    try:
        set_arithmetic(PORTABLY, "cpu")
        assert not torch.backends.mkldnn.enabled
    finally:
        set_arithmetic(TaskConfig.read({}), "cpu")
    assert torch.backends.mkldnn.enabled == before


def model_of(folder: Path, command: list[str], options: str, environment: dict[str, str]) -> bytes:
    """The tuned weights of a run by a process with these variables, in a results folder of its own."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", *command, "-c", f"{SMALL} {options} output-dir='{folder}'"],
        cwd=HERE,
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=540,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "latest" / "model" / "last" / "adapter_model.safetensors").read_bytes()


on_x86 = pytest.mark.skipif(platform.machine() not in X86, reason="for x86-64 processors")
LOCAL = ["thistledown.main", "run", "--engine", "local"]
PORTABLE_RUN = "portable=true device='cpu'"


@pytest.mark.slow
@on_x86
def test_two_instruction_sets_end_with_the_same_bits(tmp_path: Path) -> None:
    newer = model_of(tmp_path / "newer", LOCAL, PORTABLE_RUN, PORTABLE)
    assert model_of(tmp_path / "older", LOCAL, PORTABLE_RUN, PORTABLE | OLDER) == newer


@pytest.mark.slow
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="there is one instruction set here")
def test_without_it_they_do_not(tmp_path: Path) -> None:
    newer = model_of(tmp_path / "newer", LOCAL, "device='cpu'", {})
    older = {"ATEN_CPU_CAPABILITY": "default", **OLDER}
    assert model_of(tmp_path / "older", LOCAL, "device='cpu'", older) != newer


@pytest.mark.slow
@pytest.mark.flower
@on_x86
def test_the_command_starts_its_processes_so(tmp_path: Path) -> None:
    by_command = model_of(tmp_path / "run", ["thistledown.main", "run"], PORTABLE_RUN, {"ATEN_CPU_CAPABILITY": "avx2"})
    assert by_command == model_of(tmp_path / "local", LOCAL, PORTABLE_RUN, PORTABLE)
