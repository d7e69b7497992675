"""The column that says where a row comes from, found by its name and its values."""

from collections.abc import Collection, Sequence

from task.data.guessing.columns import Column, Holds
from task.data.raw import lacks
from task.schema import ConfigError

SITE = "data.id-column"
WORDS = (  # in names of columns of sites
    "site", "sites", "clinic", "hospital", "client", "node", "center", "centre", "institution", "institute",
    "organisation", "organization", "org", "company", "branch", "store", "shop", "user", "device", "source", "region",
    "country", "state", "city", "department", "ward", "school", "lab", "laboratory", "facility", "bank", "office",
    "practice", "location", "station", "plant", "factory", "speaker", "writer", "tenant", "owner", "team",
)  # fmt: skip
NAMED = (Holds.TEXT, Holds.CLASS, Holds.WHOLE)  # what can name a site


def site_of(columns: Sequence[Column], given: str | None, taken: Collection[str]) -> Column | None:
    """Return the column of sites: the one `given` ("": none), else the first whose name is that of a site, whose values
    repeat and that every row has. `taken` are columns that the user has named for something else.

    Raises ConfigError if the given one does not exist.
    """
    if given is not None:
        found = next((one for one in columns if one.name == given), None)
        if given and found is None:
            raise ConfigError([lacking("--site", given, [one.name for one in columns])])
        return found
    return next((one for one in _alike(columns) if one.name not in taken and one.filled == one.rows), None)


def with_gaps(columns: Sequence[Column]) -> list[Column]:
    """Return the columns that look like sites, but are empty in some rows."""
    return [one for one in _alike(columns) if one.filled < one.rows]


def lacking(flag: str, name: str, have: Sequence[str]) -> str:
    """Return the problem of a column that does not exist."""
    return f"{flag} {name}: the data {lacks('column', name, have)}"


def _alike(columns: Sequence[Column]) -> list[Column]:
    return [one for one in columns if one.holds in NAMED and one.repeats and one.called(WORDS)]
