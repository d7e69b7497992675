"""The node's own side of an exchange: its name, store, device and rows. Node config decides about these; everything
else is in the instructions.

Node config keys: `partition-id` and `num-partitions` (a simulated share of the data), or `data-path` (also
`dataset-path`: the node's own file or folder), `name`, `rank` (a whole number, or "auto"), `device`, `quantization`
(none, 8bit, 4bit), `store-path`, `account-path` (a folder for its privacy accounts; default: the store), and the keys
of `client_app.public_errors`, which limit what instructions may do.
"""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Context, RecordDict
from flwr.app.typing import ConfigRecordValues

from client_app import public_errors
from client_app.float32_base import widened
from client_app.permission import check_instructions, check_offer, check_rows
from client_app.policy import Policy
from client_app.public_errors import (
    NodeError,
    check_code,
    check_labels,
    check_source,
    follows_paths,
    with_own_quantization,
)
from task.config import TaskConfig
from task.data.labels import LabelError
from task.device import cores, found
from task.models.base import Base
from task.models.finding import accept_offer, kept_bases, named_base, node_base
from task.seeds import derive
from task.storage.store import Store, node_store
from task.tunings.base import AUTO
from task.versions import versions, written

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from task.data.index import DataIndex
    from task.data.rows import Positions, Rows

LOG = logging.getLogger("flwr")
NodeConfig = tuple[tuple[str, bool | int | float | str], ...]


