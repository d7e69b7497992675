"""DP-SGD: local steps after which nobody can tell whether any one row was among a node's, through Opacus.

Abadi et al., "Deep Learning with Differential Privacy", arXiv 1607.00133, Algorithm 1. In every step each row takes
part by itself with probability batch-size / rows; its gradient, over all that trains as one vector, is clipped;
normal noise is added to the sum, and this is divided by the expected size of the batch. Opacus clips and keeps the
sum; what steps cost is not counted here. Gradients of single rows come from torch's vmap, which is right for any
module whose rows do not see each other; batches and noise from secret randomness.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from task.models.model import TunedModel
from task.secure_random import normal, uniform
from task.training.batches import steps_of
from task.training.trainer import Penalty, Trainer, Unsuited

if TYPE_CHECKING:
    from task.data.rows import Rows

TOGETHER = 16  # rows whose gradients are held at a time
MASK = "attention_mask"


class Unpaid(ValueError):
    """More steps than were paid for."""

    public = "more private steps were asked for than were paid for"


@dataclass
class PrivateSteps:
    """What a trainer does instead of its plain loop: as many steps as were paid for, and no more. `noise` is in clips,
    `rate` the probability with which a row takes part in a step."""

    noise: float
    clip: float
    rate: float
    steps: int

    def fit(
        self,
        trainer: Trainer,
        model: TunedModel,
        live: Mapping[str, torch.Tensor],
        plain: torch.optim.Optimizer,
        penalties: list[Penalty | None],
    ) -> dict[str, float]:
        """Train in place. Returns the number of steps; no loss, which would say something of the rows. Raises
        Unpaid before any step where there are more than were paid for."""
        rows = len(trainer.rows)
        steps = steps_of(trainer.config, rows)
        if steps > self.steps:
            raise Unpaid(f"{steps} private steps are asked for, and {self.steps} of those paid for are left")
        self.steps -= steps
        parameters = _parameters(model, live)
        optimizer = SecretOptimizer(
            plain,
            noise_multiplier=self.noise,
            max_grad_norm=self.clip,
            expected_batch_size=self.rate * rows,
        )
        try:
            for _ in range(steps):
                _step(optimizer, model, trainer.rows, self.rate, trainer.device)
                for extra in penalties:
                    if extra is not None:
                        _add_gradient(parameters, extra())
                plain.step()
        finally:
            optimizer.zero_grad(set_to_none=True)
        return {"steps": steps}


class SecretOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's, with noise that has no seed."""

    def add_noise(self) -> None:
        """`grad` becomes the sum of clipped gradients and noise."""
        for parameter in self.params:
            noise = normal(parameter.shape, self.noise_multiplier * self.max_grad_norm)
            parameter.grad = parameter.summed_grad + noise.to(parameter)


def _parameters(model: TunedModel, live: Mapping[str, torch.Tensor]) -> list[torch.nn.Parameter]:
    """What trains. Raises Unsuited where rows would see each other."""
    problems = [str(error) for error in ModuleValidator.validate(model.module, strict=False)]
    parameters = [tensor for tensor in live.values() if isinstance(tensor, torch.nn.Parameter)]
    if len(parameters) < len(live):
        problems.append("running statistics of a batch would be sent")
    if problems:
        raise Unsuited(f"example-privacy cannot train this model: {problems[0].split('. ')[0]}")
    return parameters


def _step(optimizer: SecretOptimizer, model: TunedModel, rows: "Rows", rate: float, device: str) -> None:
    """Draw a batch, and leave the noised mean of its clipped gradients in `grad`."""
    optimizer.zero_grad(set_to_none=True)
    drawn = (uniform(len(rows)) <= rate).nonzero().flatten()
    for positions in torch.split(drawn, TOGETHER) if len(drawn) else (drawn,):
        samples = _gradients(model, optimizer.params, rows.batch(positions, device)) if len(positions) else None
        for number, parameter in enumerate(optimizer.params):
            empty = parameter.new_zeros((0, *parameter.shape))
            parameter.grad_sample = empty if samples is None else samples[number].detach()
        optimizer.clip_and_accumulate()
    optimizer.add_noise()
    optimizer.scale_grad()


def _gradients(
    model: TunedModel, parameters: list[torch.nn.Parameter], batch: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    """The gradient of each row's own loss, stacked, for every parameter."""
    names = {id(parameter): name for name, parameter in model.module.named_parameters()}
    live = {names[id(parameter)]: parameter.detach() for parameter in parameters}
    rest = {name: p.detach() for name, p in model.module.named_parameters() if name not in live}
    rest |= dict(model.module.named_buffers())

    def loss(trained: dict[str, torch.Tensor], row: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {name: tensor.unsqueeze(0) for name, tensor in row.items()}
        if MASK in inputs:  # whole, because transformers would look into one by tokens, which vmap does not allow
            length = inputs[MASK].shape[1]
            inputs[MASK] = inputs[MASK].bool()[:, None, None, :].expand(1, 1, length, length)
        found: torch.Tensor = functional_call(model.module, (trained, rest), (), inputs).loss
        return found

    with sdpa_kernel(SDPBackend.MATH):  # the fused ones work on one row at a time under vmap
        samples = vmap(grad(loss), in_dims=(None, 0), randomness="different")(live, dict(batch))
    return [samples[names[id(parameter)]] for parameter in parameters]


def _add_gradient(parameters: list[torch.nn.Parameter], penalty: torch.Tensor) -> None:
    """A penalty sees no rows: its gradient needs neither clip nor noise."""
    for parameter, more in zip(parameters, torch.autograd.grad(penalty, parameters, allow_unused=True), strict=True):
        if more is not None:
            assert parameter.grad is not None
            parameter.grad += more
