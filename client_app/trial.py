"""What a node can train, found by training a few steps at the smallest and at the largest candidate rank.

Bytes, on an accelerator with memory of its own: the most that torch has allocated there beyond the idle model
(measured), and the trained tensors. Elsewhere the larger of two numbers, as each is too small by itself:

- what training needs: the activations that autograd keeps for the backward pass (measured), and for every trained
  tensor itself, a gradient, the optimiser's moments and the update (computed);
- what the process has taken from the machine since its model was idle (measured). It keeps freed memory in pieces, and
  so takes more than it uses; but memory that it kept from before, perhaps from another node's trial, does not show.

A trial is plain local training of everything that the tuning trains. It does not see what a strategy adds; the share of
memory that the server leaves free is meant for it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import psutil
import torch

from client_app.device import OWN_MEMORY, free_memory, with_fewer_rows
from client_app.local import Local
from client_app.payment import check_uncovered
from client_app.permission import check_rows, check_trial
from client_app.training import trainer_of
from strategies.algebra.lowrank import rank_axis
from strategies.algebra.tensors import Tensors
from strategies.exchange.types import OutOfMemory
from strategies.protocol.instructions import strategy_of
from strategies.protocol.trial import Trial
from task.arithmetic import set_arithmetic
from task.config import TaskConfig
from task.device import kind
from task.models.model import TunedModel, tuned_model
from task.seeds import derive
from task.training.batches import steps_of
from task.training.chosen_precision import in_chosen_precision
from task.training.trainer import Trainer, steps_early

TIMED = 2  # steps, after one to warm up
COPIES = 3  # of all that trains: itself, a gradient, and the update that is sent


def run_trial(local: Local) -> Trial:
    """Run the trial of this node. As in a round, only trained tensors change in the process's model."""
    check_trial(local.policy)
    check_uncovered(local, "trial")
    set_arithmetic(local.config, local.device)
    rows, _ = local.rows()
    check_rows(local.policy, len(rows))
    steps = steps_of(local.config, local.policy.reports.counted(len(rows)))
    seed = derive(local.config.seed, "trial", local.name)
    strategy, at_once = strategy_of(local.instructions), local.config.rows_at_once

    def measured(ends: list[int], at_once: int) -> tuple[int, list[tuple[float, int]]]:
        fewer = local.holding(at_once)
        return _measured(fewer, trainer_of(fewer, strategy, rows, seed), ends)

    most = local.policy.max_rank
    candidates = [rank for rank in local.config.tuning.candidates() if not most or rank <= most]
    for largest in reversed(candidates):
        ends = sorted({candidates[0], largest})
        try:
            free, points = with_fewer_rows(local.device, local.key, at_once, partial(measured, ends))
        except OutOfMemory:
            continue
        seconds, sizes = zip(*points, strict=True)
        return Trial(tuple(ends), seconds, sizes, free, steps)
    return Trial((), (), (), free_memory(local.device), steps)


def _measured(local: Local, trainer: Trainer, ranks: list[int]) -> tuple[int, list[tuple[float, int]]]:
    """Return the bytes that are free on top of the idle model, which is built for the last of `ranks`, and a point for
    each rank."""
    model = tuned_model(local.base, local.config, ranks[-1], local.device)
    trainer = replace(trainer, config=in_chosen_precision(trainer.config, model, trainer.rows, local.store))
    free, resident = free_memory(local.device), _resident()
    return free, [_point(model, trainer, rank, resident) for rank in ranks]


def _point(model: TunedModel, trainer: Trainer, rank: int, resident: int) -> tuple[float, int]:
    """Return the seconds of a step at this rank, and the bytes that training takes on top of the idle model."""
    model.module.zero_grad(set_to_none=True)
    model.write(_zeros(model.trained, rank))
    counter = torch.get_device_module(kind(model.device)) if kind(model.device) in OWN_MEMORY else None
    if counter:
        idle = counter.memory_allocated(model.device)
        counter.reset_peak_memory_stats(model.device)
    kept = _activations(model, partial(_steps, trainer, model, 1))
    began = time.monotonic()
    _steps(trainer, model, TIMED)
    seconds = (time.monotonic() - began) / TIMED
    own = sum(tensor.nbytes for tensor in model.trained.values())
    if counter:
        return seconds, own + counter.max_memory_allocated(model.device) - idle
    return seconds, max(own * copies(trainer.config) + kept, _resident() - resident)


def _zeros(trained: Mapping[str, torch.Tensor], rank: int) -> Tensors:
    """Return factors of this rank, whatever rank an earlier message has left in the model."""
    zeros: Tensors = {}
    for name, tensor in trained.items():
        axis = rank_axis(name)
        if axis is not None:
            zeros[name] = tensor.new_zeros([rank if number == axis else n for number, n in enumerate(tensor.shape)])
    return zeros


def _steps(trainer: Trainer, model: TunedModel, count: int) -> None:
    replace(trainer, config=replace(trainer.config, local_steps=count)).fit(model)


def _activations(model: TunedModel, work: Callable[[], None]) -> int:
    """Return the bytes that autograd keeps during one step for its backward pass, without the model's own."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(kept.values())


def _resident() -> int:
    """Return the bytes of the machine's memory that this process has."""
    return int(psutil.Process().memory_info().rss)


def copies(config: TaskConfig) -> int:
    """Return how many tensors like each one that trains are in memory, with the moments that the optimiser keeps."""
    moments = int(config.momentum > 0) if config.optimizer == "sgd" else 2  # of small tensors also in 8 bits
    return COPIES - int(steps_early(config)) + moments
