"""How well a causal language model foretells completions, given all tokens before each (teacher forcing)."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn
from torch.nn.functional import cross_entropy

from task.data.rows import IGNORED, Positions, Rows
from task.kinds.base import LARGEST_EXPONENT
from task.training.parallel_evaluation import evaluate_in_parallel, portion

LOGITS = 2**25  # at a time: 128 MiB in float32; a longer row is a batch by itself


def score_tokens(module: nn.Module, rows: Rows, device: str, at_once: int = 1) -> dict[str, float]:
    """`loss`: the mean negative log-likelihood in nats of a completion token, over all tokens of all rows alike;
    `perplexity`: its exponential, e^100 at most; `accuracy`: the share of these tokens that get the largest logit.

    `module` is in evaluation mode. What each of `at_once` batches takes: its logits, (B, T, vocabulary) with at most
    its portion of `LOGITS` numbers or those of one row, and in float32 those of its completions, twice.
    """

    def score(positions: Positions) -> tuple[float, int, int]:
        batch = rows.batch(positions, device)
        targets = batch.pop("labels")[:, 1:]
        learned = targets != IGNORED
        output: Any = module(**batch, use_cache=False)
        own = output.logits[:, -batch["input_ids"].shape[1] :]  # behind those of soft prompts
        logits, wanted = own[:, :-1][learned].float(), targets[learned]
        loss = float(cross_entropy(logits, wanted, reduction="none").double().sum())
        return loss, int((logits.argmax(-1) == wanted).sum()), len(wanted)

    vocabulary = module.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
    scores = evaluate_in_parallel(score, _batches(rows.lengths, portion(LOGITS, device) // vocabulary), at_once)
    losses, correct, tokens = zip(*scores, strict=True)
    mean = math.fsum(losses) / sum(tokens)
    return {"loss": mean, "perplexity": math.exp(min(mean, LARGEST_EXPONENT)), "accuracy": sum(correct) / sum(tokens)}


def _batches(lengths: Positions, budget: int) -> Iterator[Positions]:
    """Rows of similar length together, so many that a batch has at most `budget` tokens, padding included."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        if end - start > 1 and (end - start) * longest > budget:
            yield order[start : end - 1]
            start = end - 1
    yield order[start:]
