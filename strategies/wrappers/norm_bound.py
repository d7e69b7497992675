"""No update is longer than a bound.

Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", arXiv 1911.07963: an update u is scaled by
min(1, M / ||u||) before it is averaged, with one Euclidean norm over all its floating tensors; `bound` is M. With
`action` = refuse a longer one is dropped like any bad reply. The server does it, once the wrappers after this one are
undone; nodes need not be trusted with it.

It bounds how far a node can pull the mean, not where: with weights by rows a node of share p moves it by at most p M.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

import strategies
from strategies.algebra.tensors import Tensors, norm
from strategies.exchange.vocabulary import Refused
from strategies.exchange.wrapper import Wrapper
from task.schema import option

if TYPE_CHECKING:
    from strategies.exchange.algorithm import Algorithm


@dataclass(frozen=True)
class NormBound(Wrapper):
    """`bound` is the largest norm; a longer update is scaled down (`clip`) or refused (`refuse`)."""

    bound: float = option(1.0, low=1e-12)
    action: str = option("clip", choices=("clip", "refuse"))

    def problems(self, strategy: "Algorithm", inner: Sequence[Wrapper]) -> list[str]:
        found = []
        if not strategy.mean:
            found.append(f"wrapper 'norm-bound' shortens updates that are averaged; those of '{strategy.name}' are not")
        if coded := [strategies.wrapper_name(wrapper) for wrapper in inner if type(wrapper).form is not Wrapper.form]:
            found.append(f"wrappers: 'norm-bound' after '{coded[0]}' sees no update but a code: put 'norm-bound' first")
        return found

    def incoming(self, sent: Tensors, like: Mapping[str, torch.Tensor]) -> Tensors:
        length = norm(tensor for tensor in sent.values() if tensor.is_floating_point())
        if length <= self.bound:
            return sent
        if self.action == "refuse":
            raise Refused(f"its norm is {length:g}, more than norm-bound.bound = {self.bound:g}")
        share = self.bound / length
        return {n: (t.double() * share).to(t.dtype) if t.is_floating_point() else t for n, t in sent.items()}
