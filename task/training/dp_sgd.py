"""DP-SGD by Opacus: differentially private local steps, which protect each row of a node.

Abadi et al., "Deep Learning with Differential Privacy", arXiv 1607.00133, Algorithm 1. In every step each row takes
part independently with probability batch-size / rows. Its gradient, over all trained parameters as one vector, is
clipped. Normal noise is added to the sum, which is divided by the expected batch size. Opacus clips and sums; the
privacy cost of steps is not counted here. Per-row gradients come from torch's vmap, which is correct for any module
whose rows do not affect each other. Batches and noise come from secure randomness.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakSet

import torch
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from task.kinds import registry as kinds
from task.models.model import TunedModel
from task.secure_random import normal, uniform
from task.training.batches import Unsuited, steps_of
from task.training.micro_batches import BatchLoss, Penalty
from task.training.trainer import Trainer
from task.tunings.parts.evaluating import evaluating

TOGETHER = 16  # rows whose gradients are in memory at a time, unless micro-batch-size is smaller
MASK = "attention_mask"
MOST_APART = 0.3  # of a gradient, which rounding in 16 bits may reach
_exact: WeakSet[torch.nn.Module] = WeakSet()  # models whose gradients of rows have been compared


class Unpaid(ValueError):
    """More steps than the privacy budget pays for."""

    public = "more private steps were asked for than were paid for"


@dataclass
class PrivateSteps:
    """Private steps in place of a trainer's plain loop, at most as many as are paid for. `noise` is in units of the
    clipping norm; `rate` is the probability that a row takes part in a step."""

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
        """Train in place. Return the number of steps, and no loss, which would reveal something about the rows. Raises
        Unpaid, before any step, for more steps than are paid for."""
        rows = len(trainer.rows)
        steps = steps_of(trainer.config, rows)
        if steps > self.steps:
            raise Unpaid(f"{steps} private steps are asked for, and {self.steps} of those paid for are left")
        self.steps -= steps
        parameters = _parameters(model, live)
        _check_gradients(model, trainer, parameters)
        optimizer = SecretOptimizer(
            plain,
            noise_multiplier=self.noise,
            max_grad_norm=self.clip,
            expected_batch_size=self.rate * rows,
        )
        try:
            for _ in range(steps):
                _step(optimizer, model, trainer, self.rate)
                for extra in penalties:
                    if extra is not None:
                        _add_gradient(parameters, extra())
                plain.step()
        finally:
            optimizer.zero_grad(set_to_none=True)
        return {"steps": steps}


class SecretOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's optimizer with noise from the secure source, which has no seed."""

    def add_noise(self) -> None:
        """Set `grad` to the sum of the clipped gradients and the noise."""
        for parameter in self.params:
            noise = normal(parameter.shape, self.noise_multiplier * self.max_grad_norm)
            parameter.grad = parameter.summed_grad + noise.to(parameter)


def _parameters(model: TunedModel, live: Mapping[str, torch.Tensor]) -> list[torch.nn.Parameter]:
    """Return the parameters that train. Raises Unsuited if rows of a batch affect each other."""
    problems = [str(error) for error in ModuleValidator.validate(model.module, strict=False)]
    parameters = [tensor for tensor in live.values() if isinstance(tensor, torch.nn.Parameter)]
    if len(parameters) < len(live):
        problems.append("running statistics of a batch would be sent")
    if problems:
        raise Unsuited(f"example-privacy cannot train this model: {problems[0].split('. ')[0]}")
    return parameters


def _step(optimizer: SecretOptimizer, model: TunedModel, trainer: Trainer, rate: float) -> None:
    """Draw a batch, and set `grad` to the noised mean of its clipped gradients."""
    rows, device = trainer.rows, trainer.device
    together = min(TOGETHER, trainer.config.micro_batch_size or TOGETHER)
    optimizer.zero_grad(set_to_none=True)
    drawn = (uniform(len(rows)) <= rate).nonzero().flatten()
    loss = BatchLoss(kinds.of(trainer.config), model.module)
    for positions in torch.split(drawn, together) if len(drawn) else (drawn,):
        samples = _gradients(loss, optimizer.params, rows.batch(positions, device), len(positions))
        for number, parameter in enumerate(optimizer.params):
            empty = parameter.new_zeros((0, *parameter.shape))
            parameter.grad_sample = samples[number].detach() if samples else empty
        optimizer.clip_and_accumulate()
    optimizer.add_noise()
    optimizer.scale_grad()


