"""What is odd in data: what a person would want to know before a run, and may want to mend."""

from collections.abc import Iterator, Sequence

from task.data.guessing.columns import Column, Holds
from task.data.raw import Raw, Table
from thistledown.drafting.kind_guess import Taken
from thistledown.drafting.sites import with_gaps

FEW = 10  # rows of a label below which it is hardly learned and tested
MOST = 0.9  # share of one label above which guessing it is hard to beat
SHOWN = 5


def odd(raw: Raw, columns: Sequence[Column], taken: Taken, site: Column | None) -> Iterator[str]:
    """Yield a sentence on each thing. The values of a user's own file are shown."""
    if empty := [one.name for one in columns if one.holds is Holds.NOTHING]:
        yield f"nothing is in {_listed(empty)}"
    label = taken.label(columns) if taken.kind.row_labels else None
    if label and label.counts:
        yield from _labels(label)
    for column in taken.inputs(columns)[:1]:
        if column.holds is Holds.TEXT:
            yield from _twice(raw, column, label)
    for column in with_gaps(columns):
        if column is not site:
            rows = _rows(column.rows - column.filled)
            yield f"{column.name!r} looks like a column of sites, but is empty in {rows}: fill it to use it"
    if site and (few := [name for name, count in site.counts.items() if count < FEW]):
        yield f"fewer than {FEW} rows are of the sites {_listed(few)}"


def _labels(label: Column) -> Iterator[str]:
    for name, count in sorted(label.counts.items(), key=lambda pair: pair[1])[:SHOWN]:
        if count < FEW:
            yield f"the label {name!r} has {_rows(count)}: too few to be learned and tested"
    name, count = max(label.counts.items(), key=lambda pair: pair[1])
    if count > MOST * label.filled:
        yield f"{count / label.filled:.0%} of the rows have the label {name!r}: so many are right by guessing it"


def _twice(raw: Raw, column: Column, label: Column | None) -> Iterator[str]:
    """Yield how many rows repeat a text, and how many texts have several labels."""
    again = column.filled - column.distinct
    if not again:
        return
    shared = "the parts for training and test may share some"
    yield f"in {column.name!r} are {again:,} repetitions of what another row has: {shared}"
    if label is None or not isinstance(raw, Table):
        return
    pairs = raw.dataset.select_columns([column.name, label.name]).with_format("arrow")[:]
    labels = pairs.group_by(column.name).aggregate([(label.name, "count_distinct")])
    several = sum(count > 1 for count in labels.column(f"{label.name}_count_distinct").to_pylist())
    if several:
        yield f"rows with the same {column.name!r} have different labels, for {several:,} values of it"


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count != 1 else ''}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
