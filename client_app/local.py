"""What this node has: a name, a store, a device, rows of its own. Node config decides; the rest is the order's.

Node config keys: `partition-id` and `num-partitions` (a simulated share of the data), or `data-path`
(also `dataset-path`: the node's own file or folder), `name`, `rank`, `device`, `store-path`.
"""

import os
import platform
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Context, RecordDict
from flwr.app.typing import ConfigRecordValues

from task.base import Base, accept_offer, node_base, node_bases
from task.config import TaskConfig
from task.seeds import derive
from task.store import Store, node_store

if TYPE_CHECKING:
    from task.rows import Positions, Rows

NodeConfig = tuple[tuple[str, bool | int | float | str], ...]


class NodeError(ValueError):
    """A node config that cannot serve the order."""


@dataclass(frozen=True)
class Local:
    """This node, for one order."""

    node: NodeConfig
    node_id: int
    order: ConfigRecord
    config: TaskConfig

    @classmethod
    def of(cls, context: Context, order: ConfigRecord) -> "Local":
        """From Flower's context and the order in a message. Raises ConfigError for an order that is not valid."""
        from strategies.exchange.order import task_of

        return cls(tuple(sorted(context.node_config.items())), context.node_id, order, task_of(order))

    @property
    def name(self) -> str:
        """Stable over runs where the node config names it: `name`, else the partition, else Flower's random id."""
        own = dict(self.node)
        return str(own.get("name", own.get("partition-id", f"node-{self.node_id}")))

    @property
    def store(self) -> Store:
        """Where this node keeps bases and prepared data."""
        return node_store(str(dict(self.node).get("store-path", "")))

    @property
    def rank(self) -> int:
        """The node's rank budget: its own `rank`, else its turn in `lora.ranks`; 0 where nothing has a rank."""
        if self.config.tuning != "lora":
            return 0
        own, ranks = dict(self.node), self.config.lora.ranks
        rank = own.get("rank", ranks[int(own.get("partition-id", 0)) % len(ranks)])
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise NodeError(f"node config rank = {rank!r} must be a whole number above 0")
        return rank

    @cached_property
    def base(self) -> Base:
        """The base the order names. Raises BaseError where this node lacks it."""
        return node_base(self.config.model, str(self.order["base-fingerprint"]), self.store)

    @property
    def device(self) -> str:
        """The node's own `device`, else the order's; auto takes the first accelerator there is."""
        wanted = str(dict(self.node).get("device", self.config.device))
        if wanted != "auto":
            return wanted
        import torch

        for name in ("cuda", "xpu", "mps"):
            backend = getattr(torch, name, None) or getattr(torch.backends, name)
            if backend.is_available():
                return name
        return "cpu"

    @property
    def num_examples(self) -> int:
        """Rows this node has, counted without a model. Raises DataError, NodeError, SplitError."""
        from task.data import outline_file

        if (path := self._own_path()) is not None:
            return len(outline_file(self.config, self.store, path, self.config.data.labels).train)
        return len(self._share())

    def rows(self) -> tuple["Rows", "Rows"]:
        """The node's rows to train on and the rows it keeps for evaluation (none where only the server scores)."""
        from task.data import holdout, prepare, prepare_file

        if (path := self._own_path()) is not None:
            rows = prepare_file(self.config, self.base.folder, self.store, path, self.config.data.labels)
        else:
            rows = prepare(self.config, self.base.folder, self.store).train.select(self._share())
        if self.config.evaluate == "server":
            return rows, rows.select([])
        return holdout(rows, self.config.data.holdout, derive(self.config.seed, "holdout", self.name))

    def profile(self) -> ConfigRecord:
        """What the node answers when asked what it is. Raises DataError, NodeError, SplitError."""
        answers: dict[str, ConfigRecordValues] = {
            "name": self.name,
            "rank": self.rank,
            "num-examples": self.num_examples,
            "store": self.store.id,
            "bases": node_bases(self.config.model, self.store),
            "device": str(dict(self.node).get("device", self.config.device)),
            "memory": os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "cores": os.cpu_count() or 1,
            "versions": f"python {platform.python_version()}",
        }
        return ConfigRecord(answers)

    def accept_base(self, records: RecordDict) -> int:
        """Keep the files of an offered base; returns how many there were. Raises BaseError, Refused."""
        from strategies.exchange import wire

        contents = {name: wire.raw(tensor) for name, tensor in wire.unpack(records).tensors.items()}
        accept_offer(contents, str(self.order["base-fingerprint"]), self.store)
        return len(contents)

    def _own_path(self) -> Path | None:
        own = dict(self.node)
        path = own.get("data-path", own.get("dataset-path"))
        return None if path is None else Path(str(path)).expanduser()

    def _share(self) -> "Positions":
        """The positions of this node's rows in the common data."""
        from task.data import outline
        from task.partition import partition

        own = dict(self.node)
        if "partition-id" not in own or "num-partitions" not in own:
            raise NodeError("the node config has neither data-path nor partition-id and num-partitions")
        if self.config.data.partitioner == "none":
            raise NodeError("data.partitioner = 'none', but the node config has no data-path")
        train = outline(self.config, self.store).train
        split = partition(self.config, train.labels, train.ids, int(own["num-partitions"]), self.store)
        return split[int(own["partition-id"])]
