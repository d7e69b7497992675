"""Which wrappers go together, in which order, and with which strategy; and which of them says how updates combine."""

from collections.abc import Callable, Iterable

import strategies
from strategies.algebra.tensors import Tensors
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.vocabulary import State, Update
from strategies.exchange.wrapper import Wrapper

Rule = Callable[[State, Iterable[Update]], Tensors]


def rule(strategy: Algorithm) -> Rule:
    """How the updates of a round combine: by the wrapper that has a rule of its own, else by the strategy's."""
    own = [wrapper for wrapper in strategy.wrappers if replaces(wrapper, "combine")]
    return own[0].combine if own else strategy.combine


def problems(strategy: Algorithm) -> list[str]:
    """Why the wrappers of a strategy cannot go round its updates, if so."""
    found = []
    for place, wrapper in enumerate(strategy.wrappers):
        inner, name = strategy.wrappers[:place], strategies.wrapper_name(wrapper)
        if not strategy.mean and (replaces(wrapper, "combine") or replaces(wrapper, "combined")):
            found.append(
                f"wrapper {type(wrapper).__name__} acts on a mean of updates; strategy = '{strategy.name}' has none"
            )
        if type(wrapper) in {type(other) for other in inner}:
            found.append(f"wrappers names '{name}' twice: once is enough")
        elif codes := [strategies.wrapper_name(other) for other in inner if other.coded and _changes(wrapper)]:
            found.append(f"wrappers: '{codes[0]}' sends a code that '{name}' must not change; put '{codes[0]}' last")
        found += wrapper.problems(strategy, inner)
    return found + _rivals(strategy.wrappers)


def replaces(wrapper: Wrapper, method: str) -> bool:
    """Has this wrapper a method of its own?"""
    return getattr(type(wrapper), method) is not getattr(Wrapper, method)


def _rivals(wrappers: Iterable[Wrapper]) -> list[str]:
    """There is one rule, and what acts on a mean needs that to be the mean."""
    rules, means = (
        [strategies.wrapper_name(wrapper) for wrapper in wrappers if replaces(wrapper, method)]
        for method in ("combine", "combined")
    )
    found = [f"wrappers: '{rules[0]}' and '{other}' both say how updates combine; one can" for other in rules[1:2]]
    return found + [f"wrappers: '{own}' acts on a mean of updates; '{rules[0]}' is none" for own in means if rules]


def _changes(wrapper: Wrapper) -> bool:
    """Does it change what is sent?"""
    return replaces(wrapper, "outgoing")