def _gradients(
    loss: BatchLoss, parameters: list[torch.nn.Parameter], batch: Mapping[str, torch.Tensor], rows: int
) -> list[torch.Tensor]:
    """Return, for every parameter, the gradients of the own loss of each of `rows` rows, stacked; none without rows."""
    if not rows:
        return []
    each = {name: tensor.reshape(rows, -1, *tensor.shape[1:]) for name, tensor in batch.items()}  # a batch a row
    names = {id(parameter): name for name, parameter in loss.named_parameters()}
    live = {names[id(parameter)]: parameter.detach() for parameter in parameters}
    rest = {name: p.detach() for name, p in loss.named_parameters() if name not in live}
    rest |= dict(loss.named_buffers())
    causal = any(getattr(layer, "is_causal", False) for layer in loss.modules())

    def of_row(trained: dict[str, torch.Tensor], row: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = row | ({MASK: _whole(row[MASK], causal)} if MASK in row else {})
        found: torch.Tensor = functional_call(loss, (trained, rest), (inputs,))
        return found

    with sdpa_kernel(SDPBackend.MATH):  # under vmap the fused kernels work on one row at a time
        samples = vmap(grad(of_row), in_dims=(None, 0), randomness="different")(live, each)
    return [samples[names[id(parameter)]] for parameter in parameters]


def _check_gradients(model: TunedModel, trainer: Trainer, parameters: list[torch.nn.Parameter]) -> None:
    """Compare the gradients of the longest and the shortest row with those that each has alone, once for a model.

    What a mask of who sees whom means depends on the model: some take it for scores to add, some see only tokens
    nearby. Raises Unsuited if the gradients are others, as training would go wrong unseen, and whatever a library
    raises for a mask of this form.
    """
    module, rows, device = model.module, trainer.rows, trainer.device
    if module in _exact or not len(rows) or MASK not in rows.batch(torch.tensor([0]), device):
        return
    loss = BatchLoss(kinds.of(trainer.config), module)
    ends = torch.tensor([int(rows.lengths.argmax()), int(rows.lengths.argmin())])
    with evaluating(module):
        losses = (loss(rows.batch(ends[n : n + 1], device)) for n in range(2))
        alone = [torch.autograd.grad(one, parameters, materialize_grads=True) for one in losses]
        samples = _gradients(loss, parameters, rows.batch(ends, device), 2)
    for number, own in enumerate(alone):
        if not _near([sample[number] for sample in samples], own):
            raise Unsuited(
                "example-privacy cannot train this model: its attention needs masks that gradients of single rows do "
                "not allow; use local-privacy or central-privacy, or another base, or a smaller data.max-length if "
                "layers see only tokens nearby"
            )
    _exact.add(module)


def _near(found: list[torch.Tensor], right: tuple[torch.Tensor, ...]) -> bool:
    """Return whether every gradient is within rounding of the right one."""
    rounding = max(torch.finfo(gradient.dtype).eps for gradient in right)
    share, floor = min(MOST_APART, 10 * rounding**0.5), min(MOST_APART, 100 * rounding)
    largest = max(float(gradient.norm()) for gradient in right)
    return all(
        float((one - other).norm()) <= share * float(other.norm()) + floor * largest
        for one, other in zip(found, right, strict=True)
    )


def _whole(mask: torch.Tensor, causal: bool) -> torch.Tensor:
    """Return who sees whom (sequences, 1, tokens, tokens), of a mask (sequences, tokens): vmap does not allow
    transformers to branch on its values, and transformers takes such a mask as it is, without making it causal.
    A token sees itself, also one that fills up: whoever sees nobody would be no number."""
    length = mask.shape[1]
    whole = mask.bool()[:, None, None, :].expand(-1, 1, length, length)
    return whole.tril() | torch.eye(length, dtype=torch.bool, device=mask.device) if causal else whole


def _add_gradient(parameters: list[torch.nn.Parameter], penalty: torch.Tensor) -> None:
    """Add the gradient of a penalty. It depends on no row, so it needs neither clipping nor noise."""
    for parameter, more in zip(parameters, torch.autograd.grad(penalty, parameters, allow_unused=True), strict=True):
        if more is not None:
            assert parameter.grad is not None
            parameter.grad += more
