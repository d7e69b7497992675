"""The keys of a preset: what data is taken for, and how a first run trains on it."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from task.data.guessing.columns import Column
from task.data.index import DataIndex
from task.data.raw import Raw
from thistledown.drafting.kind_guess import Taken
from thistledown.drafting.lengths import max_length
from thistledown.drafting.preset import Choice

NODES, MOST_NODES, ROWS = 10, 100, 20  # simulated nodes, the most of them, and rows that each should have
STEPS, LONG = 8, 100  # local steps in a round, at least and at most
SCORED, SCORED_TOKENS = 2000, 200  # rows that each evaluation scores, by rows and by tokens
WHY = {
    "num-server-rounds": "rounds of training; the model of the best one is kept",
    "learning-rate": "a rate to begin with; nobody has searched for a better one",
    "batch-size": "rows in a local step",
    "local-steps": "steps of a node in a round",
}
ROLES = {  # what is in a column, where its key does not say it
    "data.messages-column": "conversations",
    "data.chosen-column": "chosen answers",
    "data.rejected-column": "rejected answers",
}
LABELS = 100  # that are written down


def of_task(taken: Taken, raw: Raw, columns: Sequence[Column], site: Column | None, model: str) -> Iterator[Choice]:
    """Yield the kind, the base and the columns. `model` is the one that the user names, "" for one that suits."""
    kind, guess = taken.kind, taken.guess
    other = f"; {', '.join(taken.others)} would fit too" if taken.others else ""
    seen = _named(taken.inputs(columns)) + _labelled(taken.label(columns))
    yield Choice("task.kind", kind.name, seen + other, True)
    yield _base(taken, model)
    for key, name in guess.columns.items():
        also = f"; it could be {' or '.join(map(repr, more))}" if (more := guess.others.get(key)) else ""
        yield Choice(key, name, (f"{_role(key)}{also}" if name else f"no {_role(key)}"), True)
    if not kind.images:
        yield Choice("data.max-length", *max_length(raw, taken.inputs(columns), model), True)
    if site:
        yield Choice(
            "data.id-column", site.name, f"the sites of rows, {site.distinct:,} of them; --site '' for none", True
        )
    classes = kind.row_labels and taken.label(columns) is not None
    yield Choice("data.partitioner", *_division(site, classes=classes))


def of_sizes(taken: Taken, index: DataIndex, site: Column | None, nodes: int) -> Iterator[Choice]:
    """Yield what depends on the number of rows. `nodes` is the user's number, 0 for one that suits."""
    kind, rows = taken.kind, len(index.train)
    if site is not None and index.train.ids is not None:
        sites = len(np.unique(index.train.ids))
        count, why = min(sites, MOST_NODES), "one for each site" if sites <= MOST_NODES else f"{sites:,} sites on these"
    else:
        count, why = min(NODES, max(2, rows // ROWS)), f"the {rows:,} rows to train on are dealt to them"
    count = nodes or count
    yield Choice("simulation.num-supernodes", count, f"nodes that a run simulates: {why}", True)
    if "local-steps" not in kind.begin_with:
        yield _length(rows / count / _batch(kind.begin_with))
    most = SCORED_TOKENS if kind.per_token else SCORED
    for name in ("validation", "test"):
        if len(index.parts[name]) > most:
            many = f"of the {len(index.parts[name]):,} rows, so that a round is scored soon; 0: all"
            yield Choice(f"data.{name}-rows", most, many, True)
    if kind.drawn_head and len(index.labels) <= LABELS:
        yield Choice("data.labels", "|".join(index.labels), "in this order; nodes with rows of their own need it")


def of_method(taken: Taken) -> Iterator[Choice]:
    """Yield how a run trains: the same for all data of a kind."""
    begin = taken.kind.begin_with
    yield Choice("strategy", "fedavg", "the mean of what nodes send, weighted by their rows; docs/choose.md has others")
    yield Choice("tuning", "lora", "adapters train and travel, and the base stays as it is")
    for key, value in begin.items():
        if key != "model.name":
            yield Choice(key, value, WHY.get(key, "to begin with"))


def _batch(begin: Mapping[str, object]) -> int:
    found = begin.get("batch-size", 16)
    return found if isinstance(found, int) else 16


def _base(taken: Taken, model: str) -> Choice:
    if model:
        return Choice("model.name", model, "the base that you name", True)
    name = str(taken.kind.begin_with["model.name"])
    return Choice("model.name", name, "a small base of the Hugging Face Hub; an id or a folder takes its place", True)


def _length(steps: float) -> Choice:
    """Return how long a node trains in a round, if its rows are so many steps."""
    if steps < STEPS:
        return Choice("local-steps", STEPS, f"of a node in a round; its rows are about {steps:.0f} steps", True)
    if steps > LONG:
        return Choice("local-steps", LONG, f"of a node in a round; its rows are about {steps:,.0f} steps", True)
    return Choice("local-epochs", 1, f"passes over a node's rows in a round, about {steps:.0f} steps", True)


def _division(site: Column | None, *, classes: bool) -> tuple[str, str]:
    if site:
        return "natural", "each site keeps its rows"
    skewed = "; 'dirichlet' makes nodes differ in their labels, as real ones do" if classes else ""
    return "iid", f"rows are dealt at random{skewed}"


def _named(columns: Sequence[Column]) -> str:
    return " and ".join(f"{column.name!r} has {column.holds.value}" for column in columns)


def _labelled(label: Column | None) -> str:
    return f", and {label.name!r} says which of {label.distinct:,} labels a row has" if label else ""


def _role(key: str) -> str:
    return f"column of {ROLES.get(key, key.removeprefix('data.').removesuffix('-column') + 's')}"
