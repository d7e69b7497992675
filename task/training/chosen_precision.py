"""What `precision = "auto"` stands for: bfloat16 on a device that multiplies in it itself, if steps are then faster.

A step is timed both ways with the model and rows of the run. The choice is kept in the store, so that all processes of
a machine, and a process that is started anew, compute alike.
"""

import json
import logging
import platform
import time
from dataclasses import replace

import torch

from task.config import TaskConfig
from task.data.rows import Rows
from task.device import kind, multiplies_bfloat16, random_state_kept
from task.kinds import registry as kinds
from task.models.model import TunedModel
from task.storage.store import Store, recipe_hash
from task.training.mixed_precision import autocast
from task.training.trainer import training_mode

LOG = logging.getLogger("flwr")
KIND, FILE = "precision", "choice.json"
WAYS = ("model", "bfloat16")
GAIN = 0.9  # of the time of a step in the model's own precision: what bfloat16 must stay below
TIMES = 3  # steps each way, in turn, after one to warm up


def in_chosen_precision(config: TaskConfig, model: TunedModel, rows: Rows, store: Store) -> TaskConfig:
    """Return the settings with the precision that `auto` stands for; all others as they are. Raises StoreError."""
    if config.precision != "auto":
        return config
    if not len(rows) or config.model.dtype != "float32" or not multiplies_bfloat16(model.device):
        return replace(config, precision="model")
    key = recipe_hash(
        [
            model.base.fingerprint,
            repr(config.shaping()),
            model.rank,
            config.rows_at_once,
            config.threads,
            _machine(model),
        ]
    )
    with store.made(KIND, key, f"steps on {model.device}") as folder:
        if folder is not None:
            plain, rounded = seconds(config, model, rows)
            found = WAYS[rounded < GAIN * plain]
            said = "precision = 'auto' is '%s' here: a step in bfloat16 takes %.2f of the time of one in float32"
            LOG.info(said, found, rounded / plain)
            (folder / FILE).write_text(json.dumps({"precision": found, "ratio": rounded / plain}))
    choice = json.loads((store.path(KIND, key) / FILE).read_text())
    return replace(config, precision=choice["precision"])


def seconds(config: TaskConfig, model: TunedModel, rows: Rows) -> tuple[float, float]:
    """Return the seconds of a forward and a backward pass in the model's own precision and in bfloat16, the least of
    several in turn. Nothing of the model changes."""
    batch = rows.batch(torch.arange(min(config.rows_at_once, len(rows))), model.device)
    best = dict.fromkeys(WAYS, float("inf"))
    training_mode(model.module, [])
    with random_state_kept(model.device):
        for time_number in range(1 + TIMES):
            for way in WAYS:
                began = time.perf_counter()
                with autocast(way, model.device):
                    loss = kinds.of(config).loss(model.module, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                _wait(model.device)
                if time_number:
                    best[way] = min(best[way], time.perf_counter() - began)
    model.module.zero_grad(set_to_none=True)
    return best["model"], best["bfloat16"]


def _wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    if kind(device) != "cpu":
        torch.get_device_module(kind(device)).synchronize()


def _machine(model: TunedModel) -> list[str]:
    """Return what steps are timed on."""
    device = model.device
    name = (
        platform.processor() if kind(device) == "cpu" else torch.get_device_module(kind(device)).get_device_name(device)
    )
    return [device, name, platform.node(), torch.__version__]
