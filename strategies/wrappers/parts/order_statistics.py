"""The base class of wrappers that combine by order statistics: a rule for every number, over the nodes that have it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from strategies.algebra.robust import Columns, settled
from strategies.algebra.tensors import Tensors
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.federation import Federation
from strategies.exchange.types import State, Update
from strategies.exchange.wrapper import Wrapper
from task.config import TaskConfig
from task.schema import option


@dataclass(frozen=True)
class OrderStatistic(Wrapper):
    """A combination by `rule`, which a subclass defines. Numbers that fewer than `min_owners` nodes of a cohort have,
    such as the last ranks of an adapter, do not change: one or two values have no middle, and a node could be alone
    there by claiming the largest rank."""

    combines = True

    min_owners: int = option(
        3, low=1, doc="nodes of a cohort that must hold a rank for it to change (all, where they are fewer)"
    )

    def rule(self, columns: Columns) -> Columns:
        """Return one value for each place (places,), given columns (nodes, places)."""
        raise NotImplementedError

    def problems(
        self, strategy: Algorithm, config: TaskConfig, federation: Federation | None, inner: Sequence[Wrapper]
    ) -> list[str]:
        # if most numbers are zero, at other places for every node, the median is zero
        found = [
            f"wrappers: '{other.name}' sends other places of every node, of which '{self.name}' leaves nothing"
            for other in inner
            if not other.additive_across_rounds
        ]
        if reason := strategy.apart(config):
            found.append(
                f"wrapper '{self.name}' takes the middle of every number over nodes, and strategy = "
                f"'{strategy.name}' gives it none: {reason}; wrapper 'norm-bound' bounds what a node can do there"
            )
        return found

    def combine(self, strategy: Algorithm, state: State, updates: Iterable[Update]) -> Tensors:
        return strategy.combine_by(partial(settled, self.rule, self.min_owners), state, updates)
