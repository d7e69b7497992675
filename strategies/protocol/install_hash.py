"""What a node has installed, as one number. A node reports it in every reply, and the server compares it with its own.

It is a hash of the base, of the journal position, and of every tensor that the server replaced, as the node's model
holds it now. The weights that a journal leads to are not part of it: see `journal.fingerprint`.
"""

from collections.abc import Mapping

import torch
import xxhash

from strategies.algebra.tensors import raw
from strategies.exchange.types import State
from task.models.model import TunedModel


def install_hash_of(model: TunedModel, start: State, live: Mapping[str, torch.Tensor] | None = None) -> int:
    """Return the hash of a model in which `start` was installed. A tensor that has no place in the model is hashed as
    it arrived. `live` are the tensors that train, as the strategy sees them, if these are not the model's own."""
    own = {**model.frozen, **model.trained, **(live or {})}
    held = {name: own.get(name, came) for name, came in start.tensors.items()}
    return expected(held, model.position, model.base.fingerprint)


def expected(tensors: Mapping[str, torch.Tensor], position: str, base: str) -> int:
    """Return the hash of these tensors at this journal position on this base: 63 bits, so that it travels as a metric.

    A fast hash is enough: it detects accidents, and a dishonest node knows what it was sent and thus the right number.
    """
    hashed = xxhash.xxh3_64(f"{base} {position}".encode())
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        hashed.update(raw(tensor))
    return hashed.intdigest() >> 1
