"""A dry run: the model is scored and trained once before the rounds, so that errors appear before any round starts.

Two rows are enough: the longest that the settings allow and the shortest in the data, each alone, in one batch, and as
a local step. After a failure, shorter rows and other tunings are tried to find out what to change.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from task.data.encoding.packing import fill, packed
from task.data.extremes import extremes, stretched
from task.data.rows import IGNORED, TextPairs
from task.device import ran_out
from task.model_settings import UNQUANTIZED
from task.models.model import TunedModel, build
from task.models.tuning import first_sentence
from task.training.batches import TooFewRows, Unsuited, least_rows
from task.training.trainer import Trainer, evaluate
from task.tunings import registry

SLACK = 3.0  # tolerance between logits in a batch and alone, in units of the square root of the dtype's precision

Wrapped = Callable[[Trainer], Trainer]


class DryRunError(ValueError):
    """A model that cannot be trained with these settings. `public` leaves out the library's own message."""

    def __init__(self, message: str, public: str = "") -> None:
        super().__init__(message)
        self.public = public or message


def dry_run(model: TunedModel, trainer: Trainer, wrapped: Wrapped = lambda trainer: trainer) -> tuple[str, ...]:
    """Score `model` and train it for one step, with the trainer as `wrapped` changes it; return notices.

    The model was trained and must not be used afterwards. torch's random state is restored. Raises DryRunError.
    """
    once = _Once(model, _small(trainer), wrapped)
    with torch.random.fork_rng(devices=[]):
        try:
            once.run()
            return tuple(once.said())
        except DryRunError:
            raise
        except (TooFewRows, Unsuited) as error:
            raise DryRunError(str(error)) from error
        except Exception as error:  # models, tunings and libraries raise errors with no common base class
            if ran_out(error):
                raise
            raise once.diagnosed(error) from error


