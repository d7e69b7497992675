"""The base class of partitioners: rules that divide the rows of the train part among simulated nodes."""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from task import extensions
from task.data.index import Part

Positions = NDArray[np.int64]


class SplitError(ValueError):
    """Rows that cannot be divided as configured. The message has only counts, configuration keys and what to change, so
    all of it is public."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.public = message


@dataclass(frozen=True)
class Partitioner(ABC):
    """A rule that divides rows. Its options are fields made with `task.schema.option`.

    `table` is the configuration table of its options; empty: the partitioner's name.
    """

    table: ClassVar[str] = ""
    needs_labels: ClassVar[bool] = False  # rows are divided by their labels
    needs_ids: ClassVar[bool] = False  # rows are divided by data.id-column, the client of each row
    own_rows: ClassVar[bool] = False  # nothing is divided: every node brings rows of its own

    @property
    def name(self) -> str:
        """Return the name of its file, which is the value of data.partitioner."""
        return extensions.name_of(type(self))

    @abstractmethod
    def divide(self, part: Part, nodes: int, seed: int) -> list[Positions]:
        """Return the positions in `part` of every node's rows: `nodes` disjoint int64 arrays.

        `part.labels` (N,) and `part.ids` (N,) are int64; `ids` is None if data.id-column is empty. N is at
        least `nodes`. Random choices follow from `seed`, a whole number below 2**32. Raises SplitError.
        """

    def refusal(self, rows: int, nodes: int) -> SplitError:
        """Return the error for rows that cannot be divided."""
        asked = f"{rows} rows cannot be divided among {nodes} nodes by the {self.name} split"
        return SplitError(asked + self.advice(rows, nodes))

    def advice(self, rows: int, nodes: int) -> str:
        """Return the end of the error message: the options involved, and what to change."""
        return ": some would get none; use fewer nodes, or the iid split"


def divide_by_flower(ours: Partitioner, theirs: Any, part: Part, nodes: int, seed: int) -> list[Positions]:
    """Return the sorted positions of each partition of `theirs`, a partitioner of flwr-datasets.

    It gets the columns `label` and, if there are ids, `id`. Rows are shuffled first, because partitioners that cut keep
    the order of the file. Raises SplitError if it refuses.
    """
    import datasets

    order = np.random.default_rng(seed).permutation(len(part))
    columns = {"position": order, "label": part.labels[order]} | ({} if part.ids is None else {"id": part.ids[order]})
    theirs.dataset = datasets.Dataset.from_dict(columns)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one warning per attempt; only the result matters
            warnings.simplefilter("error", RuntimeWarning)  # proportions that do not add up
            found = [theirs.load_partition(number) for number in range(theirs.num_partitions)]
    except (ValueError, RuntimeWarning) as error:
        raise ours.refusal(len(part), nodes) from error
    return [np.sort(np.array(rows["position"], np.int64)) for rows in found]
