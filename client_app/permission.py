"""What a node's policy permits, checked before any row is read as far as possible.

The server learns the kind of thing that was refused, never the rule.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ConfigRecord
from numpy.typing import NDArray

from client_app.policy import Policy
from client_app.public_errors import NodeError
from task.config import CLASS_MEANS, TaskConfig
from task.models.base import FINGERPRINT
from task.schema import ConfigError, read
from task.training.batches import steps_of

if TYPE_CHECKING:
    from strategies.exchange.strategy import Strategy
    from strategies.exchange.types import Assignment
    from strategies.exchange.wrapper import Wrapper

REFUSED = "refused by the node's policy: "  # the public message, followed by the kinds
Reason = tuple[str, str]  # the kind of thing that is refused, and the rule


class NotPermitted(NodeError):
    """Instructions or an answer that the node's policy forbids. The message, for the owner's log, has every rule."""

    def __init__(self, reasons: Iterable[Reason]) -> None:
        found = list(reasons)
        kinds = dict.fromkeys(kind for kind, _ in found)
        super().__init__("policy: " + "; ".join(rule for _, rule in found), REFUSED + ", ".join(kinds))


def _require(reasons: Iterable[Reason]) -> None:
    """Raise NotPermitted if there are any reasons."""
    if found := list(reasons):
        raise NotPermitted(found)


# ------------------------------------------------------------------------------------------------ instructions
def check_instructions(policy: Policy, instructions: ConfigRecord, config: TaskConfig) -> None:
    """Raise NotPermitted for instructions, whatever message they come with; ConfigError if they cannot be read."""
    reasons = [*_choices(policy, instructions, config), *_columns(policy, config), *_reports(policy, config)]
    _require([*reasons, *_privacy(policy, instructions), *_steps(policy, config)])


def _choices(policy: Policy, instructions: ConfigRecord, config: TaskConfig) -> Iterator[Reason]:
    from strategies.protocol.instructions import CHOICE

    chosen, problems = read({key: instructions[key] for key in CHOICE if key in instructions}, CHOICE)
    if problems:
        raise ConfigError(problems)
    yield from _among("tasks", policy.tasks, [config.task.kind.name])
    yield from _among("tunings", policy.tunings, [config.tuning.name])
    yield from _among("strategies", policy.strategies, [chosen["strategy"]])
    yield from _among("wrappers", policy.wrappers, chosen["wrappers"])
    yield from _models(policy, instructions, config)


def _among(key: str, allowed: tuple[str, ...], asked: Iterable[str], kind: str = "") -> Iterator[Reason]:
    for name in asked if allowed else ():
        if name not in allowed:
            yield kind or key, f"'{name:.80}' is none of {key} = {', '.join(allowed)}"


def _models(policy: Policy, instructions: ConfigRecord, config: TaskConfig) -> Iterator[Reason]:
    """Yield the reasons against the model. A profile is asked for before the fingerprint is known, so there a name
    alone is no reason yet."""
    from strategies.protocol.instructions import BASE

    name, said = config.model.name, instructions.get(BASE)
    fingerprint = said if isinstance(said, str) else ""
    open_yet = not fingerprint and any(FINGERPRINT.fullmatch(model) for model in policy.models)
    if policy.models and not open_yet and not {name, fingerprint} & set(policy.models):
        yield "models", f"neither model.name = '{name:.80}' nor its fingerprint {fingerprint} is among models"


def _columns(policy: Policy, config: TaskConfig) -> Iterator[Reason]:
    from task.data.prepared import columns_of

    inputs, label, identity = columns_of(config)
    allowed = policy.columns
    yield from _among("columns.inputs", allowed.inputs, inputs, "columns")
    yield from _among("columns.labels", allowed.labels, [label] if label else [], "columns")
    yield from _among("columns.ids", allowed.ids, [identity] if identity else [], "columns")
    if not allowed.labels and allowed.max_labels and len(config.data.labels) > allowed.max_labels:
        yield "labels", f"{len(config.data.labels)} labels are more than columns.max-labels = {allowed.max_labels}"


def _reports(policy: Policy, config: TaskConfig) -> Iterator[Reason]:
    if not policy.reports.scores and config.evaluate != "server":
        yield "reports", f"evaluate = '{config.evaluate}', and reports.scores = false"
    if policy.reports.rows != "exact" and config.head_init == CLASS_MEANS:
        said = f"reports.rows = '{policy.reports.rows}'"
        yield "reports", f"head-init = 'ncm' sends shares of classes, by which rows could be counted, and {said}"


def _privacy(policy: Policy, instructions: ConfigRecord) -> Iterator[Reason]:
    """Yield the reasons against the privacy of the instructions: they need a wrapper that the policy asks for, with
    noise, within the policy's limits."""
    wanted = policy.privacy
    if not wanted.kinds and not wanted.epsilon:
        return
    from strategies.exchange.wrapper import NODE
    from strategies.protocol.instructions import strategy_of

    chain = [wrapper for wrapper in strategy_of(instructions).wrappers if wrapper.privacy == NODE]
    kept = [wrapper for wrapper in chain if not wanted.kinds or wrapper.name in wanted.kinds]
    if not kept:
        yield "privacy", f"the instructions have none of privacy.kinds = {', '.join(wanted.kinds) or 'any on the node'}"
    for wrapper in kept:
        yield from _guarantee(policy, wrapper)


