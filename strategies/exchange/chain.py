"""Which wrappers go together, in which order, and with which strategy."""

import strategies
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.wrapper import Wrapper


def problems(strategy: Algorithm) -> list[str]:
    """Why the wrappers of a strategy cannot go round its updates, if so."""
    found = []
    for place, wrapper in enumerate(strategy.wrappers):
        inner, name = strategy.wrappers[:place], strategies.wrapper_name(wrapper)
        if not strategy.mean and "combined" in vars(type(wrapper)):
            found.append(
                f"wrapper {type(wrapper).__name__} acts on a mean of updates; strategy = '{strategy.name}' has none"
            )
        if type(wrapper) in {type(other) for other in inner}:
            found.append(f"wrappers names '{name}' twice: once is enough")
        elif codes := [strategies.wrapper_name(other) for other in inner if other.coded and _changes(wrapper)]:
            found.append(f"wrappers: '{codes[0]}' sends a code that '{name}' must not change; put '{codes[0]}' last")
        found += wrapper.problems(strategy, inner)
    return found


def _changes(wrapper: Wrapper) -> bool:
    """Does it change what is sent?"""
    return type(wrapper).outgoing is not Wrapper.outgoing
