"""Check that a strategy, its wrappers and the settings of a run fit together, before any node is asked."""

from collections.abc import Callable, Iterable
from functools import partial

from strategies.algebra.tensors import Tensors
from strategies.exchange.federation import Federation
from strategies.exchange.privacy import Mechanism, Plan
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import State, Update
from strategies.exchange.wrapper import Wrapper
from task.config import TaskConfig
from task.tunings import registry
from task.tunings.base import Tuning

Rule = Callable[[State, Iterable[Update]], Tensors]


def problems(strategy: Strategy, config: TaskConfig, federation: Federation | None = None) -> list[str]:
    """Why a strategy cannot run with these settings, if so."""
    found = strategy.problems(config)
    if (tuning := config.tuning.name) not in (fitting := fitting_tunings(strategy)):
        fits = " or ".join(f"'{name}'" for name in fitting)
        found.append(f"strategy = '{strategy.name}' needs tuning = {fits}, not '{tuning}'")
    found += _optimizer_problems(strategy) + _wrapper_problems(strategy)
    for wrapper in strategy.wrappers:
        found += wrapper.unsuited(strategy, config) + wrapper.unfit(config, federation)
    if strategy.personalized and config.evaluate != "nodes":
        found.append(f"strategy = '{strategy.name}' leaves a model of its own on every node: set evaluate = 'nodes'")
    return found


def fitting_tunings(strategy: Strategy) -> list[str]:
    """Return the names of the tunings that a strategy is for."""

    def fits(tuning: type[Tuning]) -> bool:
        return (tuning.has_ranks or not strategy.needs_ranks) and (tuning.in_place or not strategy.needs_in_place)

    return [name for name in registry.names() if fits(registry.load(name))]


def rule(strategy: Strategy) -> Rule:
    """How the updates of a round combine: by the wrapper that has a rule of its own, else by the strategy's."""
    own = [wrapper for wrapper in strategy.wrappers if replaces(wrapper, "combine")]
    combine: Rule = partial(own[0].combine, strategy) if own else strategy.combine
    return lambda state, updates: combine(state.without_server(), updates)


def _optimizer_problems(strategy: Strategy) -> list[str]:
    """Why the combined updates of a strategy are nothing that its server optimizer can step along, if so."""
    if strategy.server_optimizer is None or not (reason := strategy.fixed_step):
        return []
    chosen = f"server-optimizer = '{strategy.server_optimizer.name}'"
    sgd = "set server-optimizer = 'sgd' with server-sgd.learning-rate = 1"
    return [f"{chosen} needs updates that add up to a step; strategy = '{strategy.name}' has none: {reason}; {sgd}"]


def _wrapper_problems(strategy: Strategy) -> list[str]:
    """Why the wrappers of a strategy cannot go round its updates, if so."""
    found = []
    for place, wrapper in enumerate(strategy.wrappers):
        inner, name = strategy.wrappers[:place], wrapper.name
        if wrapper.averaged and not strategy.is_weighted_mean:
            found.append(f"wrapper '{name}' needs a mean of updates; strategy = '{strategy.name}' takes none")
        if wrapper.nearest and (nearer := [other.name for other in inner if _changes(other)]):
            found.append(f"wrappers: '{name}' is for the update itself, not for what '{nearer[0]}' sends; put it first")
        if _guards(wrapper) and (others := [other.name for other in inner if _guards(other)]):
            found.append(f"wrappers: '{others[0]}' and '{name}' each keep an account of privacy; choose one")
        if type(wrapper) in {type(other) for other in inner}:
            found.append(f"wrappers names '{name}' twice: once is enough")
        elif codes := [other.name for other in inner if other.coded and _changes(wrapper)]:
            found.append(f"wrappers: '{codes[0]}' sends a code that '{name}' must not change; put '{codes[0]}' last")
        found += wrapper.problems(strategy, inner)
    return found + _rivals(strategy.wrappers)


def replaces(wrapper: Wrapper, method: str) -> bool:
    """Has this wrapper a method of its own?"""
    return getattr(type(wrapper), method) is not getattr(Wrapper, method)


def guards_on_node(wrapper: type[Wrapper]) -> bool:
    """Does a node keep its own privacy by it, whatever the server does?"""
    own = {name for name in ("mechanism", "training", "encode") if getattr(wrapper, name) is not getattr(Wrapper, name)}
    return "mechanism" in own and len(own) > 1


def _rivals(wrappers: Iterable[Wrapper]) -> list[str]:
    """There is one rule, and what acts on a mean needs that to be the mean."""
    chain = {wrapper.name: wrapper for wrapper in wrappers}
    rules = [name for name, wrapper in chain.items() if replaces(wrapper, "combine")]
    means = [name for name, wrapper in chain.items() if wrapper.averaged and name not in rules]
    found = [f"wrappers: '{rules[0]}' and '{other}' both say how updates combine; one can" for other in rules[1:2]]
    return found + [f"wrappers: '{own}' acts on a mean of updates; '{rules[0]}' is none" for own in means if rules]


def mechanism(strategy: Strategy, plan: Plan) -> Mechanism:
    """What guards or counts privacy in a run, if anything. Raises ConfigError."""
    return next((found for wrapper in strategy.wrappers if (found := wrapper.mechanism(plan))), Mechanism())


def _guards(wrapper: Wrapper) -> bool:
    """Has it to do with privacy?"""
    return replaces(wrapper, "mechanism")


def _changes(wrapper: Wrapper) -> bool:
    """Does it change what is sent?"""
    return replaces(wrapper, "encode")
