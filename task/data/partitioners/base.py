"""What a partitioner is: a rule by which the rows of the train part are divided among simulated nodes."""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from task.data.index import Part

Positions = NDArray[np.int64]


class SplitError(ValueError):
    """Rows that cannot be divided as asked. The message has counts, keys of the configuration and what to change, so
    others may hear all of it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.public = message


@dataclass(frozen=True)
class Partitioner(ABC):
    """A rule that divides rows. Its options are fields made by `task.schema.option`.

    `table` is the table of the configuration that holds the options; empty: one of the partitioner's name.
    """

    table: ClassVar[str] = ""
    needs_labels: ClassVar[bool] = False  # rows are divided by their labels
    needs_ids: ClassVar[bool] = False  # rows are divided by data.id-column, which names the client of each
    own_rows: ClassVar[bool] = False  # nothing is divided: every node brings rows of its own

    @property
    def name(self) -> str:
        """The name of its file, which is the value of data.partitioner."""
        return type(self).__module__.rsplit(".", 1)[-1].replace("_", "-")

    @abstractmethod
    def divide(self, part: Part, nodes: int, seed: int) -> list[Positions]:
        """Return the positions in `part` of every node's rows, int64, `nodes` arrays without a row in two of them.

        `part.labels` (N,) and `part.ids` (N,) are int64; `ids` is None where data.id-column names no column. N is at
        least `nodes`. Random choices follow from `seed`, a whole number below 2**32. Raises SplitError.
        """

    def refusal(self, rows: int, nodes: int) -> SplitError:
        """Return what to raise where rows cannot be divided."""
        asked = f"{rows} rows cannot be divided among {nodes} nodes by the {self.name} split"
        return SplitError(asked + self.advice(rows, nodes))

    def advice(self, rows: int, nodes: int) -> str:
        """Return the end of that sentence: which options it is about, and what to change."""
        return ": some would get none; use fewer nodes, or the iid split"


def divide_by_flower(ours: Partitioner, theirs: Any, part: Part, nodes: int, seed: int) -> list[Positions]:
    """Return the sorted positions that `theirs`, a partitioner of flwr-datasets, gives each of its partitions.

    It sees the columns `label` and, where there are ids, `id`. Rows are shuffled first: those that cut would keep the
    order of the file. Raises SplitError where it refuses.
    """
    import datasets

    order = np.random.default_rng(seed).permutation(len(part))
    columns = {"position": order, "label": part.labels[order]} | ({} if part.ids is None else {"id": part.ids[order]})
    theirs.dataset = datasets.Dataset.from_dict(columns)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of every attempt; the outcome says it all
            warnings.simplefilter("error", RuntimeWarning)  # proportions that do not add up
            found = [theirs.load_partition(number) for number in range(theirs.num_partitions)]
    except (ValueError, RuntimeWarning) as error:
        raise ours.refusal(len(part), nodes) from error
    return [np.sort(np.array(rows["position"], np.int64)) for rows in found]
