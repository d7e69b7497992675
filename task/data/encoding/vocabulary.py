"""Checks of a tokenizer's vocabulary: libraries silently make an empty tokenizer for a folder without one."""

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task.data.raw import DataError
from task.files.contents import CONFIG, listed, settings

SENTENCEPIECE = ("spm.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "tokenizer.model")
FILES = ("tokenizer.json", "vocab.json", "vocab.txt", *SENTENCEPIECE)  # files with a tokenizer's vocabulary
PACKAGE = "sentencepiece<0.2.3"  # later versions need a protobuf that Flower does not support
CURE = "save the model's own tokenizer into its folder, with tokenizer.save_pretrained()"
LAST = {"xlnet": "last"}  # model types whose `summary_type` sets the position a classifier reads, and its default


def check_usable(tokenizer: Any, base: Path) -> None:
    """Raise DataError for a tokenizer without a vocabulary, because its files are missing or empty."""
    own = FILES if tokenizer.vocab_files_names else ()  # tokenizers of bytes or characters need no file
    if own and not listed(base).keys() & set(own):
        problem = f"the base has no tokenizer: none of {', '.join(own)}"
        raise DataError(f"{base}: {problem}; {CURE}", f"{problem}; {CURE}")
    added = set(tokenizer.get_added_vocab()) | set(tokenizer.all_special_tokens)
    if not tokenizer.get_vocab().keys() - added:
        problem = "the base's tokenizer has an empty vocabulary: every word is unknown to it"
        raise DataError(f"{base}: {problem}; {CURE}", f"{problem}; {CURE}")


def check_fit(tokenizer: Any, module: Any, base: Path) -> None:
    """Raise DataError if the tokenizer has tokens without an embedding in the model."""
    rows = int(module.get_input_embeddings().weight.shape[0])
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        problem = f"the tokenizer has ids up to {largest}, and the model has {rows} embeddings"
        cure = "use the tokenizer that belongs to the model, or resize_token_embeddings() and save both"
        raise DataError(f"{base}: {problem}; {cure}", f"the base: {problem}; {cure}")


def unread(base: Path, error: BaseException) -> str:
    """Return why a tokenizer could not be read. For sentencepiece files the library always reports a missing package,
    whatever the error."""
    files = listed(base).keys()
    pieces = sorted(files & set(SENTENCEPIECE))
    if not pieces or "tokenizer.json" in files:
        return f"the base has no tokenizer that can be read: {error}"
    from google.protobuf.runtime_version import VersionError

    try:
        import_module("sentencepiece.sentencepiece_model_pb2")
    except (ImportError, VersionError) as missing:
        return f"the base's {pieces[0]} needs the package sentencepiece: pip install '{PACKAGE}' ({missing!s:.80})"
    return f"the base's {pieces[0]} is not a sentencepiece model, or not the kind that the model uses"


def unknown(ids: Iterable[Sequence[int] | NDArray[np.int32]], tokenizer: Any) -> float:
    """Return the share of unknown tokens among the tokens of rows, without special tokens."""
    ends = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    if tokenizer.unk_token_id in (None, *ends):  # GPT-2's unknown token is also its end token, and it knows all bytes
        return 0.0
    found = np.concatenate([np.empty(0, np.int64), *(np.asarray(row, np.int64) for row in ids)])
    strange = found == tokenizer.unk_token_id
    words = strange | ~np.isin(found, tokenizer.all_special_ids)
    return float(strange.sum() / max(words.sum(), 1))


def pads_left(tokenizer: Any, base: Path) -> bool:
    """Return whether short rows are padded on the left: if a classifier reads the last position, or if the tokenizer
    says so and the model reads a row's last token. Encoders read the first position, which must not be padding."""
    from transformers.models.auto import modeling_auto as auto

    found = settings(base / CONFIG) if (base / CONFIG).exists() else {}
    kind = str(found.get("model_type"))
    if kind in LAST:
        return bool(found.get("summary_type", LAST[kind]) == "last")
    decoder = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return tokenizer.padding_side == "left" and decoder


def takes_positions(base: Path) -> bool:
    """Return whether the base's classifier takes position ids."""
    import inspect

    import transformers

    kind = str(settings(base / CONFIG).get("model_type"))
    names = transformers.models.auto.modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    classifier = getattr(transformers, str(names.get(kind)), None)
    return classifier is not None and "position_ids" in inspect.signature(classifier.forward).parameters
