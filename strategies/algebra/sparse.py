"""The largest numbers of a vector, and a compact code of their places."""

import numpy as np
import torch

INTEGERS = torch.iinfo(torch.int32)


def largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ascending places (count,) of the `count` largest magnitudes of finite values (n,); among equal ones
    the first."""
    magnitudes = values.abs()
    threshold = magnitudes.kthvalue(len(values) - count + 1).values
    above = (magnitudes > threshold).nonzero().view(-1)
    equal = (magnitudes == threshold).nonzero().view(-1)
    return torch.cat([above, equal[: count - len(above)]]).sort().values


def code_form(count: int, total: int) -> tuple[int, torch.dtype]:
    """Return length and dtype of the code of `count` places below `total`: an integer each, or a bit for every
    number."""
    bytes_of_bits = -(-total // 8)
    if bytes_of_bits < count * INTEGERS.bits // 8 or total > INTEGERS.max:
        return bytes_of_bits, torch.uint8
    return count, torch.int32


def coded(places: torch.Tensor, total: int) -> torch.Tensor:
    """Return the code of ascending places below `total`."""
    if code_form(len(places), total)[1] == torch.int32:
        return places.to(torch.int32)
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[places] = True
    return torch.from_numpy(np.packbits(chosen.numpy(), bitorder="little"))


def decoded(code: torch.Tensor, count: int, total: int) -> torch.Tensor:
    """Return the places (count,) from a code of the right length and dtype. Raises ValueError for an invalid code."""
    places = code.long()
    if code.dtype == torch.uint8:
        places = torch.from_numpy(np.unpackbits(code.numpy(), bitorder="little").nonzero()[0])
    if len(places) != count or bool((places.diff() <= 0).any()) or bool((places < 0).any() | (places >= total).any()):
        raise ValueError(f"are not {count} ascending places below {total}")
    return places
