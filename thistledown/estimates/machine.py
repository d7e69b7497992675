"""What this machine leaves a simulation, and how the run divides it: cores, memory, nodes at a time, GPUs."""

import os
from collections.abc import Iterator

import psutil
import torch

from server_app.config import RunConfig
from server_app.results.amounts import counted, human
from strategies.exchange import cohort
from task.container import memory_left
from task.device import cores, found, kind


def machine(run: RunConfig) -> Iterator[str]:
    """Yield a line on what this process may use, one on how simulated nodes divide it, and notices about what is
    idle."""
    yield f"machine   {_cores()}, {_memory()}, {_gpus() or 'no GPU that torch can use'}"
    if run.task.data.partitioner.own_rows:
        return
    count, why = at_once(run)
    threads = f"{counted(run.task.threads, 'thread')} each (threads)"
    yield f"plan      {counted(count, 'node')} at a time ({why}), {threads}, on {run.task.device}"
    yield from _idle(run)


def at_once(run: RunConfig) -> tuple[int, str]:
    """Return how many nodes `thistledown run` has at work at a time, and what limits them."""
    server, simulation = run.server, run.server.simulation
    drawn = cohort.size(simulation.num_supernodes, server.fraction_train, server.min_train_nodes)
    limits = {
        f"{counted(cores(), 'core')}, simulation.num-cpus = {simulation.num_cpus}": cores() // simulation.num_cpus,
        f"{counted(drawn, 'node')} a round": drawn,
    }
    if simulation.num_gpus:
        share = f"{counted(_count(), 'GPU')}, simulation.num-gpus = {simulation.num_gpus:g}"
        limits[share] = int(_count() / simulation.num_gpus)
    why = min(limits, key=lambda limit: limits[limit])
    return max(1, limits[why]), why


def _cores() -> str:
    there, ours = os.cpu_count() or 1, cores()
    return counted(ours, "core") + (f" of {there} (affinity or the container's quota)" if ours < there else "")


def _memory() -> str:
    left, free = memory_left(), psutil.virtual_memory().available
    if left is not None and left < free:
        return f"{human(left)} of memory (what the container's limit leaves)"
    return f"{human(free)} of memory"


def _count() -> int:
    return int(torch.cuda.device_count() or torch.xpu.device_count())


def _gpus() -> str:
    if torch.backends.mps.is_available():
        return "the GPU of this Mac"
    return counted(_count(), "GPU") if _count() else ""


def _idle(run: RunConfig) -> Iterator[str]:
    """Yield a notice if a GPU, or half of the cores, would do nothing, or if nodes share a GPU without a limit."""
    simulation = run.server.simulation
    if _count() and kind(found(run.task.device)) == "cpu":
        yield f"notice    {counted(_count(), 'GPU')} of this machine will be idle: device = '{run.task.device}'"
    elif _count() and not simulation.num_gpus:
        share = "set the share of a GPU that a node needs, or 1"
        yield f"notice    simulation.num-gpus = 0 does not limit how many nodes use the same GPU at a time; {share}"
    busy = at_once(run)[0] * run.task.threads
    if 2 * busy <= cores():
        yield f"notice    {cores() - busy} of {cores()} cores will be idle while nodes train; see threads"