@dataclass(frozen=True)
class Local:
    """This node, for one set of instructions."""

    node: NodeConfig
    node_id: int
    instructions: ConfigRecord
    config: TaskConfig
    policy: Policy = Policy()

    @classmethod
    def of(cls, context: Context, instructions: ConfigRecord) -> "Local":
        """Return the node for Flower's context and the instructions in a message.

        Raises PolicyError for a policy that cannot be read, ConfigError for instructions that are not valid, NodeError
        for instructions that this node does not follow, and its subclass NotPermitted for what its policy forbids.
        """
        from strategies.protocol.instructions import task_of

        policy = Policy.of(context.node_config, deployed=not public_errors.simulated())
        config = with_own_quantization(task_of(instructions), instructions, context.node_config)
        check_code(config, context.node_config)
        check_labels(config)
        check_instructions(policy, instructions, config)
        return cls(tuple(sorted(context.node_config.items())), context.node_id, instructions, config, policy)

    @property
    def key(self) -> tuple[NodeConfig, TaskConfig, str]:
        """Return what tells this node, its task and its run from others in a process."""
        from strategies.protocol.instructions import RUN

        return self.node, self.config, str(self.instructions.get(RUN, ""))

    def holding(self, rows: int) -> "Local":
        """Return the same node with so many rows of a step in memory at a time."""
        if rows == self.config.rows_at_once:
            return self
        return replace(self, config=replace(self.config, micro_batch_size=rows))

    @property
    def name(self) -> str:
        """Return the node's name, stable over runs if the node config determines it: `name`, else the site whose
        rows are its share, else the partition, else Flower's random id. Raises DataError, NodeError, SplitError."""
        own = dict(self.node)
        return str(own.get("name", self._site or own.get("partition-id", f"node-{self.node_id}")))

    @cached_property
    def _site(self) -> str:
        """Return the site name of a node that has a share of the common data; empty for any other node."""
        from task.data.partition import node_name

        own = dict(self.node)
        if "name" in own or self._own_path() is not None or not self.config.data.partitioner.needs_ids:
            return ""
        return node_name(self.config, self._index(), self._split(), int(own["partition-id"]))

    @property
    def store(self) -> Store:
        """Return the store of bases and prepared data."""
        return node_store(str(dict(self.node).get("store-path", "")), self.policy.max_store_bytes)

    @property
    def automatic(self) -> bool:
        """Return whether the node's rank is found by a trial."""
        return self.config.tuning.has_ranks and self._said_rank == AUTO

    @property
    def rank(self) -> int:
        """Return the node's rank budget: its own `rank`, else its turn in the tuning's ranks; 0: no rank, or not known
        yet."""
        if not self.config.tuning.has_ranks or self.automatic:
            return 0
        rank = self._said_rank
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            problem = f"must be a whole number above 0, or '{AUTO}'"
            raise NodeError(f"node config rank = {rank!r} {problem}", f"the node config's rank {problem}")
        return min(rank, self.policy.max_rank or rank)

    @property
    def _said_rank(self) -> bool | int | float | str:
        own, ranks = dict(self.node), self.config.tuning.budgets()
        return own.get("rank", ranks[int(own.get("partition-id", 0)) % len(ranks)] if ranks else AUTO)

    @cached_property
    def base(self) -> Base:
        """Return the base that the instructions name, in a form that processes share. Raises BaseError if this node
        lacks it, Refused without instructions."""
        from strategies.protocol.instructions import fingerprint_of

        paths = follows_paths(dict(self.node))
        found = node_base(self.config.model, fingerprint_of(self.instructions), self.store, paths)
        return widened(found, self.config, self.store)

    @property
    def device(self) -> str:
        """Return the node's own `device`, else the device in the instructions; auto takes the first accelerator
        found."""
        return found(str(dict(self.node).get("device", self.config.device)))

    @property
    def num_examples(self) -> int:
        """Return the number of the node's training rows, counted without a model. Raises DataError, NodeError,
        SplitError."""
        return len(self._share()) if self._own_path() is None else len(self._index().train)

    def rows(self) -> tuple["Rows", "Rows"]:
        """Return the node's training rows and its evaluation rows (none if only the server scores)."""
        from task.data.prepared import holdout, prepare, prepare_file

        if (path := self._own_path()) is not None:
            labels, most = self.config.data.labels, self._most_labels
            rows = prepare_file(self.config, self.base.folder, self.store, path, labels, most)
        else:
            share = self._share()
            rows = prepare(self.config, self.base.folder, self.store).train.select(share)
        if self.config.evaluate == "server":
            return rows, rows.select([])
        return holdout(rows, self.config.data.holdout, derive(self.config.seed, "holdout", self.name))

    def say_of(self, rows: "Rows") -> None:
        """Log the notices about the node's own rows once they are prepared."""
        if self._own_path() is not None:
            self._say(rows.notices)

    @staticmethod
    def _say(notices: "Iterable[str]") -> None:
        for sentence in notices:
            LOG.warning("%s", sentence)

    def profile(self) -> ConfigRecord:
        """Return the profile record of this node. Raises DataError, DeviceError, NodeError, SplitError."""
        from client_app.device import dtypes, free_memory

        own = dict(self.node)
        rows, fit = self._rows_that_fit()
        machine, device = self.policy.reports.machine, self.device
        named = named_base(self.config.model, self.store, follows_paths(own))
        answers: dict[str, ConfigRecordValues] = {
            "name": self.name,
            "rank": self.rank,
            "automatic": self.automatic,
            "num-examples": self.policy.reports.counted(rows),
            "store": self.store.id,
            "bases": [*kept_bases(self.store), *([named] if named else [])],
            "named-base": named,
            "device": device if machine else "",
            "dtypes": dtypes(device) if machine else [],
            "memory": free_memory(device) if machine else 0,
            "cores": cores() if machine else 0,
            "versions": written(versions()) if machine else "",
            "labels-fit": fit,
            "labels": list(self.policy.columns.publish_labels),
        }
        return ConfigRecord(answers)

    def _rows_that_fit(self) -> tuple[int, bool]:
        """Return how many rows there are, and whether their labels are among those of the instructions. If a deployed
        node's labels are not, the server learns no more than that. Raises NotPermitted for too few rows."""
        try:
            rows = self.num_examples
            check_rows(self.policy, rows)
            if self._own_path() is not None:
                self._say(self._index().notices)
            return rows, True
        except LabelError as error:
            if public_errors.simulated():
                raise
            LOG.error("the labels do not fit: %s", error)
            return 0, False

    def accept_base(self, records: RecordDict) -> int:
        """Store the files of an offered base, if the policy allows it; return how many there were. Raises BaseError,
        Refused."""
        from strategies.algebra.tensors import raw
        from strategies.protocol import wire
        from strategies.protocol.instructions import fingerprint_of

        sizes = [len(array.data) for parts in records.array_records.values() for array in parts.values()]
        check_offer(self.policy, sum(sizes))
        contents = {name: raw(tensor) for name, tensor in wire.unpack(records).tensors.items()}
        accept_offer(contents, fingerprint_of(self.instructions), self.store)
        return len(contents)

    @property
    def data_set(self) -> str:
        """Return the identity of the node's data, independent of the instructions' other settings: its own path, or its
        share of the data that the instructions name."""
        if (path := self._own_path()) is not None:
            return str(path.resolve())
        own, name = dict(self.node), self.config.data.name
        place = str(Path(name).resolve()) if Path(name).exists() else name.casefold()
        return f"{place}, part {own.get('partition-id')} of {own.get('num-partitions')}"

    def _own_path(self) -> Path | None:
        own = dict(self.node)
        path = own.get("data-path", own.get("dataset-path"))
        return None if path is None else Path(str(path)).expanduser()

    def _index(self) -> "DataIndex":
        """Return what is known of the node's own file, or of the data that it has a share of, without a model."""
        from task.data.prepared import data_index, index_file

        if (path := self._own_path()) is not None:
            return index_file(self.config, self.store, path, self.config.data.labels, self._most_labels)
        return data_index(self.config, self.store)

    @property
    def _most_labels(self) -> int:
        """Return how many labels a column may have if the owner has not named it; 0: any number."""
        columns = self.policy.columns
        return 0 if columns.labels else columns.max_labels

    def _share(self) -> "Positions":
        """Return the positions of this node's rows in the common data."""
        return self._split()[int(dict(self.node)["partition-id"])]

    def _split(self) -> "Sequence[Positions]":
        """Return the common data, split over the nodes. Raises NodeError for a node that has no share of it."""
        from task.data.partition import partition

        own = dict(self.node)
        if "partition-id" not in own or "num-partitions" not in own:
            raise NodeError("the node config has neither data-path nor partition-id and num-partitions")
        if self.config.data.partitioner.own_rows:
            raise NodeError("data.partitioner = 'none', but the node config has no data-path")
        check_source(self.config, own)
        return partition(self.config, self._index(), int(own["num-partitions"]), self.store)
