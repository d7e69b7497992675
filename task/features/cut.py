"""Where a model is cut if its head alone trains: below is the body, which says the same of a row in every round.

A head reads little of what the body says of a row: what it pools, its output for the first or the last token, or a mean
of outputs. Which of them is found by running the model on two rows, with random numbers in place of the head's: with
that alone in place of all that the body says, the logits must be the same. So no list of architectures is needed, and
a head that reads more is noticed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.func import functional_call

from task.config import TaskConfig
from task.data.stand_in import stand_in
from task.device import ran_out, random_state_kept
from task.kinds import registry as kinds
from task.models.heads import still_parts
from task.models.model import TunedModel
from task.training.trainer import training_mode
from task.tunings.parts.evaluating import evaluating

MASK, POOLED, HIDDEN = "attention_mask", "pooler_output", "last_hidden_state"
EMBEDDED, PIXELS = "inputs_embeds", "pixel_values"  # inputs of models
FORMS = ("pooled", "first", "last", "mean", "first and mean")  # of what a head reads
NEAR = 1e-3  # of the largest logit: what rounding may change
_known: WeakKeyDictionary[nn.Module, "Cut | str"] = WeakKeyDictionary()


@dataclass(frozen=True)
class Cut:
    """The body of a model, and what the head reads of a row.

    `carrier` is the input of the model that carries features where the body is skipped. `constant`: the body says the
    same in training mode, as it drops nothing at random.
    """

    body: nn.Module
    form: str
    answer: type[Any]  # of what the body answers, a class of transformers
    pools: bool  # whether such an answer has something pooled
    carrier: str
    numbers: int = 0  # that the head reads of a row
    constant: bool = False

    def vectors(self, answer: Any, batch: Mapping[str, Any]) -> torch.Tensor | None:
        """Return what the head reads of every row in the body's answer to a batch: what the body pools (rows, ...), or
        tokens (rows, 1 or 2, d); None if the answer has no such thing."""
        if self.form == "pooled":
            pooled: torch.Tensor | None = getattr(answer, POOLED, None)
            return pooled
        found: torch.Tensor | None = getattr(answer, HIDDEN, None)
        if found is None or found.ndim != 3 or found.shape[1] < 2:
            return None
        if self.form == "last":
            return _last(found, batch.get(MASK))
        if self.form == "first":
            return found[:, :1]
        if self.form == "mean":
            return found.mean(1, keepdim=True)
        return torch.cat([found[:, :1], found[:, 1:].mean(1, keepdim=True)], 1)

    def answered(self, vectors: torch.Tensor) -> Any:
        """Return an answer of the body that has these vectors, and nothing else."""
        if self.form != "pooled":
            return self.answer(**{HIDDEN: vectors} | ({POOLED: vectors[:, 0]} if self.pools else {}))
        pooled = vectors[:, 0] if self.carrier == EMBEDDED else vectors
        return self.answer(**{HIDDEN: pooled[:, None], POOLED: pooled})

    def carried(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the vectors in the form in which the model takes its input: texts as tokens."""
        return vectors[:, None] if self.carrier == EMBEDDED and vectors.ndim == 2 else vectors

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Within this block the model's input `carrier` has features, and the body hands them on."""

        def hand_on(*given: Any, **named: Any) -> Any:
            found = named.get(self.carrier)
            return self.answered(given[0] if found is None else found)

        self.body.forward = hand_on
        try:
            yield
        finally:
            del self.body.forward


def _last(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the last token (rows, 1, d) of every row that is not filled up."""
    if mask is None:
        return hidden[:, -1:]
    ends = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), ends][:, None]


def cut_of(model: TunedModel, config: TaskConfig) -> Cut | str:
    """Return where this model is cut, found once for a module, or why it cannot be cut."""
    if model.module not in _known:
        _known[model.module] = _found(model, config)
    return _known[model.module]


def _found(model: TunedModel, config: TaskConfig) -> Cut | str:
    kind, head = kinds.of(config), [model.trained[name] for name in sorted(model.head)]
    if not kind.drawn_head or kind.per_token or not head:
        return "there is no head that reads a few vectors of a row"
    parts = still_parts(model.module, head)
    if len(parts) != 1:
        return "parts of the head are inside the body"
    batch = stand_in(config, model.base.folder).batch([0, 1], model.device)
    batch.pop("labels")
    with random_state_kept(model.device), torch.no_grad(), evaluating(model.module):
        drawn = _drawn(model.module, head)
        logits, answer = _run(model.module, parts[0], drawn, batch)
        if answer is None:
            return "its body is a list of parts, or answers nothing"
        pools, carrier = getattr(answer, POOLED, None) is not None, PIXELS if kind.images else EMBEDDED
        for form in FORMS:
            cut = Cut(parts[0], form, type(answer), pools, carrier)
            vectors = cut.vectors(answer, batch)
            if vectors is not None and _same(cut, model.module, drawn, vectors, logits):
                constant = _constant(cut, model, batch, vectors)
                return replace(cut, numbers=vectors[0].numel(), constant=constant)
    return "its head reads more than a few vectors of a row"


def _drawn(module: nn.Module, head: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return normal numbers for the parameters of a head, by their names in the module: those of a new head may be
    zero, and then every vector would do."""
    own, source = {id(tensor) for tensor in head}, torch.Generator().manual_seed(0)
    return {
        name: torch.randn(parameter.shape, generator=source).to(parameter)
        for name, parameter in module.named_parameters()
        if id(parameter) in own
    }


def _run(
    module: nn.Module, body: nn.Module, drawn: dict[str, torch.Tensor], batch: Mapping[str, Any]
) -> tuple[torch.Tensor, Any]:
    """Return the logits of a batch with other numbers in the head, and what the body answers; None if the model never
    calls it, as a list of layers."""
    seen: list[Any] = []
    handle = body.register_forward_hook(lambda _, given, answer: seen.append(answer))
    try:
        logits: torch.Tensor = functional_call(module, drawn, kwargs=dict(batch)).logits
    finally:
        handle.remove()
    return logits, seen[-1] if seen else None


def _same(
    cut: Cut, module: nn.Module, drawn: dict[str, torch.Tensor], vectors: torch.Tensor, logits: torch.Tensor
) -> bool:
    """Return whether the head says the same of these vectors alone."""
    try:
        with cut.skipped():
            found = functional_call(module, drawn, kwargs={cut.carrier: cut.carried(vectors)}).logits
    except Exception as error:  # of a model's own code, which may need more than features
        if ran_out(error):
            raise
        return False
    return bool(found.shape == logits.shape and (found - logits).abs().max() <= NEAR * logits.abs().max())


def _constant(cut: Cut, model: TunedModel, batch: Mapping[str, Any], vectors: torch.Tensor) -> bool:
    """Return whether the body says the same in training mode, twice."""
    training_mode(model.module, [])
    for seed in (0, 1):
        torch.manual_seed(seed)
        _, answer = _run(model.module, cut.body, {}, batch)
        found = cut.vectors(answer, batch)
        if found is None or not torch.equal(found, vectors):
            return False
    return True
