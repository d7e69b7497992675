"""Prepared rows: model inputs and labels on disk, mapped into memory, and their batches as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Positions = NDArray[np.int64]
IGNORED = -100  # in place of a label: transformers leaves such positions out of the loss


class Inputs(Protocol):
    """Model inputs of rows, mapped into memory."""

    def __len__(self) -> int: ...
    def batch(self, rows: Positions, device: "str | torch.device") -> "dict[str, torch.Tensor]":
        """Return the model's keyword arguments for these rows. If they have `labels`, these replace the rows' own."""

    @property
    def tokens(self) -> "Tokens | None":
        """The tokens of all sequences of the rows; None for images."""

    @property
    def lengths(self) -> "NDArray[np.int64] | None":
        """The tokens in the longest sequence of every row (N,); None for images."""

    def stretched(self, rows: Positions, length: int) -> "Inputs":
        """Return two rows: the first of `rows` with `length` tokens, those between its first and last repeated or left
        out, and the second unchanged. Raises TypeError for images."""


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
        """Return `pixel_values` (B, C, H, W) float32. Bytes are copied to the device and computed with there."""
        import torch

        pixels = torch.from_numpy(self.values[rows]).to(device).to(torch.float32)
        mean, std = (self._by_channel(numbers, device) for numbers in (self.mean, self.std))
        return {"pixel_values": pixels.mul_(self.scale).sub_(mean).div_(std)}

    tokens = lengths = None

    def stretched(self, rows: Positions, length: int) -> "Pixels":
        """Raise TypeError: all images have the model's size."""
        raise TypeError("images have no tokens")

    @staticmethod
    def _by_channel(numbers: tuple[float, ...], device: "str | torch.device") -> Any:
        import torch

        if len(set(numbers)) == 1:
            return numbers[0]
        return torch.tensor(numbers, device=device).view(-1, 1, 1)


@dataclass(frozen=True)
class Tokens:
    """Texts as token ids: row i is `ids[offsets[i]:offsets[i + 1]]`; ids int32, offsets (N + 1,) int64. Short rows of a
    batch are padded with `pad`, on the right or the `left`; `positions`: the model then needs position ids."""

    ids: NDArray[Any]
    offsets: NDArray[np.int64]
    pad: int
    left: bool = False
    positions: bool = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def batch(self, rows: Positions, device: "str | torch.device") -> "dict[str, torch.Tensor]":
        """Return `input_ids` and `attention_mask` (B, longest of the batch) int64 and, if needed, `position_ids` of the
        same shape, which count from a row's first token."""
        import torch

        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        longest = lengths.max(initial=0)
        steps = np.arange(longest) - (longest - lengths if self.left else np.zeros_like(lengths))[:, None]
        mask = (steps >= 0) & (steps < lengths[:, None])
        ids = np.full(mask.shape, self.pad, np.int64)
        ids[mask] = self.ids[(starts[:, None] + steps)[mask]]
        tensors = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        if self.positions:
            tensors["position_ids"] = steps.clip(0)
        return {name: torch.from_numpy(tensor).to(device) for name, tensor in tensors.items()}

    @property
    def tokens(self) -> "Tokens":
        """Return the tokens themselves."""
        return self

    def stretched(self, rows: Positions, length: int) -> "Tokens":
        """Return two of these rows, the first of `length` tokens."""
        ids = self.of_two(self.ids, rows, length)
        return replace(self, ids=np.concatenate(ids), offsets=np.cumsum([0, *map(len, ids)]))

    def of_two(self, values: NDArray[Any], rows: Positions, length: int) -> list[NDArray[Any]]:
        """Return the values of two rows, one per token, with the first row changed to `length` tokens."""
        first, second = (values[self.offsets[row] : self.offsets[row + 1]] for row in rows)
        inside = first[1:-1] if len(first) > 2 else first
        return [np.concatenate([first[:1], np.resize(inside, max(length - 2, 0)), first[-1:]])[-length:], second]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the number of tokens of every row (N,)."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class OfTokens:
    """Rows of a sequence each, with more than its tokens."""

    tokens: Tokens

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the number of tokens of every row (N,)."""
        return self.tokens.lengths


@dataclass(frozen=True)
class Completions(OfTokens):
    """Rows of tokens with a given start: the first `prompts[i]` tokens of row i, at least one and never all, are given,
    and the others are learned. prompts (N,) int64."""

    prompts: NDArray[np.int64]

    def batch(self, rows: Positions, device: "str | torch.device") -> "dict[str, torch.Tensor]":
        """Return the batch of `Tokens`, and `labels` of the same shape, int64: learned ids, else `IGNORED`."""
        import torch

        batch = self.tokens.batch(rows, device)
        ids, given = batch["input_ids"], torch.from_numpy(self.prompts[rows]).to(device)
        learned = (torch.arange(ids.shape[1], device=device) >= given[:, None]) & batch["attention_mask"].bool()
        return batch | {"labels": ids.where(learned, IGNORED)}

    def stretched(self, rows: Positions, length: int) -> "Completions":
        """Return two of these rows, the first of `length` tokens."""
        tokens = self.tokens.stretched(rows, length)
        return Completions(tokens, np.minimum(self.prompts[rows], tokens.lengths - 1))


@dataclass(frozen=True)
class LabelledTokens(OfTokens):
    """Rows of tokens with a label each: `values` int64, one per id in `tokens.ids`; `IGNORED`: a token without one."""

    values: NDArray[np.int64]

    def batch(self, rows: Positions, device: "str | torch.device") -> "dict[str, torch.Tensor]":
        """Return the batch of `Tokens`, and `labels` of the same shape, int64, `IGNORED` in padding."""
        labels = replace(self.tokens, ids=self.values, pad=IGNORED).batch(rows, device)["input_ids"]
        return self.tokens.batch(rows, device) | {"labels": labels}

    def stretched(self, rows: Positions, length: int) -> "LabelledTokens":
        """Return two of these rows, the first of `length` tokens."""
        values = np.concatenate(self.tokens.of_two(self.values, rows, length))
        return LabelledTokens(self.tokens.stretched(rows, length), values)


@dataclass(frozen=True)
class TextPairs(OfTokens):
    """Texts to read (`tokens`) and texts to write (`targets`), which an encoder-decoder learns given the first; at most
    `longest` tokens of them."""

    targets: Tokens
    longest: int

    def batch(self, rows: Positions, device: "str | torch.device") -> "dict[str, torch.Tensor]":
        """Return the batch of `tokens`, and `labels` (B, longest target of the batch) int64, `IGNORED` in padding."""
        labels = replace(self.targets, pad=IGNORED).batch(rows, device)["input_ids"]
        return self.tokens.batch(rows, device) | {"labels": labels}

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the number of tokens of every row (N,), read or written, whichever are more."""
        return np.maximum(self.tokens.lengths, self.targets.lengths)

    def stretched(self, rows: Positions, length: int) -> "TextPairs":
        """Return two of these rows, the first of `length` tokens to read, and as many to write as there may be."""
        targets = self.targets.stretched(rows, min(length, self.longest))
        return replace(self, tokens=self.tokens.stretched(rows, length), targets=targets)