def _small(trainer: Trainer) -> Trainer:
    """Return the trainer for one step of two rows, one after the other if batches are divided, or for two steps of one
    row if `batch-size` is 1."""
    own, batch = trainer.config, min(2, trainer.config.batch_size)
    divided = own.rows_at_once < own.batch_size
    config = replace(own, batch_size=batch, local_steps=2 // batch, micro_batch_size=int(divided))
    return replace(trainer, config=config, rows=extremes(trainer.rows, config.data.max_length))


@dataclass(frozen=True)
class _Once:
    """One dry run. `trainer` has two rows; the first is the longest."""

    model: TunedModel
    trainer: Trainer
    wrapped: Wrapped

    def run(self) -> None:
        """Score and train. Raises DryRunError, and any error of the model, the tuning or a library."""
        self._check_tokens()
        self._check_neighbours()
        if self.trainer.config.packing:
            self._check_packed()
        scores = evaluate(self.model, self.trainer.rows, self.trainer.device)
        self._check_finite("a score", scores["loss"])
        self.train()

    def said(self) -> Iterator[str]:
        """Yield notices on the step."""
        trained = self.model.trained
        idle = [name for name, tensor in trained.items() if tensor.grad is None]
        if self.model.config.tuning.adds and 0 < len(idle) < len(trained):
            yield (
                f"no gradient reaches {len(idle)} of {len(trained)} tensors that train, such as '{idle[0]}': the model "
                "does not use these layers for this task, or reads their weights past what tuning = "
                f"'{self.model.config.tuning.name}' adds"
            )
        if least_rows(self.model.module) > 1:
            yield (
                "the model normalises over the rows of a batch: a last row alone joins the batch before, and a node "
                "needs two rows"
            )

    def train(self) -> None:
        """Train one step, with privacy and penalties."""
        metrics = self.wrapped(self.trainer).fit(self.model)
        self._check_finite("the loss of a step", metrics.get("train-loss", 0.0))
        for name, tensor in self.model.trained.items():
            if not bool(torch.isfinite(tensor).all()):
                raise self._overflow(f"after a step '{name}'")

    def _check_tokens(self) -> None:
        """Raise unless every token has an embedding. torch would report only an index; an accelerator would crash."""
        tokens, embedding = self.trainer.rows.inputs.tokens, _embedding(self.model.module)
        if tokens is None or embedding is None:
            return
        largest = max(int(tokens.ids.max()), tokens.pad)
        if largest >= embedding.num_embeddings:
            raise DryRunError(
                f"the tokenizer makes the token {largest}, and the model has {embedding.num_embeddings} embeddings: "
                "the two do not belong together",
                "the tokenizer has tokens that the model has no embeddings for",
            )

    def _check_neighbours(self) -> None:
        """Raise if a row's logits depend on the other rows of its batch."""
        apart = self._apart()
        if not apart:
            return
        tuning, problem = (
            self.model.config.tuning,
            f"a row's logits depend on the other row of the batch, by {apart:.1%}",
        )
        if tuning.adds and not self._with(registry.substitutes()[-1])._apart():
            raise DryRunError(f"tuning = '{tuning.name}' does not fit this model: {problem}; use tuning = 'lora'")
        raise DryRunError(
            f"{problem}: the model does not leave out what shorter rows are filled up with; give the tokenizer the "
            "padding token that the model's config.json names (pad_token_id), or use another base"
        )

    def _check_packed(self) -> None:
        """Raise if the logits of a row depend on one that is packed in front of it."""
        rows, most = self.trainer.rows, int(self.trainer.rows.lengths.sum())
        batch = packed(rows, torch.arange(2), most, self.trainer.device)
        batch.pop("labels")
        with torch.no_grad():
            together = self.model.module.eval()(**batch).logits[0]
        first = 0
        for row in fill(rows.lengths, most)[0]:
            alone = self._logits([row])[0]
            own = together[first : (first := first + len(alone))]
            if float((own - alone).abs().max()) > _tolerance(alone, self.model):
                raise DryRunError(
                    "packing = true does not fit this model: a row's logits depend on the row in front of it; set "
                    "packing = false"
                )

    def _apart(self) -> float:
        """Return how far a row's logits in a batch are from those alone, relative to the largest; 0 for rounding."""
        found = 0.0
        for own, alone in zip(self._logits([0, 1]), [*self._logits([0]), *self._logits([1])], strict=True):
            apart = float((own[: len(alone)] - alone).abs().max())
            if apart > _tolerance(alone, self.model):
                found = max(found, apart / float(alone.abs().max()))
        return found

    def _logits(self, places: list[int]) -> list[torch.Tensor]:
        """Return the logits of every sequence of rows, in evaluation mode, without gradients; of its own tokens if
        tokens have logits."""
        module, rows = self.model.module.eval(), self.trainer.rows
        batch = rows.batch(places, self.trainer.device)
        labels = batch["labels"] if isinstance(rows.inputs, TextPairs) else batch.pop("labels")  # a decoder reads them
        with torch.no_grad():
            logits: torch.Tensor = module(**batch).logits
        if rows.inputs.tokens is None or logits.ndim < 3:
            return list(logits)
        masks = labels != IGNORED if "labels" in batch else batch["attention_mask"].bool()
        own = logits[:, -masks.shape[1] :]  # after the logits of soft prompts
        return [row[mask] for row, mask in zip(own, masks, strict=True)]

    def _check_finite(self, what: str, number: float) -> None:
        if not np.isfinite(number):
            raise self._overflow(what)

    def _overflow(self, what: str) -> DryRunError:
        dtype, config = self.model.config.model.dtype, self.trainer.config
        cures = [f"learning-rate = {config.learning_rate:g} may be too large"]
        if dtype == "float16":
            cures = ["numbers above 65,504 are none in float16: set model.dtype = 'bfloat16' or 'float32'"]
        return DryRunError(f"{what} is not a finite number with model.dtype = '{dtype}'; {cures[0]}")

    # ------------------------------------------------------------------------------------------- what to change
    def diagnosed(self, error: Exception) -> DryRunError:
        """Return the DryRunError that explains an error of a library."""
        says = f"{type(error).__name__}: {first_sentence(error)}".rstrip(": ")
        tuning = self.model.config.tuning
        if longest := self._longest():
            asked = self.trainer.config.data.max_length
            added = f" with tuning = '{tuning.name}'" if tuning.soft_prompts else ""
            return DryRunError(
                f"data.max-length = {asked} is more than the {longest} tokens that the model reads{added}; set "
                f"data.max-length = {longest}"
            )
        if self.wrapped(self.trainer).private is not None and self._fits(tuning.name):
            problem = "example-privacy cannot train this model: it does not compute gradients of single rows"
            cure = "use local-privacy or central-privacy, or another base"
            return DryRunError(f"{problem} ({says}); {cure}", f"{problem}; {cure}")
        dtype = self.model.config.model.dtype
        if dtype != "float32" and _succeeds(self._with(dtype="float32").train):
            problem, cure = f"model.dtype = '{dtype}' does not fit this model here", "set model.dtype = 'float32'"
            return DryRunError(f"{problem} ({says}); {cure}", f"{problem}; {cure}")
        *_, last = others = registry.substitutes()
        if tuning.name != last and (other := next((t for t in others if t != tuning.name and self._fits(t)), "")):
            problem, cure = f"tuning = '{tuning.name}' does not fit this model", f"use tuning = '{other}'"
            return DryRunError(f"{problem} ({says}); {cure}", f"{problem}; {cure}")
        problem = "the base cannot be trained for this task"
        return DryRunError(f"{problem} ({says}); use another base", problem)

    def _longest(self) -> int:
        """Return the longest row length that the model reads; 0 if length is not the problem, or not the only one."""
        if (tokens := self.trainer.rows.inputs.tokens) is None:
            return 0
        fits, fails = int(np.diff(tokens.offsets).min()), self.trainer.config.data.max_length
        if self._reads(fails) or not self._reads(fits):
            return 0
        while fails - fits > 1:
            middle = (fits + fails) // 2
            fits, fails = (middle, fails) if self._reads(middle) else (fits, middle)
        return fits

    def _reads(self, length: int) -> bool:
        rows = stretched(self.trainer.rows, length)
        return _succeeds(lambda: replace(self, trainer=replace(self.trainer, rows=rows))._logits([0]))

    def _fits(self, tuning: str) -> bool:
        """Return whether plain training works with this tuning."""

        return _succeeds(lambda: self._with(tuning).train())

    def _with(self, tuning: str = "", dtype: str = "") -> "_Once":
        """Return the same dry run with another tuning or dtype, and without wrappers."""
        own = self.model.config
        chosen = registry.load(tuning)() if tuning else own.tuning
        bits = own.model.quantization if chosen.quantizable else UNQUANTIZED
        config = replace(
            own,
            tuning=chosen,
            model=replace(own.model, dtype=dtype or own.model.dtype, quantization=bits),
        )
        model = build(self.model.base, config, self.model.rank or 1, self.model.device)
        trainer = replace(self.trainer, config=replace(self.trainer.config, tuning=config.tuning, model=config.model))
        return _Once(model, trainer, lambda trainer: trainer)


def _succeeds(work: Callable[[], object]) -> bool:
    """Return whether `work` ends without an error. Which error does not matter: the first one is reported."""
    try:
        work()
    except Exception as error:
        if ran_out(error):
            raise
        return False
    return True


def _embedding(module: Any) -> torch.nn.Embedding | None:
    """Return the token embedding, if the model has a torch embedding; else None."""
    try:
        found = module.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # transformers' way to report that there is none
        return None
    return found if isinstance(found, torch.nn.Embedding) else None


def _tolerance(logits: torch.Tensor, model: TunedModel) -> float:
    """Return how far logits may be apart by rounding; 8-bit layers round by what is large in a batch."""
    dtype = torch.float16 if model.config.model.quantized else logits.dtype
    return float(SLACK * torch.finfo(dtype).eps ** 0.5 * logits.abs().max())
