"""The types of an exchange.

A server changes a node in two ways only: it replaces named tensors, or it appends entries to a journal that every node
replays. A node answers with an additive update.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from strategies.algebra.lowrank import rank_axis
from strategies.algebra.tensors import Tensors, raw

Metrics = dict[str, int | float]
MAX_ROWS = 10**12  # the most rows that a node may report


class RunFailed(RuntimeError):
    """A run that cannot continue; the message names the cause."""


class Refused(ValueError):
    """A message, a reply or a node that is not valid. The message is the logged reason; it repeats only what the other
    side sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.public = message


class Absent(Refused):
    """A node that did not answer in time, or that Flower cannot reach."""


class Outgrown(Refused):
    """A node with more rows than its profile says; the server asks for its profile again."""


class LacksBase(Refused):
    """A node whose store has lost the base; the server asks for its profile again and offers the base."""

    RECORD = "lacks-base"  # name of the record in the node's reply


class OutOfMemory(Refused):
    """A node that ran out of memory; it may succeed at a smaller rank."""

    SAID = "the node has too little memory for it"  # all that the server learns: torch's own message may name files

    RECORD = "out-of-memory"  # name of the record in the node's reply; its field `said` is the error


@dataclass(frozen=True)
class Profile:
    """A node's description of itself."""

    node_id: int  # Flower's, random in every run
    name: str  # stable: seeds, the order of nodes and logs depend on it
    rank: int  # the largest adapter rank that the node can train; 0: no adapter, or not known yet
    num_examples: int  # rows it trains on
    store: str  # identity of the disk it keeps bases on; nodes may share one
    bases: frozenset[str] = frozenset()  # fingerprints of the bases it could start from
    named_base: str = ""  # the one of them that `model.name` names there; empty: none
    device: str = "cpu"
    memory: int = 0  # bytes free where it would train
    cores: int = 1
    versions: str = ""  # of the libraries that compute there (`task.versions`)
    automatic: bool = False  # whether its rank is found by a trial
    dtypes: frozenset[str] = frozenset()  # that its device trains in; empty: it did not say
    labels_fit: bool = True  # whether the labels of its rows are among those of the instructions
    labels: tuple[str, ...] = ()  # those that its owner has published
    key: str = ""  # fingerprint of the key that the SuperLink has verified, so not a claim; empty: no key

    @property
    def sort_key(self) -> tuple[bool, int, str]:
        """Return the sorting key: partition numbers compare as numbers."""
        number = self.name.isdecimal() and len(self.name) < 20
        return (not number, int(self.name) if number else 0, self.name)


@dataclass(frozen=True)
class Assignment:
    """What the server assigns to one node for one round."""

    round: int  # 1 ... rounds; 0 is the state before training
    rounds: int
    seed: int  # public: data order and dropout follow from it
    rank: int  # of the adapter that this node trains; 0: no adapter
    basis: int = 0  # seed of random directions, for strategies that use them
    noise: float = 0.0  # that the node adds itself, in clips, if the server finds it for a wrapper
    nodes: int = 0  # that are connected in this round; 0: not known. It is not sent


@dataclass(frozen=True)
class Entry:
    """One change of the base that any node can replay: a few tensors, and the seed to read them with."""

    round: int
    seed: int
    tensors: Tensors
    _positions: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)  # by before

    def position_after(self, before: str) -> str:
        """Return the journal position after this entry, if `before` is the position in front of it.

        Each result is hashed once: a round walks the journal several times, and a longer journal must not cost more.
        """
        if before not in self._positions:
            hashed = hashlib.blake2b(f"{before} {self.digest}".encode(), digest_size=16)
            self._positions[before] = hashed.hexdigest()
        return self._positions[before]

    @cached_property
    def digest(self) -> str:
        """Return a hash of the whole entry."""
        hashed = hashlib.blake2b(f"{self.round} {self.seed}".encode(), digest_size=16)
        for name, tensor in sorted(self.tensors.items()):
            hashed.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            hashed.update(raw(tensor))
        return hashed.hexdigest()


BASE_POSITION = ""  # the position before the first entry; equal positions mean equal entries, from the base on


@dataclass(frozen=True)
class State:
    """All that the server knows of the model. A node is sent a part of it, cut to the node's rank.

    `server` holds tensors that only the server has, such as the moments of an optimizer. Checkpoints keep them,
    messages do not, and they count as neither parameters nor bytes. Only the strategy and the server optimizer see
    them.
    """

    tensors: Tensors
    journal: tuple[Entry, ...] = ()
    since: str = BASE_POSITION  # position after the entries that were left out because the receiver has them
    base_weights: Tensors = field(default_factory=dict)  # the weights at that position, for a receiver that lacks them
    server: Tensors = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Return the largest rank among the factors, including the server's own; 0 without adapters."""
        axes = ((tensor, rank_axis(name)) for name, tensor in (*self.tensors.items(), *self.server.items()))
        return max((tensor.shape[axis] for tensor, axis in axes if axis is not None), default=0)

    @property
    def numbers(self) -> int:
        """Return how many numbers the tensors and the journal hold."""
        sections = [self.tensors, self.base_weights, *(entry.tensors for entry in self.journal)]
        return sum(tensor.numel() for section in sections for tensor in section.values())

    @property
    def journal_bytes(self) -> int:
        """Return how many bytes the journal's tensors take."""
        return sum(tensor.nbytes for entry in self.journal for tensor in entry.tensors.values())

    @cached_property
    def positions(self) -> tuple[str, ...]:
        """Return the journal position before each entry, and after the last."""
        positions = [self.since]
        for entry in self.journal:
            positions.append(entry.position_after(positions[-1]))
        return tuple(positions)

    def without_server(self) -> "State":
        """Return the state as wrappers and combination rules see it."""
        return replace(self, server={}) if self.server else self

    def after(self, position: str) -> "State":
        """Return the state without the entries up to `position`; the whole state if the journal does not contain that
        position."""
        positions = self.positions
        if position not in positions:
            return self
        return replace(self, journal=self.journal[positions.index(position) :], since=position, base_weights={})


@dataclass(frozen=True)
class Update:
    """One node's validated answer: `delta` is what it learned, and zero means that it learned nothing."""

    node: str
    assignment: Assignment
    delta: Tensors
    weight: float  # rows trained on
    metrics: Mapping[str, int | float] = field(default_factory=dict)
