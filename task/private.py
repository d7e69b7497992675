"""DP-SGD: local steps after which nobody can tell whether any one row was among a node's, through Opacus.

Abadi et al., "Deep Learning with Differential Privacy", arXiv 1607.00133, Algorithm 1. In every step each row takes
part by itself with probability batch-size / rows; its gradient, over all that trains as one vector, is clipped;
normal noise is added to the sum, and this is divided by the expected size of the batch. Opacus clips, keeps the sum
and accounts for the steps (Rényi differential privacy, neighbours differ by one row that is there or not). Gradients
of single rows come from torch's vmap, which is right for any module whose rows do not see each other; batches and
noise from secret randomness.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from task.model import TunedModel
from task.secret import normal, uniform
from task.train import Penalty, Trainer, steps_of

if TYPE_CHECKING:
    from task.rows import Rows

TOGETHER = 16  # rows whose gradients are held at a time
MASK = "attention_mask"


class BudgetSpent(ValueError):
    """A node whose rows may not be trained on any more."""


@dataclass(frozen=True)
class PrivateSteps:
    """What a trainer does instead of its plain loop. `noise` is in clips; 0: the least with which `rounds` rounds fit
    into `epsilon`; 0 there: there is no budget. `account` holds the number of `steps` that the node has done in all."""

    epsilon: float
    delta: float
    noise: float
    clip: float
    rounds: int
    account: dict[str, torch.Tensor]

    def fit(
        self,
        trainer: Trainer,
        model: TunedModel,
        live: Mapping[str, torch.Tensor],
        plain: torch.optim.Optimizer,
        penalties: list[Penalty | None],
    ) -> dict[str, float]:
        """Train in place. Returns steps, the `epsilon` spent by them and all before, and how many `rounds-left` there
        are for it, at most 1; no loss, which would say something of the rows. Raises BudgetSpent before any step."""
        rows = len(trainer.rows)
        steps, rate = steps_of(trainer.config, rows), min(1.0, trainer.config.batch_size / rows)
        noise = self.noise or (
            _calibrated(self.epsilon, self.delta, rate, steps * self.rounds) if self.epsilon else 0.0
        )
        done = int(self.account.get("steps", torch.tensor(0))) + steps
        cost = _epsilon(noise, rate, done, self.delta)
        if self.epsilon and cost > self.epsilon:
            raise BudgetSpent(f"its budget of epsilon {self.epsilon:g} is spent: this round would make it {cost:.2f}")
        parameters = _parameters(model, live)
        optimizer = SecretOptimizer(
            plain,
            noise_multiplier=noise,
            max_grad_norm=self.clip,
            expected_batch_size=rate * rows,
        )
        try:
            for _ in range(steps):
                _step(optimizer, model, trainer.rows, rate, trainer.device)
                for extra in penalties:
                    if extra is not None:
                        _add_gradient(parameters, extra())
                plain.step()
        finally:
            optimizer.zero_grad(set_to_none=True)
        self.account["steps"] = torch.tensor(done)
        said: dict[str, float] = {"steps": steps}
        if noise:
            left = not self.epsilon or _epsilon(noise, rate, done + steps, self.delta) <= self.epsilon
            said |= {"epsilon": cost, "rounds-left": int(left)}
        return said


class SecretOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's, with noise that has no seed."""

    def add_noise(self) -> None:
        """`grad` becomes the sum of clipped gradients and noise."""
        for parameter in self.params:
            noise = normal(parameter.shape, self.noise_multiplier * self.max_grad_norm)
            parameter.grad = parameter.summed_grad + noise.to(parameter)


def _parameters(model: TunedModel, live: Mapping[str, torch.Tensor]) -> list[torch.nn.Parameter]:
    """What trains. Raises ValueError where rows would see each other."""
    problems = [str(error) for error in ModuleValidator.validate(model.module, strict=False)]
    parameters = [tensor for tensor in live.values() if isinstance(tensor, torch.nn.Parameter)]
    if len(parameters) < len(live):
        problems.append("running statistics of a batch would be sent")
    if problems:
        raise ValueError(f"example-privacy cannot train this model: {problems[0]}")
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


@lru_cache(maxsize=256)
def _epsilon(noise: float, rate: float, steps: int, delta: float) -> float:
    """What so many steps cost, by Opacus."""
    return _quietly(lambda: _account(noise, rate, steps).get_epsilon(delta)) if noise else math.inf


def _account(noise: float, rate: float, steps: int) -> RDPAccountant:
    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    return accountant


@lru_cache(maxsize=64)
def _calibrated(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The least noise with which so many steps cost no more than `epsilon`, by Opacus."""
    wanted: dict[str, Any] = {"target_epsilon": epsilon, "target_delta": delta, "sample_rate": rate, "steps": steps}
    return _quietly(lambda: get_noise_multiplier(**wanted, accountant="rdp"))


def _quietly(work: Any) -> float:
    """Opacus warns where the best order is at the end of its list, which makes a bound loose, never wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(work())
