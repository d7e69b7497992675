"""Combinations that were measured to be weak, and what did better: one table, from the studies in docs/results.

A weakness is of one key's value, in a situation that the run's settings and the split of its rows show.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server_app.config import RunConfig
from strategies.exchange import cohort
from task.data.index import DataIndex
from task.data.partitioners.base import Positions

SKEWED, VERY_SKEWED = 0.3, 0.5  # of `Situation.skew`; Dirichlet 1, 0.5, 0.1 over ten labels: about 0.33, 0.43, 0.67
FOLLOW = 0.5  # rank correlation from which ranks grow with rows
FEW = 2  # nodes a round
TEXTS, IMAGES = "text-classification", "image-classification"
Choice = tuple[str, str]  # a key and its value
Result = tuple[str, str]  # of a study: a setting and a method


@dataclass(frozen=True)
class Situation:
    """What decides whether a combination is weak."""

    kind: str  # of the task
    optimizer: str
    wrappers: tuple[str, ...]
    nodes: int
    a_round: int  # nodes that train in a round
    skew: float  # distance of the nodes' shares of labels from those of all rows, 0 to 1
    follow: float | None  # rank correlation of ranks and rows over nodes; None if all ranks are equal

    @classmethod
    def of(cls, run: RunConfig, index: DataIndex, split: Sequence[Positions]) -> "Situation":
        """Return the situation of a simulated run, whose nodes have the rows of `split`."""
        wrappers = tuple(wrapper.name for wrapper in run.strategy.wrappers)
        a_round = cohort.size(len(split), run.server.fraction_train, run.server.min_train_nodes)
        ranks = [*run.task.tuning.budgets()] or [0]
        own = [ranks[number % len(ranks)] for number in range(len(split))]
        apart = skew(index.train.labels, split) if len(index.classes) > 1 else 0.0
        task = run.task
        return cls(
            task.task.kind.name, task.optimizer, wrappers, len(split), a_round, apart, follow(own, [*map(len, split)])
        )


@dataclass(frozen=True)
class Weakness:
    """`chosen` is weak in the situation `when`, which `said` describes. `found` is the score of `result`, `better` that
    of `other`; both are of `study`, means of the last five rounds over seeds with their standard deviations."""

    chosen: Choice
    when: Callable[[Situation], bool]
    said: str
    study: str
    result: Result
    found: str
    instead: str
    other: Result
    better: str

    @property
    def sentence(self) -> str:
        """Return what `check` says."""
        key, value = self.chosen
        of = f"{key} = '{value}' was" if key else "full tuning by fedavg was"
        where = f"docs/results/{self.study}.md#{self.result[0]}"
        return f"{of} weak {self.said}: {self.found}, against {self.better} {self.instead} ({where})"


def _ranks_without_rows(here: Situation) -> bool:
    return here.follow is not None and here.follow < FOLLOW and here.skew >= SKEWED


def _ranks_with_rows(here: Situation) -> bool:
    return here.follow is not None and here.follow >= FOLLOW and here.skew >= SKEWED


def _few_and_skewed(here: Situation) -> bool:
    return here.a_round <= FEW < here.nodes and here.skew >= VERY_SKEWED


def _texts_alike(here: Situation) -> bool:
    return here.kind == TEXTS and here.skew < SKEWED


def _images(here: Situation) -> bool:
    return here.kind == IMAGES


def _by_adamw(here: Situation) -> bool:
    return here.optimizer != "sgd"


def _private(here: Situation) -> bool:
    return "central-privacy" in here.wrappers


def _small_vit(tuning: str, found: str) -> Weakness:
    """Return the weakness of a tuning on images."""
    result, other = ("fashion-vit-iid", tuning), ("fashion-vit-iid", "lora")
    said = "on images, with a small vision transformer"
    with_lora = "with tuning = 'lora'"
    return Weakness(("tuning", tuning), _images, said, "fedpeft", result, found, with_lora, other, ".872 ± .007")


def _texts(tuning: str, found: str) -> Weakness:
    """Return the weakness of a tuning on texts that all nodes have alike."""
    result, other = ("minilm-iid", tuning), ("minilm-iid", "lora")
    said = "on texts, with rows alike"
    with_lora = "with tuning = 'lora'"
    return Weakness(("tuning", tuning), _texts_alike, said, "fedpeft", result, found, with_lora, other, ".869 ± .004")


def _noisy(tuning: str, found: str) -> Weakness:
    """Return the weakness of a tuning under noise for privacy."""
    result, other = ("privacy", f"{tuning}-private"), ("privacy", "lora-private")
    said = "with central-privacy"
    with_lora = "with tuning = 'lora'"
    return Weakness(("tuning", tuning), _private, said, "fedpeft", result, found, with_lora, other, ".613 ± .027")


WEAKNESSES = (
    Weakness(
        ("strategy", "rbla"),
        _ranks_without_rows,
        "on skewed rows with ranks that do not grow with a node's rows",
        "rbla",
        ("minilm", "rbla"),
        ".651 ± .081",
        "with strategy = 'zero-pad'",
        ("minilm", "zero-pad"),
        ".716 ± .074",
    ),
    Weakness(
        ("strategy", "zero-pad"),
        _ranks_with_rows,
        "with ranks that grow with a node's rows",
        "rbla",
        ("paper", "zero-pad"),
        ".887 ± .004",
        "with strategy = 'rbla'",
        ("paper", "rbla"),
        ".948 ± .001",
    ),
    Weakness(
        ("strategy", "hetlora"),
        _ranks_with_rows,
        "with ranks that grow with a node's rows",
        "rbla",
        ("paper", "hetlora"),
        ".770 ± .004",
        "with strategy = 'rbla'",
        ("paper", "rbla"),
        ".948 ± .001",
    ),
    Weakness(
        ("strategy", "ferret"),
        _by_adamw,
        "with AdamW (take optimizer = 'sgd' with momentum, and short rounds)",
        "ferret",
        ("minilm-adamw", "ferret-4096"),
        ".506 ± .028",
        "with strategy = 'fedavg' and tuning = 'lora'",
        ("minilm-adamw", "lora"),
        ".815 ± .075",
    ),
    Weakness(
        ("strategy", "sa-fedlora"),
        _images,
        "on images, with a small vision transformer",
        "sa-fedlora",
        ("fashion-vit", "sa-fedlora-1"),
        ".907 ± .005",
        "with strategy = 'fedavg' and tuning = 'full'",
        ("fashion-vit", "fedavg"),
        ".927 ± .009",
    ),
    Weakness(
        ("", ""),
        _few_and_skewed,
        "with two nodes a round on very skewed rows",
        "fedpeft",
        ("minilm-skewed-eighth", "full"),
        ".555 ± .047",
        "with all nodes (fraction-train = 1)",
        ("minilm-skewed", "full"),
        ".797 ± .047",
    ),
    _small_vit("ia3", ".805 ± .013"),
    _small_vit("norm", ".829 ± .010"),
    _small_vit("adapter", ".811 ± .016"),
    _small_vit("bias", ".788 ± .014"),
    _small_vit("prompt", ".785 ± .004"),
    _small_vit("head", ".746 ± .014"),
    _texts("norm", ".843 ± .003"),
    _texts("prefix", ".841 ± .007"),
    _texts("adapter", ".836 ± .009"),
    _texts("ssf", ".827 ± .002"),
    _texts("bias", ".817 ± .001"),
    _texts("head", ".805 ± .007"),
    _noisy("bias", ".360 ± .011"),
    _noisy("head", ".453 ± .012"),
)


def weak(run: RunConfig, index: DataIndex, split: Sequence[Positions]) -> Iterator[str]:
    """Yield a sentence on every measured weakness of a simulated run's strategy and tuning."""
    here, values = Situation.of(run, index, split), run.flat
    for weakness in WEAKNESSES:
        key, value = weakness.chosen
        if (not key or values[key] == value) and weakness.when(here):
            yield weakness.sentence


def skew(labels: NDArray[np.int64], split: Sequence[Positions]) -> float:
    """Return the mean distance (total variation) of the nodes' shares of labels from those of all rows, by rows."""
    counts = np.stack([np.bincount(labels[rows], minlength=int(labels.max()) + 1) for rows in split])
    sizes = counts.sum(axis=1, keepdims=True)
    distances = np.abs(counts / sizes - counts.sum(axis=0) / counts.sum()).sum(axis=1) / 2
    return float(np.average(distances, weights=sizes[:, 0]))


def follow(ranks: Sequence[int], rows: Sequence[int]) -> float | None:
    """Return the rank correlation (Spearman) of the nodes' ranks and numbers of rows; None if all ranks are equal."""
    if len(set(ranks)) < 2:
        return None
    if len(set(rows)) < 2:
        return 0.0
    return float(np.corrcoef(_places(ranks), _places(rows))[0, 1])


def _places(values: Sequence[int]) -> NDArray[np.float64]:
    """Return the place of every value in their order; equal values share the mean of theirs."""
    ordered = np.sort(values)
    left, right = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return (left + right - 1) / 2
