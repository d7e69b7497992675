"""Seeds that follow from names: the same run seed, round and node give the same numbers anywhere."""

import hashlib


def derive(*parts: int | str) -> int:
    """A seed in [0, 2**63) from any number of parts; order and types count."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
