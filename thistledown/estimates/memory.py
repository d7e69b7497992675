"""The memory that training takes on a node, from the shapes of everything: nothing is computed, no weights are read."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from client_app.trial import copies
from server_app.results.amounts import human
from task.config import TaskConfig
from task.data.rows import Rows
from task.kinds import registry as kinds
from task.models.base import Base
from task.models.model import TunedModel, build
from task.training.checkpointing import checkpointed
from task.training.micro_batches import BatchLoss
from task.training.uncached import uncached
from task.tunings.base import TuningError
from task.tunings.parts.trainable import is_linear

BYTES = {"none": 0.0, "8bit": 1.0, "4bit": 0.5 + 4 / 64}  # of a weight of a linear layer, with the scales of its block
ROOM = 1.25  # what else a device holds, and memory in pieces


def memory(base: Base, config: TaskConfig, rank: int, rows: Rows) -> Iterator[str]:
    """Yield a line on the memory of a node, and one on the share of a GPU that it needs, if there is one here."""
    plain = replace(config, model=replace(config.model, quantization="none", double_quantization=False))
    model = _built(base, plain, rank)
    trained = sum(tensor.nbytes for tensor in model.trained.values())
    parts: dict[str, float] = {"the base": _frozen(model, config), "what trains": trained * copies(config)}
    try:
        parts[f"activations of {config.rows_at_once} rows"] = kept_for_backward(model, config, rows)
    except RuntimeError as error:  # of a model whose shapes depend on values, such as a mixture of experts
        yield f"notice    activations are not counted, as this model does not run on shapes alone: {error!s:.120}"
    total = sum(parts.values())
    shares = ", ".join(f"{name} {human(size)}" for name, size in parts.items() if size)
    yield f"memory    about {human(total)} on a node: {shares}"
    if torch.cuda.is_available():
        share = ROOM * total / torch.cuda.get_device_properties(0).total_memory
        fits = (
            f"simulation.num-gpus = {max(0.01, math.ceil(100 * share) / 100):g}" if share <= 1 else "more than it has"
        )
        yield f"          of a GPU of this machine: {fits}"


def _built(base: Base, config: TaskConfig, rank: int) -> TunedModel:
    """Return the model without weights, or with them if the tuning calls layers to find out what they do."""
    try:
        return build(replace(base, bare=True), config, rank, "cpu")
    except TuningError:
        return build(base, config, rank, "cpu")


def kept_for_backward(model: TunedModel, config: TaskConfig, rows: Rows) -> int:
    """Return the bytes that autograd keeps of the loss of `rows_at_once` rows as long as the last of `rows`,
    without the model's own. With gradient checkpointing, a block needs more while it is made anew."""
    batch = rows.batch([len(rows) - 1] * config.rows_at_once)
    module: Any = model.module.train()
    loss = BatchLoss(kinds.of(config), module)
    kept: dict[int, torch.Tensor] = {}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        weights: dict[str, torch.Tensor]
        weights = {n: mode.from_tensor(t) for n, t in (*loss.named_parameters(), *loss.named_buffers())}
        own = {tensor.untyped_storage()._cdata for tensor in weights.values()}
        inputs = {name: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with uncached(module), checkpointed(module, config.gradient_checkpointing), saving:
            torch.func.functional_call(loss, weights, (inputs,))
        return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)


def _frozen(model: TunedModel, config: TaskConfig) -> float:
    """Return the bytes of the frozen weights, those of linear layers as they are quantised."""
    module: Any = model.module
    kept = {id(tensor) for tensor in model.trained.values()}
    whole = {id(getattr(module.get_output_embeddings(), "weight", None))}
    linear = (
        {id(part.weight) for part in module.modules() if is_linear(part)} - whole if config.model.quantized else set()
    )
    return math.fsum(
        tensor.numel() * (BYTES[config.model.quantization] if id(tensor) in linear else tensor.element_size())
        for tensor in module.parameters()
        if id(tensor) not in kept
    )
