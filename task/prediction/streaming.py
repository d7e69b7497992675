"""A language model whose answers are handed out while it writes them."""

from collections.abc import Callable
from typing import Any

import torch

Write = Callable[[str], None]  # takes the next piece of an answer
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # stands for the bytes of a sign whose other bytes are still to come


class Streamed:
    """A model like `module`, to answer one prompt at a time: `write` gets each answer in pieces as it is generated.

    The pieces of an answer make the whole answer, without white space around it. Where a tokenizer changes what it has
    already written, the pieces are followed by a line break and the answer as it ended.
    """

    def __init__(self, module: Any, tokenizer: Any, write: Write) -> None:
        self._module, self._tokenizer, self._write = module, tokenizer, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def generate(self, **arguments: Any) -> Any:
        """Return the token ids that the model generates."""
        return self._module.generate(**arguments, streamer=_Pieces(self._tokenizer, self._write))


class _Pieces:
    """What transformers calls with the prompt, with each new token, and at the end."""

    def __init__(self, tokenizer: Any, write: Write) -> None:
        self._tokenizer, self._write = tokenizer, write
        self._ids: list[int] | None = None  # of the answer; None: the prompt is still to come
        self._written = ""

    def put(self, value: torch.Tensor) -> None:
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        text = self._text()
        if text.startswith(self._written) and not text.endswith(UNFINISHED):
            self._write(text[len(self._written) :])
            self._written = text

    def end(self) -> None:
        text = self._text()
        rest = text[len(self._written) :] if text.startswith(self._written) else f"\n{text}"
        if rest:
            self._write(rest)

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text.strip()
