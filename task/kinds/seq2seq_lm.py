"""Sequence to sequence: completions of prompts by an encoder-decoder, such as T5 and BART."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from task.config import Data, TaskConfig
from task.data.encoding.completions import Columns, incomplete
from task.data.encoding.seq2seq import Seq2SeqEncoder
from task.data.guessing.guess import Guess, Sight
from task.data.guessing.prompted import INSTRUCTION, PROMPT, prompted
from task.data.raw import Raw
from task.data.rows import Rows, TextPairs
from task.data.sources.base import Source
from task.files.contents import BaseError
from task.kinds.base import Encoder, Kind, Positions
from task.metrics import ACCURACY, LOSS, PERPLEXITY, Metric

if TYPE_CHECKING:
    from torch import nn

    from task.prediction.answer import Exchange, Prediction


@dataclass(frozen=True)
class Seq2SeqLM(Kind):
    """Sequence-to-sequence language modelling. A row is a prompt and its completion, or an instruction, an optional
    input, and an output. The encoder reads the first; each token of the completion and an end token are learned, given
    those before. Labels, if any, are categories that data is divided by."""

    auto_class = "AutoModelForSeq2SeqLM"
    peft_auto_class = "AutoPeftModelForSeq2SeqLM"
    peft_task_type = "SEQ_2_SEQ_LM"
    pipeline = "text2text-generation"
    piped = False
    base_noun = "an encoder-decoder model"
    data_noun = "data with columns of prompts and completions"
    drawn_head = False
    per_token = True
    writes = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "loss": LOSS,
        "perplexity": PERPLEXITY,
        "accuracy": replace(ACCURACY, title="token accuracy"),
    }
    chosen_by = "loss"
    begin_with: ClassVar[Mapping[str, object]] = {
        "model.name": "google/flan-t5-small",
        "num-server-rounds": 5,
        "learning-rate": 0.001,
        "local-steps": 4,
        "batch-size": 4,
    }

    def problems(self, config: TaskConfig) -> list[str]:
        """Return the problems, including columns that rows are not made of."""
        found, data = super().problems(config), config.data
        if data.messages_column:
            found.append(f"data.messages-column is for task.kind = 'causal-lm', not for {self._key}; leave it out")
        elif not Columns.of(data).instruction:
            found.append(f"{self._key} reads a prompt: name data.prompt-column or data.instruction-column")
        if data.template not in ("auto", "plain"):
            found.append(f"data.template = '{data.template:.40}' is for task.kind = 'causal-lm'; leave it out")
        if data.max_completion_length > data.max_length:  # whose length alone is compared with the model's, and tried
            found.append(
                f"data.max-completion-length = {data.max_completion_length} is more than data.max-length = "
                f"{data.max_length}, the most tokens of any text; set data.max-length to as many"
            )
        return [*found, *incomplete(data)]

    def columns(self, data: Data) -> dict[str, str]:
        """Return the columns of prompts, inputs and completions."""
        return Columns.of(data).keys()

    def recognise(self, sight: Sight) -> Guess | None:
        """Return the columns of prompts and completions, or of instructions."""
        found = prompted(sight)
        return found if found and (found.columns.get(PROMPT) or found.columns.get(INSTRUCTION)) else None

    def required(self, data: Data) -> list[str]:
        """Return the columns that data must have. The input column is required only if the user has named it."""
        return Columns.of(data).required

    def encoder(self, base: Path, data: Data, labels: tuple[str, ...], source: Source | None) -> Encoder:
        """Return an encoder of prompts and completions."""
        return Seq2SeqEncoder.of(base, data)

    def stand_in(self, data: Data) -> dict[str, list[object]]:
        """Return a short prompt and completion, and long ones."""
        texts: list[object] = ["a", "a " * data.max_length]
        return dict.fromkeys(self.required(data), texts)

    def explained(self, base: Path, data: Data, rows: Rows) -> Iterator[str]:
        """Yield the number of tokens to read and to write."""
        inputs, own = rows.inputs, Seq2SeqEncoder.of(base, data)
        assert isinstance(inputs, TextPairs)
        read, written = (int(tokens.lengths.sum()) for tokens in (inputs.tokens, inputs.targets))
        yield f"tokens    {read:,} to read, at most {own.max_length} a row"
        yield f"          {written:,} to write, all of them learned, at most {own.completion} a row"

    def check_model(self, module: Any, name: str) -> None:
        """Raise BaseError for a model without a decoder that reads an encoder."""
        if not module.config.is_encoder_decoder:
            problem = f"is no encoder-decoder, which {self._key} needs"
            raise BaseError(f"model.name = '{name}' {problem}", f"the base {problem}")

    def evaluate(self, module: "nn.Module", rows: Rows, device: str, at_once: int = 1) -> dict[str, float]:
        """Return the mean loss of a completion token, its exponential, and the share of tokens with the largest logit,
        each given the right tokens before it."""
        from task.training.perplexity import score_tokens

        return score_tokens(module, rows, device, at_once)

    def asked(self, data: Data) -> dict[str, str]:
        """Return the columns of prompts."""
        columns = Columns.of(data)
        return {name: columns.keys()[name] for name in columns.required if name != columns.output}

    def predict(
        self, module: "nn.Module", base: Path, data: Data, raw: Raw, rows: Positions, device: str
    ) -> "Iterator[Prediction]":
        """Yield what the model writes for each prompt."""
        from task.prediction.completions import completions

        yield from completions(module, Seq2SeqEncoder.of(base, data), raw, rows, device)

    def exchanges(self, module: "nn.Module", base: Path, data: Data, rows: Rows, device: str) -> "Iterator[Exchange]":
        """Yield each of these rows with what the model writes greedily."""
        from task.prediction.completions import exchanges

        return exchanges(module, Seq2SeqEncoder.of(base, data), rows, device)

    def guessing(self, labels: Sequence[str]) -> dict[str, float]:
        """Return no metrics: a guess of words would depend on how often each word occurs."""
        return {}
