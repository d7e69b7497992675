"""Evaluation of a language model on completions, given all tokens before each one (teacher forcing)."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn
from torch.nn.functional import cross_entropy

from task.data.rows import IGNORED, Positions, Rows, TextPairs
from task.metrics import LARGEST_EXPONENT
from task.training.parallel_evaluation import evaluate_in_parallel, portion

LOGITS = 2**25  # logits at a time: 128 MiB in float32; a longer row is a batch of its own


def score_tokens(module: nn.Module, rows: Rows, device: str, at_once: int = 1) -> dict[str, float]:
    """Return the metrics of a model, in evaluation mode, on the completion tokens of all rows, weighted equally.

    `loss` is the mean negative log-likelihood of a token, in nats; `perplexity` is its exponential, at most e^100;
    `accuracy` is the share of tokens that get the largest logit. Each of `at_once` batches needs memory for its logits
    (B, T, vocabulary), with at most its portion of `LOGITS` numbers or one row, and twice for the float32 logits of its
    completions.
    """

    decodes = isinstance(rows.inputs, TextPairs)  # then the logits at a label are those of its own token

    def score(positions: Positions) -> tuple[float, int, int]:
        batch = rows.batch(positions, device)
        labels = batch["labels"] if decodes else batch.pop("labels")  # a decoder reads them, shifted by one
        output: Any = module(**batch, use_cache=False)
        own = output.logits[:, -labels.shape[1] :]  # after the logits of soft prompts
        own, targets = (own, labels) if decodes else (own[:, :-1], labels[:, 1:])
        learned = targets != IGNORED
        logits, wanted = own[learned].float(), targets[learned]
        loss = float(cross_entropy(logits, wanted, reduction="none").double().sum())
        return loss, int((logits.argmax(-1) == wanted).sum()), len(wanted)

    scores = evaluate_in_parallel(score, batches_within(module, rows, device), at_once)
    losses, correct, tokens = zip(*scores, strict=True)
    mean = math.fsum(losses) / sum(tokens)
    return {"loss": mean, "perplexity": math.exp(min(mean, LARGEST_EXPONENT)), "accuracy": sum(correct) / sum(tokens)}


def batches_within(module: nn.Module, rows: Rows, device: str, sequences: int = 1) -> Iterator[Positions]:
    """Yield batches of rows of similar length, whose logits are at most a portion of `LOGITS`; a row is so many
    sequences."""
    vocabulary = module.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
    return _batches(rows.lengths, portion(LOGITS, device) // (vocabulary * sequences))


def _batches(lengths: Positions, budget: int) -> Iterator[Positions]:
    """Yield batches of rows of similar length, with at most `budget` tokens each, padding included."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        if end - start > 1 and (end - start) * longest > budget:
            yield order[start : end - 1]
            start = end - 1
    yield order[start:]
