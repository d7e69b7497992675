"""Features of rows, computed once a run and kept in the store, in a file that is mapped into memory.

Where a classifier's head alone trains, what the body says of a row is the same in every round. It is computed in
evaluation mode, in batches of a fixed number of rows in their own order, so that its bits depend on the rows alone, and
not on the batches of a step. A file is for one run, and goes in the run's last round; where a node has no part in
that, a day after its last use.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from task.config import TaskConfig
from task.data.rows import Rows, mapped
from task.features.cut import Cut, cut_of
from task.features.inputs import Features
from task.kinds.base import EVALUATION_ROWS
from task.models.model import TunedModel
from task.storage.retention import trim
from task.storage.store import Store, recipe_hash
from task.training.batches import steps_of
from task.training.parallel_evaluation import evaluate_in_parallel, portion
from task.tunings.parts.evaluating import evaluating

KIND, VALUES, LABELS = "features", "values.npy", "labels.npy"
DRAWN = 0.25  # share of its rows that a node must draw in a round: features of all rows then pay within a few rounds
DAY = 24 * 3600  # seconds after which a file that nothing has used was left by a run that was killed


@dataclass(frozen=True)
class FeatureFiles:
    """The files of features of one run in a store."""

    store: Store
    run: str

    def key(self, recipe: object) -> str:
        """Return the key in the store of features made from this recipe (any JSON value)."""
        return f"{recipe_hash(self.run)}-{recipe_hash(recipe)}"

    def remove(self) -> None:
        """Remove the files of this run."""
        for place in self.store.path(KIND, "").glob(f"{recipe_hash(self.run)}-*"):
            self.store.remove(KIND, place.name)

    def remove_abandoned(self) -> None:
        """Remove the files that no run has used for a day."""
        for place in self.store.path(KIND, "").glob("*"):
            with suppress(FileNotFoundError):  # another process has removed it
                if time.time() - place.stat().st_mtime > DAY:
                    self.store.remove(KIND, place.name)


def head_alone(model: TunedModel) -> bool:
    """Return whether nothing but a classifier's head trains, on a body that is as the base has it."""
    return model.trained.keys() <= model.head and as_built(model)


def as_built(model: TunedModel) -> bool:
    """Return whether the frozen weights of a model are as it was built with."""
    return not model.position and not model.changed


def why_not(cut: Cut | str, config: TaskConfig, rows: int, *, training: bool) -> str:
    """Return why features of so many rows are not computed once; empty if they are."""
    if isinstance(cut, str):
        return cut
    if training and config.body_dropout and not cut.constant:
        return "the body uses dropout; set body-dropout = false"
    if training and rows and steps_of(config, rows) * config.batch_size < DRAWN * rows:
        return f"a round draws fewer than one in {1 / DRAWN:g} rows"
    return ""


@contextmanager
def computed_once(
    model: TunedModel,
    config: TaskConfig,
    rows: Rows,
    files: FeatureFiles,
    at_once: int = 1,
    *,
    training: bool = False,
    last: bool = False,
) -> Iterator[Rows]:
    """Yield these rows as features, and skip the body of the model within this block, if only the head changes in it;
    the same rows if the model cannot be cut, or if it does not pay.

    Features are computed, `at_once` batches at a time, unless the run has them. `training`: the block trains, and does
    not only score. `last`: nobody asks for them again. Raises StoreError.
    """
    cut = cut_of(model, config) if len(rows) and rows.key else "these rows are not in the store"
    if isinstance(cut, str) or why_not(cut, config, len(rows), training=training):
        yield rows
        return
    key = files.key(_recipe(model, rows))
    with files.store.made(KIND, key, "features of rows") as folder:
        if folder is not None:
            files.remove_abandoned()
            _write(folder, cut, model, rows, at_once)
    if folder is not None:
        trim(files.store)
    place = files.store.path(KIND, key)
    lengths = None if rows.inputs.lengths is None else rows.lengths
    found = Features(mapped(place / VALUES), mapped(place / LABELS), lengths, cut)
    with cut.skipped():
        yield replace(rows, inputs=found, all_labels=rows.labels, all_ids=rows.ids, indices=None)
    if last:
        files.store.remove(KIND, key)


def _recipe(model: TunedModel, rows: Rows) -> object:
    """Return everything that features depend on."""
    chosen = None if rows.indices is None else recipe_hash(rows.indices.tolist())
    shapes = {name: list(tensor.shape) for name, tensor in model.trained.items()}
    arithmetic = [torch.__version__, model.device, torch.backends.mkldnn.enabled]
    return [model.base.fingerprint, repr(model.config.shaping()), shapes, arithmetic, rows.key, chosen]


def _write(folder: Path, cut: Cut, model: TunedModel, rows: Rows, at_once: int) -> None:
    """Compute features and labels into two files, a batch at a time."""
    arrays: dict[str, np.memmap[Any, Any]] = {}
    made, answers, forward = threading.Lock(), threading.local(), cut.body.forward

    def listen(*given: Any, **named: Any) -> Any:
        answers.last = forward(*given, **named)
        return answers.last

    def put(name: str, positions: torch.Tensor, found: torch.Tensor) -> None:
        value = (found.float() if found.dtype == torch.bfloat16 else found).cpu().numpy()  # numpy has no bfloat16
        with made:
            if name not in arrays:
                shape = (len(rows), *value.shape[1:])
                arrays[name] = np.lib.format.open_memmap(folder / name, "w+", value.dtype, shape)
        arrays[name][positions.numpy()] = value

    def compute(positions: torch.Tensor) -> tuple[float, ...]:
        batch = rows.batch(positions, model.device)
        model.module(**batch)
        vectors = cut.vectors(answers.last, batch)
        assert vectors is not None
        put(VALUES, positions, vectors)
        put(LABELS, positions, batch["labels"])
        return ()

    cut.body.forward = listen
    try:
        with evaluating(model.module):
            batches = torch.split(torch.arange(len(rows)), portion(EVALUATION_ROWS, model.device))
            evaluate_in_parallel(compute, batches, at_once)
    finally:
        del cut.body.forward
    for array in arrays.values():
        array.flush()
