"""The nouns of an exchange. A server moves a node in two ways only: it replaces named tensors, or it
appends entries to a journal that everyone replays. A node answers with an additive update.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from strategies.algebra.lowrank import rank_axis
from strategies.algebra.tensors import Tensors

Metrics = dict[str, int | float]


class RunFailed(RuntimeError):
    """A run that cannot go on; the message names the cause."""


class Refused(ValueError):
    """A reply, or a node, that does not fit; the message is the reason that is logged."""


@dataclass(frozen=True)
class Profile:
    """What a node says of itself when asked."""

    node_id: int  # Flower's, random in every run
    name: str  # stable: seeds, order and logs go by it
    rank: int  # the largest adapter rank the node can train; 0: has no opinion
    num_examples: int  # rows it trains on
    store: str  # identity of the disk it keeps bases on; nodes may share one
    bases: frozenset[str] = frozenset()  # fingerprints of the bases it could start from
    device: str = "cpu"
    memory: int = 0  # bytes free where it would train
    cores: int = 1
    versions: str = ""

    @property
    def order(self) -> tuple[bool, int, str]:
        """Sorting key: partition numbers count as numbers."""
        number = self.name.isdecimal() and len(self.name) < 20
        return (not number, int(self.name) if number else 0, self.name)


@dataclass(frozen=True)
class Ticket:
    """What the server assigns to one node for one round."""

    round: int  # 1 ... rounds; 0 is the state before training
    rounds: int
    seed: int  # public: data order and dropout follow from it
    rank: int  # of the adapter this node trains; 0 where there is none


@dataclass(frozen=True)
class Entry:
    """One change of the base that anyone can replay: a few tensors and the seed they are read with."""

    round: int
    seed: int
    tensors: Tensors


@dataclass(frozen=True)
class State:
    """The server's whole memory of the model; resized and cut, it is what goes down to a node."""

    tensors: Tensors
    journal: tuple[Entry, ...] = ()

    @property
    def rank(self) -> int:
        """Largest rank among the factors; 0 without adapters."""
        axes = ((tensor, rank_axis(name)) for name, tensor in self.tensors.items())
        return max((tensor.shape[axis] for tensor, axis in axes if axis is not None), default=0)


@dataclass(frozen=True)
class Update:
    """One node's answer, checked: `delta` is what it learned, and zero means that it learned nothing."""

    node: str
    ticket: Ticket
    delta: Tensors
    weight: float  # rows trained on
    metrics: Mapping[str, int | float] = field(default_factory=dict)
