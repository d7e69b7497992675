"""Check that a strategy, its wrappers and the settings of a run fit together, before any node is asked."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from strategies.algebra.tensors import Tensors
from strategies.exchange import head_rounds
from strategies.exchange.federation import Federation
from strategies.exchange.privacy import Mechanism, Plan
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import State, Update
from strategies.exchange.wrapper import Wrapper
from task.config import TaskConfig
from task.kinds import registry as kinds
from task.tunings import registry
from task.tunings.base import Tuning

Combine = Callable[[State, Iterable[Update]], Tensors]


def problems(strategy: Strategy, config: TaskConfig, federation: Federation | None = None) -> list[str]:
    """Return why a strategy cannot run with these settings; empty if it can."""
    found = strategy.problems(config)
    if (tuning := config.tuning.name) not in (fitting := fitting_tunings(strategy)):
        fits = " or ".join(f"'{name}'" for name in fitting)
        found.append(f"strategy = '{strategy.name}' needs tuning = {fits}, not '{tuning}'")
    found += unquantizable(strategy, config) + unreferenced(strategy, config)
    if config.tuning.moves_base and strategy.heterogeneous_ranks:
        found.append(
            f"lora.init = 'pissa' needs equal ranks: a node of a smaller rank would lack what the base gave up, and "
            f"strategy = '{strategy.name}' mixes ranks; set lora.init = 'default' or strategy = 'fedavg'"
        )
    found += _optimizer_problems(strategy) + head_rounds.problems(strategy, strategy.wrappers, config)
    for place, wrapper in enumerate(strategy.wrappers):
        inner = strategy.wrappers[:place]
        found += _misplaced(wrapper, strategy, inner) + wrapper.problems(strategy, config, federation, inner)
    found += _rivals(strategy.wrappers)
    if strategy.personalized and config.evaluate != "nodes":
        found.append(f"strategy = '{strategy.name}' leaves a model of its own on every node: set evaluate = 'nodes'")
    return found


def unquantizable(strategy: Strategy, config: TaskConfig) -> list[str]:
    """Return why a strategy cannot run on a quantised base, if the settings have one."""
    if not config.model.quantized or not strategy.writes_base:
        return []
    return [
        f"strategy = '{strategy.name}' writes into the base, whose weights model.quantization = "
        f"'{config.model.quantization}' rounds; set it to 'none', or use strategy = 'fedavg'"
    ]


def unreferenced(strategy: Strategy, config: TaskConfig) -> list[str]:
    """Return why a strategy cannot run for a task whose loss compares with the base."""
    if not kinds.of(config).needs_reference or not strategy.writes_base:
        return []
    return [
        f"strategy = '{strategy.name}' writes into the base, with which task.kind = '{config.task.kind.name}' compares "
        "every answer; use strategy = 'fedavg'"
    ]


def fitting_tunings(strategy: Strategy) -> list[str]:
    """Return the names of the tunings that a strategy is for."""

    def fits(tuning: type[Tuning]) -> bool:
        return (tuning.has_ranks or not strategy.needs_ranks) and (tuning.in_place or not strategy.needs_in_place)

    return [name for name in registry.names() if fits(registry.load(name))]


def combination(strategy: Strategy) -> Combine:
    """Return how the updates of a round combine: by the rule of a wrapper if there is one, else by the strategy's.

    Tensors that only the server has are hidden from the rule.
    """
    own = [wrapper for wrapper in strategy.wrappers if wrapper.combines]
    combine: Combine = partial(own[0].combine, strategy) if own else strategy.combine
    return lambda state, updates: combine(state.without_server(), updates)


def _optimizer_problems(strategy: Strategy) -> list[str]:
    """Return why a server optimizer cannot take a step along the combined updates of a strategy."""
    if strategy.server_optimizer is None or not (reason := strategy.fixed_step):
        return []
    chosen = f"server-optimizer = '{strategy.server_optimizer.name}'"
    sgd = "set server-optimizer = 'sgd' with server-sgd.learning-rate = 1"
    return [f"{chosen} needs updates that add up to a step; strategy = '{strategy.name}' has none: {reason}; {sgd}"]


def _misplaced(wrapper: Wrapper, strategy: Strategy, inner: Sequence[Wrapper]) -> list[str]:
    """Return why a wrapper is not compatible with the strategy, or with the wrappers that are applied before it."""
    found, name = [], wrapper.name
    if wrapper.needs_weighted_mean and not strategy.is_weighted_mean:
        found.append(f"wrapper '{name}' needs a mean of updates; strategy = '{strategy.name}' takes none")
    if wrapper.must_be_first and (nearer := [other.name for other in inner if other.encodes]):
        found.append(f"wrappers: '{name}' is for the update itself, not for what '{nearer[0]}' sends; put it first")
    if wrapper.privacy and (others := [other.name for other in inner if other.privacy]):
        found.append(f"wrappers: '{others[0]}' and '{name}' each keep an account of privacy; choose one")
    if type(wrapper) in {type(other) for other in inner}:
        found.append(f"wrappers names '{name}' twice: once is enough")
    elif codes := [other.name for other in inner if other.sends_code and wrapper.encodes]:
        found.append(f"wrappers: '{codes[0]}' sends a code that '{name}' must not change; put '{codes[0]}' last")
    return found


def _rivals(wrappers: Sequence[Wrapper]) -> list[str]:
    """Return conflicts between wrappers over how updates combine: only one may have a rule, and some need a mean."""
    rules = [wrapper.name for wrapper in wrappers if wrapper.combines]
    means = [wrapper.name for wrapper in wrappers if wrapper.needs_weighted_mean and wrapper.name not in rules]
    found = [
        f"wrappers: '{rules[0]}' and '{other}' both decide how updates combine; choose one" for other in rules[1:2]
    ]
    return found + [f"wrappers: '{own}' needs a mean of updates, unlike '{rules[0]}' is none" for own in means if rules]


def mechanism(strategy: Strategy, plan: Plan) -> Mechanism:
    """Return the privacy mechanism of a run, if it has one. Raises ConfigError."""
    return next((found for wrapper in strategy.wrappers if (found := wrapper.mechanism(plan))), Mechanism())
