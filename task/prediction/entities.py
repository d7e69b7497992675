"""Entities in the labels of words, and their F1, as the CoNLL evaluation and seqeval count them."""

from collections.abc import Iterator, Sequence

OUTSIDE = "O"
PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}  # IOB, IOBES, BILOU


def f1(true: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> float:
    """Return the F1 of entities over all rows of labels: an entity is right if its kind, its first and its last word
    are. It is 0 where there are none."""
    right = there = found = 0
    for row, other in zip(true, said, strict=True):
        own, theirs = set(entities(row)), set(entities(other))
        right, there, found = right + len(own & theirs), there + len(own), found + len(theirs)
    return 2 * right / (there + found) if there + found else 0.0


def entities(labels: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Yield the kind of every entity of a row, its first word, and the word behind its last.

    An entity begins at B or S, after the end of another, and where the kind changes, whatever the prefix. A label
    without a prefix is a kind by itself: a run of it is an entity.
    """
    start, before, kind_before = 0, OUTSIDE, ""
    for place, label in enumerate([*labels, OUTSIDE]):
        prefix, kind = _parts(label)
        begins = prefix in "BS" or before in "ESO" or kind != kind_before
        if before != OUTSIDE and (begins or prefix == OUTSIDE):
            yield kind_before, start, place
        if begins:
            start = place
        before, kind_before = prefix, kind


def _parts(label: str) -> tuple[str, str]:
    if label == OUTSIDE:
        return OUTSIDE, ""
    prefix, bar, kind = label.partition("-")
    return (PREFIXES[prefix], kind) if bar and prefix in PREFIXES else ("I", label)
