"""Parse a node's profile. All of it is a claim: types, ranges and lengths are checked, and nothing is believed beyond
what a round tolerates."""

from typing import Any

from flwr.app import ConfigRecord, Message

from strategies.exchange.types import MAX_ROWS, Profile, Refused
from strategies.rounds import validation
from task.tunings.base import MAX_RANK

LONGEST = 200  # characters of a text
MOST = 10_000  # texts of a list
LARGEST = 2**62  # of numbers that only people read


def profile_in(node_id: int, reply: Message | None) -> Profile:
    """Return the profile in a reply. Raises Refused."""
    said = validation.content(reply).config_records.get("profile")
    if said is None:
        raise Refused("its reply has no record 'profile'")
    profile = Profile(
        node_id=node_id,
        name=_text(said, "name", least=1),
        rank=_whole(said, "rank", MAX_RANK),
        num_examples=_whole(said, "num-examples", MAX_ROWS),
        store=_text(said, "store"),
        bases=frozenset(_texts(said, "bases")),
        named_base=_text(said, "named-base"),
        device=_text(said, "device"),
        memory=_whole(said, "memory", LARGEST),
        cores=_whole(said, "cores", LARGEST),
        versions=_text(said, "versions"),
        automatic=_true(said, "automatic"),
        dtypes=frozenset(_texts(said, "dtypes")),
        labels_fit=_true(said, "labels-fit"),
        labels=_texts(said, "labels"),
    )
    if profile.named_base and profile.named_base not in profile.bases:
        raise Refused(f"its profile says named-base = {profile.named_base!r:.80}, which is none of its bases")
    return profile


def _get(said: ConfigRecord, key: str) -> Any:
    if key not in said:
        raise Refused(f"its profile lacks '{key}'")
    return said[key]


def _whole(said: ConfigRecord, key: str, most: int) -> int:
    value = _get(said, key)
    if type(value) is not int or not 0 <= value <= most:
        raise Refused(f"its profile says {key} = {value!r:.80}, not a whole number from 0 to {most}")
    return value


def _true(said: ConfigRecord, key: str) -> bool:
    value = _get(said, key)
    if type(value) is not bool:
        raise Refused(f"its profile says {key} = {value!r:.80}, neither true nor false")
    return value


def _text(said: ConfigRecord, key: str, least: int = 0) -> str:
    value = _get(said, key)
    if not _fits(value) or len(value) < least:
        raise Refused(f"its profile says {key} = {value!r:.80}, not a text of at most {LONGEST} printable characters")
    return str(value)


def _texts(said: ConfigRecord, key: str) -> tuple[str, ...]:
    values = _get(said, key)
    if not isinstance(values, list) or len(values) > MOST or not all(map(_fits, values)):
        raise Refused(f"its profile says {key} = {values!r:.80}, not a list of at most {MOST} such texts")
    return tuple(values)


def _fits(value: object) -> bool:
    """Return whether a text is safe for a log, a page and a file."""
    return isinstance(value, str) and len(value) <= LONGEST and value.isprintable()
