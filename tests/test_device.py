"""Devices by their names."""

import os

import pytest
import torch

from task.device import DeviceError, cores, found, kind


def test_auto_takes_an_accelerator_where_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    if not (torch.xpu.is_available() or torch.backends.mps.is_available()):
        assert found("auto") == expected


def test_the_cpu_is_always_there():
    assert found("cpu") == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_named(name: str):
    with pytest.raises(DeviceError, match=f"device '{name}': torch finds none on this machine, but cpu"):
        found(name)


def test_the_kind_leaves_the_number_out():
    assert kind("cuda:1") == "cuda"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_cores_are_those_this_process_may_use():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
