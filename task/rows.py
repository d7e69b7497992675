"""Prepared rows: model inputs and labels on disk, mapped into memory, and batches of them as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Pixels:
    """Images of the model's size: `values` (N, C, H, W) uint8; a model sees (values * scale - mean) / std."""

    values: NDArray[np.uint8]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, rows: Positions, device: "str | torch.device") -> "dict[str, torch.Tensor]":
        """`pixel_values` (B, C, H, W) float32. The bytes go to the device, the arithmetic is done there."""
        import torch

        pixels = torch.from_numpy(self.values[rows]).to(device).to(torch.float32)
        mean, std = (self._by_channel(numbers, device) for numbers in (self.mean, self.std))
        return {"pixel_values": pixels.mul_(self.scale).sub_(mean).div_(std)}

    @staticmethod
    def _by_channel(numbers: tuple[float, ...], device: "str | torch.device") -> Any:
        import torch

        if len(set(numbers)) == 1:
            return numbers[0]
        return torch.tensor(numbers, device=device).view(-1, 1, 1)


@dataclass(frozen=True)
class Tokens:
    """Texts as token ids: row i is `ids[offsets[i]:offsets[i + 1]]`; ids int32, offsets (N + 1,) int64."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    pad: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def batch(self, rows: Positions, device: "str | torch.device") -> "dict[str, torch.Tensor]":
        """`input_ids` and `attention_mask` (B, longest of the batch) int64, padded on the right."""
        import torch

        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        steps = np.arange(lengths.max(initial=0))
        mask = steps < lengths[:, None]
        ids = np.full(mask.shape, self.pad, np.int64)
        ids[mask] = self.ids[(starts[:, None] + steps)[mask]]
        tensors = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        return {name: torch.from_numpy(tensor).to(device) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Rows:
    """Rows of a data set, or a selection of them that copies nothing.

    `all_labels` (N,) and `all_ids` (N,) (natural clients, where the data names them), both int64, belong to
    all rows of `inputs`; `indices` (M,) selects. `labels` and `ids` are those of the selection.
    """

    inputs: Pixels | Tokens
    all_labels: NDArray[np.int64]
    names: tuple[str, ...]
    all_ids: NDArray[np.int64] | None = None
    indices: Positions | None = None

    def __len__(self) -> int:
        return len(self.all_labels if self.indices is None else self.indices)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The label of every row (M,), as a position in `names`."""
        return self.all_labels if self.indices is None else self.all_labels[self.indices]

    @property
    def ids(self) -> NDArray[np.int64] | None:
        """The number of every row's natural client (M,), where `data.id-column` names one."""
        if self.all_ids is None or self.indices is None:
            return self.all_ids
        return self.all_ids[self.indices]

    def select(self, positions: "Sequence[int] | Positions | torch.Tensor") -> "Rows":
        """The rows at these positions, in this order."""
        return replace(self, indices=self._rows(positions))

    def batch(
        self, positions: "Sequence[int] | Positions | torch.Tensor", device: "str | torch.device" = "cpu"
    ) -> "dict[str, torch.Tensor]":
        """The model's keyword arguments for the rows at these positions, `labels` (B,) int64 among them."""
        import torch

        rows = self._rows(positions)
        return self.inputs.batch(rows, device) | {"labels": torch.from_numpy(self.all_labels[rows]).to(device)}

    def _rows(self, positions: "Sequence[int] | Positions | torch.Tensor") -> Positions:
        chosen = np.asarray(positions, dtype=np.int64)
        return chosen if self.indices is None else self.indices[chosen]


def mapped(path: Path) -> NDArray[Any]:
    """A .npy file mapped into memory, as a plain array: memmap's own indexing is slower."""
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    return array
