"""Completions by a language model, which predicts each token from the tokens before it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from task.config import Data, TaskConfig
from task.data.encoding.chats.encoder import ChatEncoder, PairEncoder
from task.data.encoding.chats.named import NAMED
from task.data.encoding.completions import Columns, CompletionEncoder, incomplete
from task.data.encoding.prompt_tokens import Asked, asked_of
from task.data.encoding.texts import CHUNK, blank
from task.data.guessing.guess import Guess, Sight
from task.data.guessing.prompted import prompted
from task.data.raw import DataError, Raw, nearest
from task.data.rows import IGNORED, Completions, LabelledTokens, Rows
from task.data.settings import TEMPLATES, is_template, is_template_file
from task.data.sources.base import Source
from task.files.contents import BaseError
from task.kinds.base import Encoder, Kind, Positions
from task.metrics import ACCURACY, LOSS, PERPLEXITY, Metric

if TYPE_CHECKING:
    from torch import nn

    from task.prediction.answer import Exchange, Prediction

LONGEST = 2**16  # characters of a template


@dataclass(frozen=True)
class CausalLM(Kind):
    """Causal language modelling. A row is a conversation, of which the assistant's turns are learned; a prompt and its
    completion; or an instruction, an optional input, and an output. Completion or output and an end token are learned,
    given everything before; without instructions the whole output is learned. Labels, if any, are categories that data
    is divided by."""

    auto_class = "AutoModelForCausalLM"
    peft_auto_class = "AutoPeftModelForCausalLM"
    peft_task_type = "CAUSAL_LM"
    pipeline = "text-generation"
    base_noun = "a causal language model"
    data_noun = "data with a column of outputs"
    drawn_head = False
    packs = True
    per_token = True
    writes = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "loss": LOSS,
        "perplexity": PERPLEXITY,
        "accuracy": replace(ACCURACY, title="token accuracy"),
    }
    chosen_by = "loss"
    begin_with: ClassVar[Mapping[str, object]] = {
        "model.name": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "num-server-rounds": 5,
        "learning-rate": 0.001,
        "local-steps": 4,
        "batch-size": 4,
    }

    def problems(self, config: TaskConfig) -> list[str]:
        """Return the problems, including those of the length of completions."""
        found, data = super().problems(config), config.data
        if data.max_completion_length >= data.max_length:
            found.append(
                f"data.max-completion-length = {data.max_completion_length} leaves none of data.max-length = "
                f"{data.max_length} to the prompt; it must be less, or 0 for half of them"
            )
        if config.evaluate_generations and not (data.messages_column or Columns.of(data).instruction):
            found.append(
                f"evaluate-generations = {config.evaluate_generations}: outputs are learned whole, nothing is asked; "
                "name data.instruction-column, data.prompt-column or data.messages-column, or set it to 0"
            )
        return [*found, *incomplete(data), *_templates(data.template)]

    def resolve(self, data: Data) -> Data:
        """Return the settings with the date for chat templates, and the text of a template file; a resumed run keeps
        both. Raises DataError for a file that cannot be read."""
        template = _read(Path(data.template)) if is_template_file(data.template) else data.template
        return replace(data, template=template, date=data.date or date.today().isoformat())

    def columns(self, data: Data) -> dict[str, str]:
        """Return the columns of conversations, else of prompts, inputs and outputs."""
        if data.messages_column:
            return {data.messages_column: "data.messages-column"}
        return Columns.of(data).keys()

    def recognise(self, sight: Sight) -> Guess | None:
        """Return the columns of conversations, of prompts and completions, of instructions, or of plain text."""
        return prompted(sight)

    def required(self, data: Data) -> list[str]:
        """Return the columns that data must have. The input column is required only if the user has named it."""
        return [data.messages_column] if data.messages_column else Columns.of(data).required

    def missing(self, raw: Raw, column: str) -> NDArray[np.bool_]:
        """Return which rows (N,) are empty in an input column: a text without visible characters, a list without turns.
        Raises DataError for any other value."""
        empty = np.zeros(len(raw), bool)
        for row, value in enumerate(raw.values(column)):
            empty[row] = blank(value) or value == []
            if not empty[row] and not isinstance(value, str | list):
                raise raw.fault(row, column, "neither a text nor a list of turns", f", but {value!r:.60}")
        return empty

    def encoder(self, base: Path, data: Data, labels: tuple[str, ...], source: Source | None) -> Encoder:
        """Return an encoder of conversations, or of prompts and completions."""
        if data.messages_column:
            return ChatEncoder.of(base, data)
        texts = CompletionEncoder.of(base, data)
        return PairEncoder(texts, ChatEncoder.of(base, data)) if data.prompt_column else texts

    def stand_in(self, data: Data) -> dict[str, list[object]]:
        """Return a short and a long conversation, or output."""
        if data.messages_column:
            asked_of = {"role": "user", "content": "a"}
            answers = [{"role": "assistant", "content": content} for content in ("a", "a " * data.max_length)]
            return {data.messages_column: [[asked_of, answer] for answer in answers]}
        if data.prompt_column:
            return {data.prompt_column: ["a", "a"], data.completion_column: ["a", "a " * data.max_length]}
        asked: dict[str, list[object]] = {
            name: ["a", "a"] for name in (data.instruction_column, data.input_column) if name
        }
        outputs: dict[str, list[object]] = {data.output_column: ["a", "a " * data.max_length]}
        return outputs | asked

    def explained(self, base: Path, data: Data, rows: Rows) -> Iterator[str]:
        """Yield the number of given and of learned tokens, and the source of the prompts."""
        inputs, encoder = rows.inputs, CompletionEncoder.of(base, data)
        if isinstance(inputs, LabelledTokens):
            learned, source, share = int((inputs.values != IGNORED).sum()), ChatEncoder.of(base, data).source(), ""
        else:
            assert isinstance(inputs, Completions)
            learned = int((inputs.tokens.lengths - inputs.prompts).sum())
            source = encoder.source_of_prompts()
            share = f", at most {encoder.completion} of them its completion" if encoder.columns.instruction else ""
        whole = int(inputs.tokens.lengths.sum())
        yield f"tokens    {whole:,} to train on, {learned:,} of them learned; {source}"
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

    def asked(self, data: Data) -> dict[str, str]:
        """Return the columns of prompts; without these, that of texts, which are continued."""
        return Asked(Path(), data).columns()

    def question(self, data: Data, value: str) -> dict[str, object]:
        """Return a text as a prompt, or as a user's turn."""
        turn: object = [{"role": "user", "content": value}] if data.messages_column else value
        return dict.fromkeys(list(self.asked(data))[:1], turn)

    def predict(
        self, module: "nn.Module", base: Path, data: Data, raw: Raw, rows: Positions, device: str
    ) -> "Iterator[Prediction]":
        """Yield what the model writes in answer to each row."""
        from task.prediction.generation import generate

        asked, tokenizer = asked_of(base, data)
        for start in range(0, len(rows), CHUNK):
            prompts = asked.prompts(tokenizer, raw, rows[start : start + CHUNK])
            yield from generate(module, tokenizer, prompts, asked.most_new, device, base)

    def exchanges(self, module: "nn.Module", base: Path, data: Data, rows: Rows, device: str) -> "Iterator[Exchange]":
        """Yield what the model writes greedily after the prompt of each row."""
        from task.prediction.exchanges import exchanges

        return exchanges(module, base, data, rows, device)

    def guessing(self, labels: Sequence[str]) -> dict[str, float]:
        """Return no metrics: a guess of words would depend on how often each word occurs."""
        return {}


def _templates(template: str) -> Iterator[str]:
    """Yield the problem of a value of `data.template`."""
    if is_template(template):
        if len(template) > LONGEST:
            yield f"data.template has {len(template):,} characters; at most {LONGEST:,} are read"
    elif not is_template_file(template) and template not in (*TEMPLATES, *NAMED):
        near = nearest(template, (*TEMPLATES, *NAMED))
        hint = f"; did you mean '{near}'?" if near else ""
        yield (
            f"data.template must be one of {', '.join((*TEMPLATES, *NAMED))}, or a file that ends in .jinja, not "
            f"'{template:.40}'{hint}"
        )


def _read(path: Path) -> str:
    """Return the text of a template file of the server. Raises DataError."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"data.template = '{path}' cannot be read: {error}") from error
    if problem := "" if is_template(text) else "it has no {{ }} or {% %}":
        raise DataError(f"data.template = '{path}' is not a Jinja template: {problem}")
    for problem in _templates(text):
        raise DataError(f"data.template = '{path}': {problem}")
    return text
