"""Local training and evaluation: plain loops over prepared rows."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

from task.config import IN_8_BITS, TaskConfig
from task.data.encoding.packing import packed
from task.data.rows import Rows
from task.device import kind
from task.kinds import registry as kinds
from task.models.heads import still_parts
from task.models.model import TunedModel
from task.training.batches import Unsuited, batches, check_rows, least_rows, per_epoch
from task.training.checkpointing import checkpointed
from task.training.micro_batches import Inputs, Penalty, backward, check_separable, mean_loss
from task.training.mixed_precision import Masters, autocast
from task.training.uncached import uncached

Regulariser = Callable[[Mapping[str, torch.Tensor]], Penalty | None]
LARGE = 2**24  # bytes of gradients that may wait for a step that need not wait for the others


class PrivateSteps(Protocol):
    """Local steps that replace the plain ones: `task.training.dp_sgd`."""

    def fit(
        self,
        trainer: "Trainer",
        model: TunedModel,
        live: Mapping[str, torch.Tensor],
        plain: torch.optim.Optimizer,
        penalties: list[Penalty | None],
    ) -> dict[str, float]:
        """Train in place; return the metrics that may be published."""


@dataclass(frozen=True)
class Trainer:
    """A node's training: its rows, the task's settings, and a seed for the order of rows and for dropout."""

    config: TaskConfig
    rows: Rows
    seed: int
    device: str = "cpu"
    regularisers: tuple[Regulariser, ...] = ()  # each gives a penalty on the tensors that train, in every fit
    private: PrivateSteps | None = None  # differentially private steps in place of the plain ones
    only: frozenset[str] | None = None  # names of the tensors that may change; None: all that are asked for

    def regularised(self, regulariser: Regulariser) -> "Trainer":
        """Return the same trainer with one more penalty in every fit, before the others."""
        return replace(self, regularisers=(regulariser, *self.regularisers))

    def at_rate(self, rate: float) -> "Trainer":
        """Return the same trainer with another learning rate."""
        return replace(self, config=replace(self.config, learning_rate=rate))

    def fit(
        self, model: TunedModel, live: Mapping[str, torch.Tensor] | None = None, penalty: Penalty | None = None
    ) -> dict[str, float]:
        """Train in place with the task's optimiser; `penalty` and those of `regularisers` are added to every loss.

        `live` are the tensors of `model.trained` that change (None: all), as far as `only` allows; the others are
        frozen meanwhile. Those of a classifier's head have a learning rate of their own (`TaskConfig.rate_of_head`).
        Return the mean loss over the last pass (`train-loss`; nats, or the squared error of numbers), per row or, if
        tokens are learned, per token, and the number of steps.
        """
        torch.manual_seed(self.seed)
        chosen = self._allowed(model.trained if live is None else live)
        parameters = [tensor for tensor in chosen.values() if isinstance(tensor, torch.nn.Parameter)]
        masters = Masters(parameters)
        optimizer = self._optimizer(masters.parameters, self._rates(model, chosen))
        penalties = [penalty, *(regulariser(chosen) for regulariser in self.regularisers)]
        model.untouched = False
        training_mode(model.module, chosen.values())
        if not self.config.body_dropout:
            _without_body_dropout(model, chosen)
        config, rows, least = self.config, len(self.rows), least_rows(model.module)
        check_rows(config, rows, least)
        check_separable(model.module, config)
        last = per_epoch(config, rows, least)
        steps, losses, counts = 0, deque[torch.Tensor](maxlen=last), deque[torch.Tensor](maxlen=last)
        recomputing = checkpointed(model.module, config.gradient_checkpointing)
        at_once = steps_early(config) and self.private is None  # whose gradients are clipped and noised first
        early = _early_steps(parameters, optimizer, masters) if at_once else nullcontext()
        with _only(model, parameters), uncached(model.module), recomputing, early:
            if self.private is not None:
                self._check_drawn_alone()
                return self.private.fit(self, model, chosen, optimizer, penalties)
            for positions in self._batches(least):
                optimizer.zero_grad(set_to_none=True)
                with autocast(config.precision, self.device):
                    loss, count = backward(kinds.of(config), model.module, self._parts(positions), penalties, masters)
                steps += 1
                losses.append(loss)
                counts.append(count)
                if config.max_grad_norm:
                    torch.nn.utils.clip_grad_norm_(masters.parameters, config.max_grad_norm)
                _step(optimizer, masters)
        return {"train-loss": _mean(losses, counts), "steps": steps}

    def _batches(self, least: int = 1) -> Iterator[torch.Tensor]:
        lengths = self.rows.lengths if self.config.group_by_length else None
        return batches(self.config, len(self.rows), self.seed, least, lengths)

    def _parts(self, positions: torch.Tensor) -> list[Inputs]:
        """Return the micro-batches of a batch."""
        config, parts = self.config, torch.split(positions, self.config.micro_batch_size or len(positions))
        if config.packing:
            return [packed(self.rows, part, config.data.max_length, self.device) for part in parts]
        return [self.rows.batch(part, self.device) for part in parts]

    def _check_drawn_alone(self) -> None:
        """Raise Unsuited for settings of batches: private steps draw each row by itself, and look at it by itself."""
        asked = {"packing": self.config.packing, "group-by-length": self.config.group_by_length}
        if wrong := [f"{key} = true" for key, on in asked.items() if on]:
            raise Unsuited(f"{' and '.join(wrong)}: example-privacy draws and clips every row by itself; set to false")

    def _allowed(self, live: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return live if self.only is None else {name: tensor for name, tensor in live.items() if name in self.only}

    def losses(self, model: TunedModel) -> Iterator[Callable[[], float]]:
        """Yield, for every local step, a function that returns the loss of its batch on the current model: without
        gradients and dropout, with penalties. For methods that update the model themselves.
        """
        penalties = [regulariser(model.trained) for regulariser in self.regularisers]
        model.untouched = False
        model.module.eval()
        for positions in self._batches():
            yield partial(self._loss, model, self._parts(positions), penalties)

    @torch.no_grad()
    def _loss(self, model: TunedModel, parts: list[Inputs], penalties: list[Penalty | None]) -> float:
        loss = mean_loss(kinds.of(self.config), model.module, parts)
        return float(loss + sum(extra() for extra in penalties if extra is not None))

    def rate_of(self, model: TunedModel, name: str) -> float:
        """Return the learning rate of a tensor of the model."""
        return self.config.rate_of_head(model.new_head) if name in model.head else self.config.learning_rate

    def _rates(self, model: TunedModel, live: Mapping[str, torch.Tensor]) -> list[float]:
        """Return the learning rate of every parameter among `live`."""
        return [self.rate_of(model, name) for name, tensor in live.items() if isinstance(tensor, torch.nn.Parameter)]

    def _optimizer(self, parameters: list[torch.nn.Parameter], rates: list[float]) -> torch.optim.Optimizer:
        """Return the task's optimiser, with one group of parameters for each of the learning rates."""
        config, pairs = self.config, list(zip(parameters, rates, strict=True))
        groups = [{"params": [p for p, own in pairs if own == rate], "lr": rate} for rate in dict.fromkeys(rates)]
        options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        if config.optimizer == "sgd":
            return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov, **options)
        if config.optimizer in IN_8_BITS:
            library = import_module("bitsandbytes.optim")
            made = library.PagedAdamW8bit if config.optimizer.startswith("paged") else library.AdamW8bit
            return cast(torch.optim.Optimizer, made(groups, **options))
        fused = kind(self.device) in ("cpu", "cuda")  # one kernel for all of an adapter's small tensors
        return torch.optim.AdamW(groups, fused=fused, **options)


