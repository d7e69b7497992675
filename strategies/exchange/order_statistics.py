"""What wrappers share that combine by order statistics: the middle of every number, over the nodes that have it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from strategies.algebra.robust import Columns, settled
from strategies.algebra.tensors import Tensors
from strategies.exchange.wrapper import Wrapper
from task.config import TaskConfig
from task.schema import option

if TYPE_CHECKING:
    from collections.abc import Iterable

    from strategies.exchange.algorithm import Algorithm
    from strategies.exchange.types import State, Update


@dataclass(frozen=True)
class OrderStatistic(Wrapper):
    """A subclass has `rule`. What fewer than `min_owners` nodes of a cohort hold, such as the last ranks of an adapter,
    is not changed: one or two have no middle, and a node could be alone there by claiming the largest rank."""

    min_owners: int = option(
        3, low=1, doc="nodes of a cohort that must hold a rank for it to change (all, where they are fewer)"
    )

    def rule(self, columns: Columns) -> Columns:
        """Columns (nodes, places) to what stands for each (places,)."""
        raise NotImplementedError

    def problems(self, strategy: "Algorithm", inner: Sequence[Wrapper]) -> list[str]:
        """Wrappers before this one that leave most numbers zero, at other places for every node: so is their median."""
        name = self.name
        sparse = [other.name for other in inner if not other.additive_across_rounds]
        return [
            f"wrappers: '{other}' sends other places of every node, of which '{name}' leaves nothing"
            for other in sparse
        ]

    def unsuited(self, strategy: "Algorithm", config: TaskConfig) -> list[str]:
        if not (reason := strategy.apart(config)):
            return []
        return [
            f"wrapper '{self.name}' takes the middle of every number over nodes, and strategy = "
            f"'{strategy.name}' gives it none: {reason}; wrapper 'norm-bound' bounds what a node can do there"
        ]

    def combine(self, strategy: "Algorithm", state: "State", updates: "Iterable[Update]") -> Tensors:
        return strategy.combine_by(partial(settled, self.rule, self.min_owners), state, updates)
