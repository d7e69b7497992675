"""Seeds from names: the same run seed, round and node give the same numbers everywhere."""

import hashlib


def derive(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) for any number of parts; their order and types matter."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
