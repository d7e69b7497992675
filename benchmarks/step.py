"""Where the time of a local step of a small model goes, and what other ways of making it would save.

The embedded base, LoRA of rank 8, a batch of 16 digits, one thread. Ways are made in turn, and the least processor time
of many steps counts. Prints one JSON line: milliseconds of a step, the shares of its parts, and for every other way its
time over that of the trainer's own, and whether it leaves the same bits.

    .venv/bin/python -m benchmarks.step [--times 200]
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch.nn.functional import linear
from torch.optim import AdamW, Optimizer

from benchmarks.fastest import fastest
from task.data.prepared import prepare
from task.device import cores
from task.kinds import registry as kinds
from task.models.finding import server_base
from task.models.model import TunedModel, build
from task.storage.store import server_store
from thistledown.settings import Settings

ROOT = Path(__file__).parent.parent
RANK, RATE = 8, 0.005


@dataclass(frozen=True)
class Step:
    """A model, one batch and an optimizer: the parts of a step, to be timed."""

    model: TunedModel
    batch: dict[str, Any]
    optimizer: Optimizer

    @classmethod
    def made(cls, optimizer: Callable[..., Optimizer], bare: bool = False) -> "Step":
        """Return a step of a new model; in a `bare` one, layers with adapters are three plain products."""
        config, store = Settings.read(ROOT, None, [], ROOT).config.task, server_store()
        base = server_base(config.model, store)
        parts = prepare(config, base.folder, store)
        model = build(base, replace(config, data=replace(config.data, labels=parts.labels)), RANK, "cpu")
        model.module.train()
        for layer in model.module.modules() if bare else ():
            if isinstance(layer, Linear):
                layer.forward = partial(products, layer)
        return cls(model, parts.train.batch(range(config.batch_size)), optimizer(model.trained.values(), lr=RATE))

    def forward(self) -> torch.Tensor:
        """Return the loss of the batch."""
        return kinds.of(self.model.config).loss(self.model.module, self.batch)

    def backward(self) -> None:
        """Compute the gradients of the batch."""
        self.optimizer.zero_grad(set_to_none=True)
        self.forward().backward()  # type: ignore[no-untyped-call]

    def __call__(self) -> None:
        self.backward()
        self.optimizer.step()


def products(layer: Linear, inputs: torch.Tensor) -> torch.Tensor:
    """Return what a linear layer with an adapter does, without modules around its products."""
    base = layer.base_layer
    down, up = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
    return linear(inputs, base.weight, base.bias) + linear(linear(inputs, down), up) * layer.scaling["default"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200)
    times = parser.parse_args().times
    torch.set_num_threads(1)
    fused = partial(AdamW, fused=True)
    own = Step.made(fused)
    others = {
        "adamw foreach": Step.made(partial(AdamW, foreach=True)),
        "adamw tensor by tensor": Step.made(partial(AdamW, foreach=False)),
        "layers without peft's modules": Step.made(fused, bare=True),
    }
    whole, *seconds = fastest(own, *others.values(), times=times, clock=time.process_time)
    ways = {
        name: {"ratio": round(one / whole, 2), "same_bits": same(own.model, step.model)}
        for (name, step), one in zip(others.items(), seconds, strict=True)
    }
    found = fastest(own.forward, own.backward, own.optimizer.step, times=times, clock=time.process_time)
    parts = {"forward": found[0], "backward": found[1] - found[0], "optimizer": found[2]}
    shares = {name: round(part / sum(parts.values()), 2) for name, part in parts.items()}
    print(json.dumps({"cores": cores(), "step_ms": round(1e3 * whole, 1), "shares": shares, "ways": ways}))


def same(one: TunedModel, other: TunedModel) -> bool:
    """Return whether two models have the same bits."""
    return all(torch.equal(tensor, other.trained[name]) for name, tensor in one.trained.items())


if __name__ == "__main__":
    main()
