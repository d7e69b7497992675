"""Norm bound: no update is longer than a bound.

Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", arXiv 1911.07963: an update u is scaled by
min(1, M / ||u||) before it is combined; `bound` is M. With `action` = refuse, a longer update is dropped like any bad
reply. The server does this after all wrappers are undone; nodes need not be trusted with it.

The strategy defines the length of an update and how to shorten it (`Algorithm.length`). For most strategies it is one
Euclidean norm over all floating tensors; if nodes send factors that they drew themselves, it is the norm of the
products. If products are combined, changes (dB, dA) of common factors B, A move a product by at most M (||B|| + ||A||)
+ M^2 / 2.

It bounds how far a node can pull the mean, not where: with weights by rows, a node of share p moves it by at most p M.
"""

from dataclasses import dataclass, replace

from strategies.exchange.algorithm import Algorithm
from strategies.exchange.types import Refused, Update
from strategies.exchange.wrapper import Wrapper
from task.schema import option


@dataclass(frozen=True)
class NormBound(Wrapper):
    """Norm bound: `bound` is the largest norm; a longer update is scaled down (`clip`) or refused (`refuse`)."""

    bound: float = option(1.0, low=1e-12, doc="largest Euclidean norm of an update")
    action: str = option(
        "clip",
        choices=("clip", "refuse"),
        doc="what becomes of a longer one: clip (scaled down to the bound) or refuse (dropped)",
    )

    def admitted(self, strategy: Algorithm, update: Update) -> Update:
        length = strategy.length(update.delta)
        if length <= self.bound:
            return update
        if self.action == "refuse":
            raise Refused(f"its norm is {length:g}, more than norm-bound.bound = {self.bound:g}")
        return replace(update, delta=strategy.shortened(update.delta, self.bound / length))
