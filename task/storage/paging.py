"""Copies of large tensors and messages in a file: a process has in memory only the part of them that it is reading.

The file has no name, lies in the folder for temporary files (TMPDIR), and goes with the last tensor. The system caches
its pages as long as nothing else needs the memory. Writing to such a tensor changes the file.
"""

import logging
import mmap
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from weakref import WeakSet

import torch

LARGE = 2**24  # bytes from which a file is worth it
ALIGNED = 64  # bytes: tensors begin at multiples of it
LOG = logging.getLogger("flwr")
Buffer = bytearray | mmap.mmap
_files: WeakSet[mmap.mmap] = WeakSet()


def paged_out(tensors: Mapping[str, torch.Tensor], least: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return contiguous copies of tensors on the CPU, in their own dtype or in `least`, whichever is wider. They lie in
    a file if they are large together and there is room for it."""
    dtypes = {n: t.dtype if least is None else torch.promote_types(t.dtype, least) for n, t in tensors.items()}
    sizes = {name: tensor.numel() * dtypes[name].itemsize for name, tensor in tensors.items()}
    places, end = {}, 0
    for name, size in sizes.items():
        places[name] = end
        end += size + -size % ALIGNED
    if end < LARGE or (file := _file(_pieces(tensors, dtypes), end)) is None:
        return {name: _copy(tensor, dtypes[name]) for name, tensor in tensors.items()}
    return {
        name: torch.frombuffer(file, dtype=dtypes[name], count=tensor.numel(), offset=places[name]).view(tensor.shape)
        if sizes[name]
        else _copy(tensor, dtypes[name])
        for name, tensor in tensors.items()
    }


def stored(data: bytes) -> Buffer:
    """Return a writable copy of a message's bytes. It lies in a file if it is large and there is room for it."""
    file = _file([data], len(data)) if len(data) >= LARGE else None
    return bytearray(data) if file is None else file


def release_pages() -> None:
    """Give back what the process has in memory of all such files. No number changes."""
    for file in list(_files):
        file.madvise(mmap.MADV_DONTNEED)


def _file(pieces: Iterable[bytes | memoryview], size: int) -> mmap.mmap | None:
    """Return a new file of these bytes, `size` together, mapped; None where that cannot be, which the log then
    says."""
    if not hasattr(mmap, "MADV_DONTNEED"):  # Windows
        return None
    try:
        with tempfile.TemporaryFile(prefix="thistledown-") as file:
            for piece in pieces:
                file.write(piece)
                release_pages()  # a piece may lie in such a file
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0)
    except OSError as error:  # a full disk, or a machine without a folder that may be written
        said = "%d bytes stay in memory, as there can be no temporary file of them: %s; TMPDIR names another folder"
        LOG.warning(said, size, error)
        return None
    _files.add(mapped)
    return mapped


def _pieces(tensors: Mapping[str, torch.Tensor], dtypes: Mapping[str, torch.dtype]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of each tensor in a dtype, each followed by what fills it up to a multiple of `ALIGNED`."""
    for name, tensor in tensors.items():
        if not tensor.numel():
            continue
        flat = tensor.detach().to("cpu", dtypes[name]).contiguous().view(-1)
        yield flat.view(torch.uint8).numpy().data
        yield bytes(-flat.nbytes % ALIGNED)


def _copy(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
