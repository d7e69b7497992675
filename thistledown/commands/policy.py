"""`thistledown policy check`: what a node with this policy does and refuses, in sentences."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from client_app.policy import Policy
from server_app.results.amounts import human
from task.schema import flatten


def explained(path: Path) -> Iterator[str]:
    """Explain the policy in a TOML file. Raises PolicyError with all problems."""
    policy = Policy.read(path)
    changed = flatten(policy, changed_only=True)
    yield f"The policy in {path}; what it does not set is marked (default)."
    for title, sentences in SECTIONS.items():
        yield f"\n{title}"
        for keys, text in sentences(policy):
            yield f"  {text}" + ("" if any(key in changed for key in keys) else " (default)")


Sentence = tuple[tuple[str, ...], str]  # the keys that it explains, and the text


def _instructions(policy: Policy) -> Iterator[Sentence]:
    for key in ("tasks", "models", "tunings", "strategies", "wrappers"):
        allowed = getattr(policy, key)
        yield (key,), f"{key}: {', '.join(allowed)} and no other." if allowed else f"{key}: any."
    yield from [_offer(policy), _rounds(policy)]


def _offer(policy: Policy) -> Sentence:
    size = f" of at most {human(policy.max_base_bytes)}" if policy.max_base_bytes else ""
    done = (
        f"A base{size} that the server sends is stored" if policy.offers else "A base that the server sends is refused"
    )
    store = f"; the store has room for at most {human(policy.max_store_bytes)}" if policy.max_store_bytes else ""
    return ("offers", "max-base-bytes", "max-store-bytes"), f"{done}{store}."


def _rounds(policy: Policy) -> Sentence:
    limits = {
        "rounds of a run": policy.max_rounds,
        "as the rank of an adapter": policy.max_rank,
        "local steps a round": policy.max_steps,
        "seconds of work on a message": policy.max_seconds,
    }
    said = [f"{limit:,.15g} {what}" for what, limit in limits.items() if limit]
    keys = ("max-rounds", "max-rank", "max-steps", "max-seconds")
    return keys, f"At most {_listed(said)}." if said else "Rounds, ranks, steps and seconds have no limit."


def _data(policy: Policy) -> Iterator[Sentence]:
    columns = policy.columns
    for what in ("inputs", "labels", "ids"):
        allowed = getattr(columns, what)
        text = (
            f"only {_listed(allowed)} may be read" if allowed else "any column that the instructions name may be read"
        )
        yield (f"columns.{what}",), f"As {what} {text}."
    if not columns.labels and columns.max_labels:
        most = f"more than {columns.max_labels:,} different values, or more than half as many as rows"
        yield ("columns.max-labels",), f"A column of {most} is refused as labels."
    elif not columns.labels:
        yield ("columns.max-labels",), "A label column may have any number of different values."
    published = f"The server learns the label names {_listed(columns.publish_labels)}."
    yield ("columns.publish-labels",), published if columns.publish_labels else "The server learns no label names."


def _rows(policy: Policy) -> Iterator[Sentence]:
    yield ("min-rows",), f"With fewer than {policy.min_rows} rows the node refuses to work."
    least = f"at least {policy.min_rows_per_reply} different rows, or all rows of the node"
    step = f"a step uses at least {policy.min_batch_size}"
    yield ("min-rows-per-reply", "min-batch-size"), f"An update or a score uses {least}; {step}."
    if policy.max_decay:
        decay = "learning-rate x weight-decay"
        yield ("max-decay",), f"A step shrinks the weights by at most {policy.max_decay:.0%} ({decay})."
    cohort = f"The node replies only if the server says that at least {policy.min_cohort} nodes take part."
    yield ("min-cohort",), cohort if policy.min_cohort else "The node replies in a cohort of any size."


def _privacy(policy: Policy) -> Iterator[Sentence]:
    wanted, keys = policy.privacy, ("privacy.kinds", "privacy.epsilon", "privacy.delta")
    if not wanted.kinds and not wanted.epsilon:
        yield keys, "No privacy is required: what an update reveals about the rows has no bound."
        return
    kinds = " or ".join(wanted.kinds) or "a wrapper with which the node itself adds noise"
    yield keys, f"A run must use {kinds}, with noise, at a delta of at most {wanted.delta:g}."
    budget = f"The node spends at most an epsilon of {wanted.epsilon:g} over all its runs, and no run may ask for more."
    yield ("privacy.epsilon",), budget if wanted.epsilon else "Epsilon has no limit."


def _reports(policy: Policy) -> Iterator[Sentence]:
    reports = policy.reports
    yield ("reports.loss",), f"The training loss is {'reported' if reports.loss else 'not reported'}."
    scored = "scores the model on its own rows if the run asks for it" if reports.scores else "refuses to score"
    yield ("reports.scores",), f"The node {scored} (evaluate = 'nodes' or 'both')."
    machine = "" if reports.machine else "not "
    yield ("reports.machine",), f"Device, memory, cores, versions and times are {machine}reported."
    rounded = "rounded down to a power of two" if reports.rows == "rounded" else "exactly"
    yield ("reports.rows",), f"The number of rows is reported {rounded}."


SECTIONS = {
    "What it may be asked to do": _instructions,
    "What it may read": _data,
    "How many rows are behind a reply": _rows,
    "Privacy": _privacy,
    "What it reports": _reports,
}


def _listed(items: Iterable[str]) -> str:
    *first, last = [*items] or [""]
    return f"{', '.join(first)} and {last}" if first else last
