"""FedRot-LoRA: a node turns its factors towards those it was sent, so that factors of one basis are averaged.

Zhang, Kim, Cha, Vikalo, "FedRot-LoRA: Mitigating Rotational Misalignment in Federated LoRA", arXiv 2602.23638 (ICML
2026). For any orthogonal R, (B_i R)(R^T A_i) = B_i A_i: the same product has many factors, and the mean of differently
turned ones loses what they have in common. After training, a node solves the orthogonal Procrustes problem

    R = argmin ||R^T A_i - A||_F = U V^T  with  U S V^T = svd(A_i A^T)      in odd rounds,
    R = argmin ||B_i R - B||_F   = U V^T  with  U S V^T = svd(B_i^T B)      in even rounds,

with B and A as it was sent them, and answers with B_i R and R^T A_i. The server is FedAvg's, and nothing else travels.
B is zero at first, so A leads. With `strength` lambda < 1 the rotation is the orthogonal factor of the polar
decomposition of (1 - lambda) I + lambda R, where R has no reflection (det R = 1); at 1 it is R.

What was sent decides nothing about directions that it lacks (singular values of zero): there R stays as near to the
identity as it can.
"""

from dataclasses import dataclass

import torch

from strategies.algebra.lowrank import factor_names, modules, pair
from strategies.algebra.tensors import Tensors, added, difference, snapshot
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment, Metrics
from task.config import TaskConfig
from task.models.model import TunedModel
from task.schema import option
from task.training.trainer import Trainer

UNDECIDED = 1e-6  # of the product of two norms: smaller singular values are rounding


@dataclass(frozen=True)
class FedRotLora(Strategy):
    """FedAvg of factors in one basis."""

    strength: float = option(1.0, low=0.0, high=1.0, doc="how far factors turn: 1 as near as they can, 0 not at all")

    needs_ranks = True
    additive_across_rounds = False  # factors are turned towards others in every round

    def problems(self, config: TaskConfig) -> list[str]:
        sparse = [wrapper.name for wrapper in self.wrappers if wrapper.leaves_out]
        return [
            f"strategy = 'fedrot-lora' turns factors towards those it was sent, and wrapper '{name}' leaves most of "
            "them at zero, so that they turn at random: leave it out"
            for name in sparse
        ]

    def train(self, model: TunedModel, trainer: Trainer, assignment: Assignment) -> tuple[Tensors, Metrics]:
        before = snapshot(self.live(model, assignment))
        delta, metrics = super().train(model, trainer, assignment)
        after = added(before, delta)
        for module in modules(after):
            b, a = (factor.double() for factor in pair(after, module))
            sent_b, sent_a = (factor.double() for factor in pair(before, module))
            if assignment.round % 2:
                turned = rotation(a @ sent_a.T, float(a.norm() * sent_a.norm()), self.strength)
            else:
                turned = rotation(b.T @ sent_b, float(b.norm() * sent_b.norm()), self.strength)
            b_name, a_name = factor_names(module)
            after |= {b_name: (b @ turned).to(after[b_name].dtype), a_name: (turned.T @ a).to(after[a_name].dtype)}
            model.write({name: after[name] for name in (b_name, a_name)})  # a node has what it sends
        return difference(after, before), metrics


def rotation(overlap: torch.Tensor, size: float, strength: float = 1.0) -> torch.Tensor:
    """Return the orthogonal matrix R (rank, rank) that maximises tr(R^T overlap), `strength` of the way from the
    identity; float64.

    Singular values of `overlap` below UNDECIDED times `size` decide nothing. Among the R that are as good as each other
    it is the nearest to the identity.
    """
    identity = torch.eye(overlap.shape[0], dtype=torch.float64)
    if not strength or not size:
        return identity
    u, s, vh = torch.linalg.svd(overlap)
    decided = int((s > UNDECIDED * size).sum())
    left, _, right = torch.linalg.svd(u[:, decided:].T @ vh[decided:].T)
    u = torch.cat([u[:, :decided], u[:, decided:] @ left], dim=1)
    vh = torch.cat([vh[:decided], right @ vh[decided:]])
    if strength == 1:
        return u @ vh
    if torch.linalg.det(u @ vh) < 0:  # the least decided direction turns the other way
        u[:, -1] *= -1
    left, _, right = torch.linalg.svd((1 - strength) * identity + strength * (u @ vh))
    turned: torch.Tensor = left @ right
    return turned
