"""What wrappers share that combine by order statistics: updates go to a file, and come back place by place."""

from collections.abc import Callable, Iterable, Sequence

import strategies
from strategies.algebra.robust import Columns, Spill
from strategies.algebra.tensors import Tensors
from strategies.exchange.vocabulary import State, Update
from strategies.exchange.wrapper import Wrapper


def combined(rule: Callable[[Columns], Columns], state: State, updates: Iterable[Update]) -> Tensors:
    """What `rule` makes of every number of the updates, which are read once, as they come."""
    with Spill(state.tensors) as spill:
        for update in updates:
            spill.add(update.delta)
        return spill.reduced(rule)


def misfits(wrapper: Wrapper, inner: Sequence[Wrapper]) -> list[str]:
    """Wrappers before this one that leave most numbers zero, at other places for every node: so is their median."""
    name = strategies.wrapper_name(wrapper)
    sparse = [strategies.wrapper_name(other) for other in inner if not other.cumulative]
    return [
        f"wrappers: '{other}' sends other places of every node, of which '{name}' leaves nothing" for other in sparse
    ]
