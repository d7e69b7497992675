"""Preferences: a language model learns to write chosen answers rather than rejected ones (DPO)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from task.config import Data, TaskConfig
from task.data.encoding.completions import called
from task.data.encoding.preferences.encoder import PreferenceEncoder
from task.data.encoding.preferences.pairs import AnswerPairs
from task.data.encoding.texts import tokenizer_in
from task.data.guessing.guess import Guess, Sight
from task.data.guessing.prompted import preferred
from task.data.rows import IGNORED, Rows
from task.data.sources.base import Source
from task.kinds.base import Encoder, Positions
from task.kinds.causal_lm import CausalLM
from task.metrics import ACCURACY, LARGEST_LOSS, LOSS, Metric
from task.schema import option

if TYPE_CHECKING:
    import torch
    from torch import nn

    from task.prediction.answer import Exchange, Prediction


@dataclass(frozen=True)
class Preference(CausalLM):
    """Direct preference optimisation (DPO; Rafailov et al., arXiv 2305.18290, equation 7). A row is a prompt x with a
    chosen answer y_w and a rejected answer y_l:

        loss = -log sigmoid(h),   h = beta (log pi(y_w|x) / pi_ref(y_w|x) - log pi(y_l|x) / pi_ref(y_l|x))

    The reference pi_ref is the base, which computes within the tuned model while the tuning's tensors are switched off:
    no second model is in memory. beta times a logarithm is the implicit reward of an answer, up to what depends on x
    alone, and h is the margin between the two. With label smoothing e (section 3 of E. Mitchell, "A note on DPO with
    noisy preferences", 2023), the loss is -(1 - e) log sigmoid(h) - e log sigmoid(-h).
    """

    packs = False
    per_token = False
    needs_reference = True
    data_noun = "data with chosen and rejected answers"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "loss": LOSS,
        "accuracy": replace(ACCURACY, title="reward accuracy"),
        "margin": Metric("reward margin", -LARGEST_LOSS, LARGEST_LOSS),
    }
    begin_with: ClassVar[Mapping[str, object]] = {**CausalLM.begin_with, "learning-rate": 0.0001}

    beta: float = option(
        0.1,
        low=1e-6,
        high=1e3,
        doc="how strongly the model is kept near the base: smaller lets it move further",
    )
    label_smoothing: float = option(0.0, low=0.0, high=0.499, doc="share of rows that are expected to be the wrong way")

    # ------------------------------------------------------------------ settings
    def problems(self, config: TaskConfig) -> list[str]:
        """Return the problems, including tunings that leave nothing to compare with."""
        data, tuning, found = config.data, config.tuning, []
        if data.messages_column or data.completion_column:
            key = "messages" if data.messages_column else "completion"
            found.append(
                f"data.{key}-column is not for {self._key}, whose answers are in data.chosen-column and "
                "data.rejected-column; leave it out"
            )
            data = replace(data, messages_column="", completion_column="")
        if data.chosen_column == data.rejected_column:
            found.append(
                f"data.chosen-column and data.rejected-column are both '{data.chosen_column}'; name two columns"
            )
        if not tuning.has_reference:
            found.append(
                f"{self._key} compares with the base, and tuning = '{tuning.name}' with these options changes it; use "
                "tuning = 'lora', with lora.init = 'default' and lora.bias = 'none'"
            )
        return [*super().problems(replace(config, data=self._of_answers(data))), *found]

    def _of_answers(self, data: Data) -> Data:
        """Return the settings by which a language model reads the chosen answers."""
        if data.prompt_column:
            return replace(data, completion_column=data.chosen_column)
        return replace(data, messages_column=data.chosen_column)

    # ------------------------------------------------------------------ data
    def columns(self, data: Data) -> dict[str, str]:
        """Return the columns of prompts, if they have their own, and of answers."""
        prompts = {data.prompt_column: "data.prompt-column"} if data.prompt_column else {}
        return prompts | {data.chosen_column: "data.chosen-column", data.rejected_column: "data.rejected-column"}

    def recognise(self, sight: Sight) -> Guess | None:
        """Return the columns of chosen and rejected answers, and that of prompts beside them."""
        return preferred(sight)

    def required(self, data: Data) -> list[str]:
        """Return all columns."""
        return list(self.columns(data))

    def encoder(self, base: Path, data: Data, labels: tuple[str, ...], source: Source | None) -> Encoder:
        """Return an encoder of prompts with two answers."""
        return PreferenceEncoder.of(base, data)

    def stand_in(self, data: Data) -> dict[str, list[object]]:
        """Return a row with short answers, and one with long ones."""
        if data.prompt_column:
            long: list[object] = ["a", "a " * data.max_length]
            return {data.prompt_column: ["a", "a"], data.chosen_column: long, data.rejected_column: long}
        asked, contents = {"role": "user", "content": "a"}, ("a", "a " * data.max_length)
        both: list[object] = [[asked, {"role": "assistant", "content": content}] for content in contents]
        return {data.chosen_column: both, data.rejected_column: both}

    def explained(self, base: Path, data: Data, rows: Rows) -> Iterator[str]:
        """Yield the number of tokens to read and to compare."""
        assert isinstance(rows.inputs, AnswerPairs)
        pairs, own = rows.inputs.sequences, PreferenceEncoder.of(base, data).own
        learned, template = int((pairs.values != IGNORED).sum()), called(data.template, tokenizer_in(base), base)
        yield f"tokens    {int(pairs.lengths.sum()):,} in two sequences a row, {learned:,} of them in answers"
        yield f"          at most {own.max_length} a sequence; if rows are turns, by {template}"
        yield f"reference the base, within the same model; preference.beta = {self.beta:g}"

    # ------------------------------------------------------------------ learning
    def loss(self, module: "nn.Module", batch: Mapping[str, Any]) -> "torch.Tensor":
        """Return the mean loss of the pairs of a batch, in nats."""
        import torch

        from task.tunings.parts.reference import as_base

        with torch.no_grad(), as_base(module) as base:
            reference = _log_probabilities(base, batch)
        return self._losses(self._rewards(_log_probabilities(module, batch), reference)).mean()

    def count(self, batch: Mapping[str, Any]) -> "torch.Tensor":
        """Return the number of pairs."""
        import torch

        return torch.tensor(len(batch["labels"]) // 2, device=batch["labels"].device)

    def _rewards(self, own: "torch.Tensor", reference: "torch.Tensor") -> "torch.Tensor":
        """Return the implicit rewards (pairs, 2) of chosen and rejected answers, from the log-probabilities of their
        tokens (2 pairs, tokens). Differences of tokens are summed: they are small, and sums of logarithms are not."""
        return self.beta * (own - reference).sum(dim=1).view(-1, 2)

    def _losses(self, rewards: "torch.Tensor") -> "torch.Tensor":
        """Return the loss of every pair."""
        from torch.nn.functional import logsigmoid

        margins, wrong = rewards[:, 0] - rewards[:, 1], self.label_smoothing
        right = -logsigmoid(margins)
        return (1 - wrong) * right - wrong * logsigmoid(-margins) if wrong else right

    # ------------------------------------------------------------------ quality
    def evaluate(self, module: "nn.Module", rows: Rows, device: str, at_once: int = 1) -> dict[str, float]:
        """Return the mean loss (nats), the share of pairs whose chosen answer has the higher implicit reward
        (`accuracy`; a tie is half a pair), and the mean difference of the two rewards (`margin`)."""
        import torch

        from task.training.parallel_evaluation import evaluate_in_parallel
        from task.training.perplexity import batches_within
        from task.tunings.parts.reference import as_base

        batches = list(batches_within(module, rows, device, sequences=2))

        def probabilities(asked: "nn.Module") -> list[Any]:
            def score(positions: Positions) -> tuple[Any, ...]:
                return (_log_probabilities(asked, rows.batch(positions, device)).cpu().double(),)

            return evaluate_in_parallel(score, batches, at_once)

        with as_base(module) as base:  # for all batches, as several may be scored at a time
            references = probabilities(base)
        rewards = torch.cat([self._rewards(own, ref) for (own,), (ref,) in zip(probabilities(module), references)])
        margins = rewards[:, 0] - rewards[:, 1]
        return {
            "loss": math.fsum(self._losses(rewards).tolist()) / len(rows),
            "accuracy": float((margins > 0).double().mean() + (margins == 0).double().mean() / 2),
            "margin": math.fsum(margins.tolist()) / len(rows),
        }

    def asked(self, data: Data) -> dict[str, str]:
        """Return the column of prompts, or that of chosen answers if these are whole conversations."""
        key = "data.prompt-column" if data.prompt_column else "data.chosen-column"
        return dict.fromkeys(super().asked(self._of_answers(data)), key)

    def question(self, data: Data, value: str) -> dict[str, object]:
        """Return a text as a prompt, or as a user's turn."""
        return super().question(self._of_answers(data), value)

    def predict(
        self, module: "nn.Module", base: Path, data: Data, raw: Any, rows: Positions, device: str
    ) -> "Iterator[Prediction]":
        """Yield what the model writes in answer to each row."""
        return super().predict(module, base, self._of_answers(data), raw, rows, device)

    def exchanges(self, module: "nn.Module", base: Path, data: Data, rows: Rows, device: str) -> "Iterator[Exchange]":
        """Yield what the model writes greedily after the prompt of each row; chosen answers are the references."""
        assert isinstance(rows.inputs, AnswerPairs)
        chosen = replace(rows, inputs=rows.inputs.chosen)
        return super().exchanges(module, base, self._of_answers(data), chosen, device)

    def guessing(self, labels: Sequence[str]) -> dict[str, float]:
        """Return the metrics of the base, whose rewards are all zero."""
        return {"loss": math.log(2), "accuracy": 0.5, "margin": 0.0}


def _log_probabilities(module: "nn.Module", batch: Mapping[str, Any]) -> "torch.Tensor":
    """Return the log-probability of every learned token (sequences, tokens - 1), given those before it; 0 for the
    others. At least float32."""
    import torch
    from torch.nn.functional import cross_entropy

    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    labels = batch["labels"]
    output: Any = module(**inputs, use_cache=False)
    logits = output.logits[:, -labels.shape[1] :]  # after the logits of soft prompts
    wide = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    return -cross_entropy(wide.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none")