def steps_early(config: TaskConfig) -> bool:
    """Return whether a tensor's step may be made as soon as its gradient is there: the weights of the base train, which
    are large, and the gradients of a batch are neither added up from parts nor clipped together."""
    return not config.tuning.adds and not config.max_grad_norm and config.rows_at_once >= config.batch_size


@contextmanager
def _early_steps(
    parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, masters: Masters
) -> Iterator[None]:
    """Within this block, the optimizer steps in the middle of a backward pass whenever `LARGE` bytes of gradients wait
    for it, and frees them. No number changes: autograd has then used these tensors for the last time, and the steps of
    tensors do not depend on each other."""
    waiting = 0

    def arrived(parameter: torch.Tensor) -> None:
        nonlocal waiting
        assert parameter.grad is not None
        waiting += parameter.grad.nbytes
        if waiting >= LARGE:
            masters.take_gradients()
            _step(optimizer, masters)
            optimizer.zero_grad(set_to_none=True)
            waiting = 0

    hooks: list[RemovableHandle] = []
    for parameter in parameters:
        hooks.append(parameter.register_post_accumulate_grad_hook(arrived))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _step(optimizer: torch.optim.Optimizer, masters: Masters) -> None:
    optimizer.step()
    masters.write_back()


def _mean(losses: Iterable[torch.Tensor], counts: Iterable[torch.Tensor]) -> float:
    """Return the mean of batch means, each weighted by the number of labels it is the mean of."""
    values, weights = (torch.stack(tuple(numbers)).double() for numbers in (losses, counts))
    return float((values * weights).sum() / weights.sum())


def training_mode(module: torch.nn.Module, live: Iterable[torch.Tensor]) -> None:
    """Turn on dropout. Let running statistics move only if they are exchanged (full tuning): otherwise nothing would
    restore them, and a node's result would depend on the nodes that the process served before."""
    module.train()
    exchanged = {id(tensor) for tensor in live}
    for part in module.modules():
        if isinstance(part, _NormBase) and id(part.running_mean) not in exchanged:
            part.eval()


def _without_body_dropout(model: TunedModel, live: Mapping[str, torch.Tensor]) -> None:
    """Turn dropout off in the body if the head alone trains."""
    if live.keys() <= model.head:
        for part in still_parts(model.module, [model.trained[name] for name in model.head]):
            part.eval()


@contextmanager
def _only(model: TunedModel, live: list[torch.nn.Parameter]) -> Iterator[None]:
    """Require gradients of `live` only within this block; no others are computed."""
    everything = list(model.module.parameters())
    before = [parameter.requires_grad for parameter in everything]
    ids = {id(parameter) for parameter in live}
    for parameter in everything:
        parameter.requires_grad_(id(parameter) in ids)
    try:
        yield
    finally:
        for parameter, asked in zip(everything, before, strict=True):
            parameter.requires_grad_(asked)


def evaluate(
    model: TunedModel, rows: Rows, device: str, at_once: int = 1, precision: str = "model"
) -> dict[str, float]:
    """Return the metrics of the current model, as `evaluate` of its task kind does, with products in this `precision`.
    `at_once` batches are scored at a time."""
    model.module.eval()
    with autocast(precision, device):
        return kinds.of(model.config).evaluate(model.module, rows, device, at_once)