@dataclass(frozen=True)
class Targets(OfTokens):
    """Texts with numbers to learn: `values` (N,), or (N, K) for K outputs of the head."""

    values: NDArray[Any]

    def batch(self, rows: Positions, device: "str | torch.device") -> "dict[str, torch.Tensor]":
        """Return the batch of `Tokens`, and `labels` (B,) or (B, K) float32."""
        import torch

        labels = torch.from_numpy(self.values[rows].astype(np.float32)).to(device)
        return self.tokens.batch(rows, device) | {"labels": labels}

    def stretched(self, rows: Positions, length: int) -> "Targets":
        """Return two of these rows, the first of `length` tokens."""
        return Targets(self.tokens.stretched(rows, length), self.values[rows])


@dataclass(frozen=True)
class Rows:
    """Rows of a data set, or a selection of them, without copies.

    `all_labels` (N,) and `all_ids` (N,) (natural clients, if the data names them), both int64, are for all rows of
    `inputs` (`key`: in a store; `notices` on them); `indices` (M,) selects. `labels` and `ids` are for the selection.
    """

    inputs: Inputs
    all_labels: NDArray[np.int64]
    names: tuple[str, ...]
    all_ids: NDArray[np.int64] | None = None
    indices: Positions | None = None
    notices: tuple[str, ...] = ()
    key: str = ""

    def __len__(self) -> int:
        return len(self.all_labels if self.indices is None else self.indices)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Return the label of every row (M,), as a position in `names`."""
        return self.all_labels if self.indices is None else self.all_labels[self.indices]

    @property
    def ids(self) -> NDArray[np.int64] | None:
        """Return the number of every row's natural client (M,); None without `data.id-column`."""
        return self.all_ids if self.all_ids is None or self.indices is None else self.all_ids[self.indices]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the number of tokens of every row (M,), of the longest sequence of it. Raises TypeError for images."""
        if (lengths := self.inputs.lengths) is None:
            raise TypeError("images have no tokens")
        return lengths[self._rows(np.arange(len(self)))]

    def select(self, positions: "Sequence[int] | Positions | torch.Tensor") -> "Rows":
        """Return the rows at these positions, in this order."""
        return replace(self, indices=self._rows(positions))

    def batch(
        self, positions: "Sequence[int] | Positions | torch.Tensor", device: "str | torch.device" = "cpu"
    ) -> "dict[str, torch.Tensor]":
        """Return the model's keyword arguments for the rows at these positions, with `labels`: the rows' own (B,)
        int64, or those that the inputs have."""
        import torch

        rows = self._rows(positions)
        return {"labels": torch.from_numpy(self.all_labels[rows]).to(device)} | self.inputs.batch(rows, device)

    def _rows(self, positions: "Sequence[int] | Positions | torch.Tensor") -> Positions:
        chosen = np.asarray(positions, dtype=np.int64)
        return chosen if self.indices is None else self.indices[chosen]


def mapped(path: Path) -> NDArray[Any]:
    """Return a .npy file mapped into memory, as a plain array: memmap's own indexing is slower."""
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    return array