def _guarantee(policy: Policy, wrapper: "Wrapper") -> Iterator[Reason]:
    name, wanted = wrapper.name, policy.privacy
    options = {key: float(getattr(wrapper, key)) for key in ("epsilon", "delta", "clip")}
    if not wrapper.hides_metrics or not options["clip"]:
        yield "privacy", f"{name} adds no noise"
    if wanted.epsilon and not 0 < options["epsilon"] <= wanted.epsilon:
        limit = f"privacy.epsilon = {wanted.epsilon:g}"
        yield "privacy", f"{name}.epsilon = {options['epsilon']:g} is not above 0 and at most {limit}"
    if options["delta"] > wanted.delta:
        yield "privacy", f"{name}.delta = {options['delta']:g} is more than privacy.delta = {wanted.delta:g}"


def _steps(policy: Policy, config: TaskConfig) -> Iterator[Reason]:
    """Yield the reasons against the local steps, as far as they are known without the rows."""
    if config.batch_size < policy.min_batch_size:
        yield "work", f"batch-size = {config.batch_size} is less than min-batch-size = {policy.min_batch_size}"
    rate = max(config.learning_rate, config.rate_of_head(new=True))
    decay = rate * config.weight_decay
    if policy.max_decay and decay > policy.max_decay:
        what = "learning-rate" if rate == config.learning_rate else "the head's learning rate"
        yield "work", f"{what} x weight-decay = {decay:g} is more than max-decay = {policy.max_decay:g}"
    if policy.max_steps and config.local_steps > policy.max_steps:
        yield "work", f"local-steps = {config.local_steps} are more than max-steps = {policy.max_steps}"


# ------------------------------------------------------------------------------------------------ a message
def check_assignment(policy: Policy, assignment: "Assignment", cohort: int) -> None:
    """Raise NotPermitted for a round that the policy does not allow.

    `cohort` is how many nodes take part according to the server, 0 if it does not say.
    """
    reasons: list[Reason] = []
    if cohort < policy.min_cohort:
        reasons.append(("cohort", f"{cohort} nodes take part, min-cohort = {policy.min_cohort}"))
    rounds = max(assignment.round, assignment.rounds)
    if policy.max_rounds and rounds > policy.max_rounds:
        reasons.append(("rounds", f"{rounds} rounds are more than max-rounds = {policy.max_rounds}"))
    if policy.max_rank and assignment.rank > policy.max_rank:
        reasons.append(("rank", f"rank {assignment.rank} is more than max-rank = {policy.max_rank}"))
    _require(reasons)


def check_offer(policy: Policy, size: int) -> None:
    """Raise NotPermitted for a base of `size` bytes that the server sends."""
    reasons: list[Reason] = []
    if not policy.offers:
        reasons.append(("offers", "offers = false: the server sends a base"))
    if policy.max_base_bytes and size > policy.max_base_bytes:
        reasons.append(("size", f"the base has {size} bytes, max-base-bytes = {policy.max_base_bytes}"))
    _require(reasons)


def check_trial(policy: Policy) -> None:
    """Raise NotPermitted if the policy does not let the node report its machine."""
    if not policy.reports.machine:
        raise NotPermitted([("reports", "a trial reports time and memory, and reports.machine = false")])


def check_rows(policy: Policy, rows: int) -> None:
    """Raise NotPermitted if a node has too few rows to answer at all."""
    if rows < policy.min_rows:
        raise NotPermitted([("rows", f"the node has {rows} rows, min-rows = {policy.min_rows}")])


def check_update(policy: Policy, strategy: "Strategy", config: TaskConfig, rows: int) -> None:
    """Raise NotPermitted if an update would come from too few of the node's `rows`, or from too many steps.

    Without gradients every step sends a number of its own, so each batch must have enough rows.
    """
    steps, least = steps_of(config, rows), min(policy.min_rows_per_reply, rows)
    seen = min(rows, config.batch_size * (steps if strategy.gradients else 1))
    reasons: list[Reason] = []
    if seen < least:
        reasons.append(("work", f"an update of {seen} different rows; min-rows-per-reply is {least} of {rows}"))
    if policy.max_steps and steps > policy.max_steps:
        reasons.append(("work", f"{steps} local steps are more than max-steps = {policy.max_steps}"))
    _require(reasons)


def check_classes(policy: Policy, labels: NDArray[np.int64]) -> None:
    """Raise NotPermitted if the mean of a class would come from too few of the node's rows, whose `labels` (rows,) are
    given."""
    fewest, least = int(np.unique(labels, return_counts=True)[1].min()), min(policy.min_rows_per_reply, len(labels))
    if fewest < least:
        raise NotPermitted([("rows", f"a class mean of {fewest} rows (head-init); min-rows-per-reply is {least}")])


def check_scores(policy: Policy, scored: int, rows: int) -> None:
    """Raise NotPermitted if a score would come from too few of the node's `rows`."""
    if scored < (least := min(policy.min_rows_per_reply, rows)):
        raise NotPermitted([("rows", f"a score of {scored} rows; min-rows-per-reply is {least} of {rows}")])
