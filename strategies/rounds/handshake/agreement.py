"""The base of a run whose server has no weights of it: the one that most nodes have under its name."""

from collections.abc import Iterable

from strategies.exchange.types import Profile, RunFailed

SHOWN = 3  # nodes of each base that an error names


def agreed_base(profiles: Iterable[Profile], name: str) -> str:
    """Return the fingerprint of the base that most nodes have under the name `name`; empty if none has one.

    The nodes with another base are then left out. Raises RunFailed if two bases are equally common.
    """
    owners: dict[str, list[str]] = {}
    for profile in sorted(profiles, key=lambda profile: profile.sort_key):
        if profile.named_base:
            owners.setdefault(profile.named_base, []).append(profile.name)
    ranked = sorted(owners, key=lambda base: len(owners[base]), reverse=True)
    if len(ranked) > 1 and len(owners[ranked[0]]) == len(owners[ranked[1]]):
        both = " and ".join(f"{base} (node {', '.join(owners[base][:SHOWN])})" for base in ranked[:2])
        raise RunFailed(
            f"model.name = '{name}': nodes have different bases, {both}, and the server has no weights to tell which "
            "is right; give them the same base, or give it to the server too"
        )
    return ranked[0] if ranked else ""
