"""Updates stored in a file, to be read again: memory does not grow with their number."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch

from strategies.algebra.tensors import raw
from strategies.exchange.types import Update

Form = tuple[str, torch.dtype, torch.Size]  # of a tensor: its name, dtype and shape


class Spool:
    """A temporary file of updates, bit for bit; it is deleted when closed. It lies in the folder for temporary files
    (TMPDIR).

    It is `full` once an update would make the file larger than `limit` bytes (None: any size): then it lacks some.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.full = False
        self._limit, self._end = limit, 0
        self._file: Any = tempfile.TemporaryFile(prefix="thistledown-")  # noqa: SIM115 - see __exit__
        self._kept: list[tuple[Update, int, list[Form]]] = []  # without tensors, where these begin, and what they are

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, update: Update) -> None:
        """Append an update."""
        if self._limit is not None and self._end + sum(t.nbytes for t in update.delta.values()) > self._limit:
            self.full = True
        if self.full:
            return
        forms = [(name, tensor.dtype, tensor.shape) for name, tensor in update.delta.items()]
        self._kept.append((replace(update, delta={}), self._end, forms))
        self._file.seek(self._end)
        for tensor in update.delta.values():
            self._end += self._file.write(raw(tensor))

    def passing(self, updates: Iterable[Update]) -> Iterator[Update]:
        """Yield updates as they arrive, and store them."""
        for update in updates:
            self.add(update)
            yield update

    @property
    def heads(self) -> list[Update]:
        """Return all updates without their tensors."""
        return [update for update, *_ in self._kept]

    def __iter__(self) -> Iterator[Update]:
        """Yield the updates in the order that they were added."""
        for update, start, forms in self._kept:
            self._file.seek(start)
            yield replace(update, delta={name: self._read(dtype, shape) for name, dtype, shape in forms})

    def _read(self, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
        """Return the next tensor of the file."""
        tensor = torch.empty(shape, dtype=dtype)
        if tensor.numel():
            self._file.readinto(raw(tensor))
        return tensor
