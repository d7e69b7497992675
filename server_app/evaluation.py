"""Evaluation on the server, of the model that a node of full rank would receive."""

import logging
import math
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from strategies.exchange.federation import Probe
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import BASE_POSITION, Metrics, State
from strategies.protocol.journal import base_weights_of, followed, held
from task.config import TaskConfig
from task.data.prepared import Parts, prepare
from task.data.rows import Rows
from task.features.once import FeatureFiles, computed_once, head_alone
from task.kinds import registry as kinds
from task.models.base import Base
from task.models.finding import server_base
from task.models.model import TunedModel
from task.prediction.answer import Classified, Exchange
from task.prediction.classification import classified
from task.prediction.outputs import Numbers, row_losses
from task.prediction.sampled import answered
from task.seeds import derive
from task.storage.store import server_store
from task.training.chosen_precision import in_chosen_precision
from task.training.mixed_precision import autocast
from task.training.parallel_evaluation import batches_at_once
from task.training.trainer import evaluate

LOG = logging.getLogger("flwr")
HOPELESS = 1e6  # nats; upper bound of a probe's loss
TOKENS = 4  # rows of a classifier that are worth one row of many tokens
LEAST, OF_EACH = 32, 2  # rows that a probe needs in total, and of every label


@dataclass(frozen=True)
class Evaluator:
    """Evaluator of a state on the validation part, which chooses the best round, and on the test part.

    Single updates are judged on at most `examine_rows` rows of the validation part.
    """

    strategy: Strategy
    config: TaskConfig
    device: str
    examine_rows: int = 0

    def __call__(self, state: State) -> Metrics:
        model = held(self.strategy, self.base, self.config, state, self.device)
        scores: Metrics = {}
        for name, rows in (("validation", self._parts.validation), ("test", self._parts.test)):
            for metric, value in self.scores(model, rows).items():
                scores[f"{name}-{metric}"] = value
        return scores

    def exchanges(self, state: State) -> list[Exchange]:
        """Return what a state writes in answer to test rows; see `evaluate-generations`."""
        model = held(self.strategy, self.base, self.config, state, self.device)
        return answered(model, self.config, self._parts.test, self.device)

    def classified(self, state: State, count: int) -> list[Classified]:
        """Return what a state says of at most `count` test rows."""
        model, test = held(self.strategy, self.base, self.config, state, self.device), self._parts.test
        with autocast(self._precision(model, test), self.device):
            return classified(model.module.eval(), self.base.folder, test, count, self.device)

    def probe(self, start: State) -> Probe | None:
        """Return what measures the loss of states that follow `start`; None if there are too few rows."""
        return None if self.sample is None else _Probe(self, start, self.sample)

    @property
    def base(self) -> Base:
        """Return the base of the run."""
        return server_base(self.config.model, server_store())

    @property
    def _parts(self) -> Parts:
        return prepare(self.config, self.base.folder, server_store())

    def scores(self, model: TunedModel, rows: Rows) -> dict[str, float]:
        """Return the metrics of a model on these rows."""
        with self._scoring(model, rows) as (seen, precision):
            return evaluate(model, seen, self.device, self._at_once, precision)

    def losses(self, model: TunedModel, rows: Rows) -> Numbers:
        """Return the loss of each of these rows (N,), by a classifier with one label a row."""
        with self._scoring(model, rows) as (seen, precision), autocast(precision, self.device):
            return row_losses(model.module.eval(), seen, self.device, self._at_once)

    @contextmanager
    def _scoring(self, model: TunedModel, rows: Rows) -> Iterator[tuple[Rows, str]]:
        """Yield these rows, as features if nothing but the head has changed, and the precision of their scores."""
        precision = self._precision(model, rows)  # a step is timed through the whole model
        if not head_alone(model):
            yield rows, precision
            return
        with computed_once(model, self.config, rows, self._features, self._at_once) as seen:
            yield seen, precision

    def _precision(self, model: TunedModel, rows: Rows) -> str:
        return in_chosen_precision(self.config, model, rows, server_store()).precision

    @property
    def _at_once(self) -> int:
        """Return how many batches are scored at a time: nodes are idle during evaluation."""
        return batches_at_once(self.device, self.config.threads)

    @cached_property
    def _features(self) -> FeatureFiles:
        """Return the files of features of the rows here, which are gone with this evaluator."""
        files = FeatureFiles(server_store(), uuid.uuid4().hex)
        weakref.finalize(self, files.remove)
        return files

    @cached_property
    def sample(self) -> Rows | None:
        """Return the rows that probes use, or None if there are too few."""
        if not self.examine_rows:
            return None
        rows = self._parts.validation
        count, least = self.examine_rows, LEAST
        if kinds.of(self.config).per_token:
            count, least = -(-count // TOKENS), LEAST // TOKENS
        drawn = balanced(rows.labels, max(count, 2 * OF_EACH * len(rows.names)), derive(self.config.seed, "examine"))
        missing = [name for label, name in enumerate(rows.names) if (rows.labels[drawn] == label).sum() < OF_EACH]
        if len(drawn) < least or missing:
            few = f"fewer than {OF_EACH} are of '{missing[0]}'" if missing else f"they are fewer than {least}"
            LOG.info("single updates are not examined: of %d validation rows %s (examine-rows)", len(rows), few)
            return None
        return rows.select(drawn)


class _Probe:
    """What measures the loss of states that follow `start`, on these rows."""

    def __init__(self, evaluator: Evaluator, start: State, rows: Rows) -> None:
        self._evaluator, self._rows, self._since = evaluator, rows, start.positions[-1]
        self._model = held(evaluator.strategy, evaluator.base, evaluator.config, start, evaluator.device)
        self._base_weights = base_weights_of(self._model) if self._since != BASE_POSITION else {}

    def __call__(self, state: State) -> float:
        return self._loss(self._holding(state), self._rows)

    def by_label(self, state: State) -> list[float]:
        model, labels = self._holding(state), np.asarray(self._rows.labels)
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        kind = kinds.of(self._evaluator.config)
        if kind.drawn_head and kind.row_labels:
            losses = self._evaluator.losses(model, self._rows)
            return [_bounded(float(losses[own].mean())) for own in groups]
        return [self._loss(model, self._rows.select(own)) for own in groups]

    def _holding(self, state: State) -> TunedModel:
        strategy = self._evaluator.strategy
        self._model = followed(strategy, self._model, state, self._since, self._base_weights)
        return self._model

    def _loss(self, model: TunedModel, rows: Rows) -> float:
        return _bounded(self._evaluator.scores(model, rows)["loss"])


def _bounded(loss: float) -> float:
    return min(loss, HOPELESS) if math.isfinite(loss) else HOPELESS


def balanced(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return the positions of at most `count` rows, drawn at random and balanced over the labels.

    Without a label in the sample, a node that is the only one to know this label would look harmful.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels), dtype=np.int64)  # rank of a row among the rows of its label
    for label in np.unique(labels):
        own = order[labels[order] == label]
        place[own] = np.arange(len(own))
    chosen = order[np.argsort(place[order], kind="stable")][:count]
    return np.sort(chosen)
