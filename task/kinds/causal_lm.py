"""Completions by a language model, which predicts each token from the tokens before it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from task.config import Data, TaskConfig
from task.data.encoding.completions import Columns, CompletionEncoder
from task.data.labels import Labels, category_names, labelled
from task.data.raw import Raw
from task.data.rows import Completions, Rows
from task.data.sources.base import Source
from task.files.contents import BaseError
from task.kinds.base import ACCURACY, LOSS, PERPLEXITY, Encoder, Kind, Metric, Positions

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CausalLM(Kind):
    """Causal language modelling. A row is an instruction, an optional input, and an output. The output and an end token
    are learned, given everything before; without instructions the whole output is learned. Labels, if any, are
    categories that data is divided by."""

    auto_class = "AutoModelForCausalLM"
    peft_auto_class = "AutoPeftModelForCausalLM"
    peft_task_type = "CAUSAL_LM"
    pipeline = "text-generation"
    base_noun = "a causal language model"
    data_noun = "data with a column of outputs"
    drawn_head = False
    per_token = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "loss": LOSS,
        "perplexity": PERPLEXITY,
        "accuracy": replace(ACCURACY, title="token accuracy"),
    }
    chosen_by = "loss"

    def problems(self, config: TaskConfig) -> list[str]:
        """Return the problems, including those of the length of completions."""
        found, data = super().problems(config), config.data
        if data.max_completion_length >= data.max_length:
            found.append(
                f"data.max-completion-length = {data.max_completion_length} leaves none of data.max-length = "
                f"{data.max_length} to the prompt; it must be less, or 0 for half of them"
            )
        return found

    def resolve(self, data: Data) -> Data:
        """Return the settings with the date for chat templates, which a resumed run keeps."""
        return data if data.date else replace(data, date=date.today().isoformat())

    def columns(self, data: Data) -> dict[str, str]:
        """Return the columns of instructions, inputs and outputs."""
        return Columns.of(data).keys()

    def required(self, data: Data) -> list[str]:
        """Return the columns that data must have. The input column is required only if the user has named it."""
        return Columns.of(data).required

    def labels_of(
        self, raw: Raw, column: str, given: Sequence[str], rows: Positions, by_position: bool | None, most: int = 0
    ) -> Labels:
        """Return the categories of rows. They are not learned, so one is enough."""
        return labelled(raw, column, category_names(raw, column, given, rows), rows, by_position)

    def encoder(self, base: Path, data: Data, labels: tuple[str, ...], source: Source) -> Encoder:
        """Return an encoder of prompts and completions."""
        return CompletionEncoder.of(base, data)

    def stand_in(self, data: Data) -> dict[str, list[object]]:
        """Return a short and a long output."""
        asked: dict[str, list[object]] = {
            name: ["a", "a"] for name in (data.instruction_column, data.input_column) if name
        }
        outputs: dict[str, list[object]] = {data.output_column: ["a", "a " * data.max_length]}
        return outputs | asked

    def explained(self, base: Path, data: Data, rows: Rows) -> Iterator[str]:
        """Yield the number of given and of learned tokens, and the source of the prompts."""
        inputs, encoder = rows.inputs, CompletionEncoder.of(base, data)
        assert isinstance(inputs, Completions)
        whole, given = int(inputs.tokens.lengths.sum()), int(inputs.prompts.sum())
        yield f"tokens    {whole:,} to train on, {whole - given:,} of them learned; {encoder.source_of_prompts()}"
        share = f", at most {encoder.completion} of them its completion" if encoder.columns.instruction else ""
        yield f"          at most {encoder.max_length} a row{share}"

    def check_model(self, module: Any, name: str) -> None:
        """Raise BaseError for a model that loads as a causal model and is not one: a model that sees future tokens has
        nothing to predict."""
        import torch

        module.eval()
        with torch.no_grad():
            one, other = (module(input_ids=torch.tensor([[0, following]])).logits[0, 0] for following in (1, 2))
        near = torch.finfo(one.dtype).eps ** 0.5 * float(one.abs().max())  # experts may be batched differently
        if float((one - other).abs().max()) > near:
            problem = "sees the tokens that it must predict; task.kind = 'causal-lm' needs a causal language model"
            raise BaseError(f"model.name = '{name}' {problem}", f"the base {problem}")

    def evaluate(self, module: "nn.Module", rows: Rows, device: str, at_once: int = 1) -> dict[str, float]:
        """Return the mean loss of a completion token, its exponential, and the share of tokens with the largest
        logit."""
        from task.training.perplexity import score_tokens

        return score_tokens(module, rows, device, at_once)

    def guessing(self, labels: Sequence[str]) -> dict[str, float]:
        """Return no metrics: a guess of words would depend on how often each word occurs."""
        return {}
