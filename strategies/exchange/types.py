"""The nouns of an exchange. A server moves a node in two ways only: it replaces named tensors, or it
appends entries to a journal that everyone replays. A node answers with an additive update.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from strategies.algebra.lowrank import rank_axis
from strategies.algebra.tensors import Tensors, raw

Metrics = dict[str, int | float]
MAX_ROWS = 10**12  # that a node may say it has


class RunFailed(RuntimeError):
    """A run that cannot go on; the message names the cause."""


class Refused(ValueError):
    """A message, a reply or a node that does not fit; the reason that is logged. It says what the other side has sent,
    and no more."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.public = message


class Absent(Refused):
    """A node that did not answer in time, or that Flower cannot reach."""


class Outgrown(Refused):
    """A node with more rows than it said when it was asked; it is to be asked again."""


class LacksBase(Refused):
    """A node whose store has lost the base that it had; it is to be asked again, and offered the base."""

    RECORD = "lacks-base"  # of such a node's reply


class OutOfMemory(Refused):
    """A node whose memory does not do for what it was asked; it may do at a smaller rank."""

    SAID = "the node has too little memory for it"  # all that others learn: what torch says may name files

    RECORD = "out-of-memory"  # of such a node's reply; `said` in it is the error


@dataclass(frozen=True)
class Profile:
    """What a node says of itself when asked."""

    node_id: int  # Flower's, random in every run
    name: str  # stable: seeds, order and logs go by it
    rank: int  # the largest adapter rank the node can train; 0: there is none, or it is still to be found
    num_examples: int  # rows it trains on
    store: str  # identity of the disk it keeps bases on; nodes may share one
    bases: frozenset[str] = frozenset()  # fingerprints of the bases it could start from
    device: str = "cpu"
    memory: int = 0  # bytes free where it would train
    cores: int = 1
    versions: str = ""  # of what computes there (`task.models.versions`)
    automatic: bool = False  # is its rank found by a trial?
    dtypes: frozenset[str] = frozenset()  # that its device trains in; empty: it did not say
    labels_fit: bool = True  # are the labels of its rows among those of the order?
    labels: tuple[str, ...] = ()  # those that its owner has published
    key: str = ""  # fingerprint of the key that it proves to the SuperLink, not a claim; empty: it has none

    @property
    def sort_key(self) -> tuple[bool, int, str]:
        """Sorting key: partition numbers count as numbers."""
        number = self.name.isdecimal() and len(self.name) < 20
        return (not number, int(self.name) if number else 0, self.name)


@dataclass(frozen=True)
class Assignment:
    """What the server assigns to one node for one round."""

    round: int  # 1 ... rounds; 0 is the state before training
    rounds: int
    seed: int  # public: data order and dropout follow from it
    rank: int  # of the adapter this node trains; 0 where there is none
    basis: int = 0  # seed of random directions, where a strategy has some
    noise: float = 0.0  # that the node adds by itself, in clips, where a wrapper has it found by the server


@dataclass(frozen=True)
class Entry:
    """One change of the base that anyone can replay: a few tensors and the seed they are read with."""

    round: int
    seed: int
    tensors: Tensors
    _marks: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)  # after, by before

    def position_after(self, before: str) -> str:
        """Return the mark of a journal that has this entry after the mark `before`. Hashed once: a journal is walked
        several times a round, and must not cost more the longer it gets."""
        if before not in self._marks:
            hashed = hashlib.blake2b(f"{before} {self.digest}".encode(), digest_size=16)
            self._marks[before] = hashed.hexdigest()
        return self._marks[before]

    @cached_property
    def digest(self) -> str:
        """A hash of all there is to the entry."""
        hashed = hashlib.blake2b(f"{self.round} {self.seed}".encode(), digest_size=16)
        for name, tensor in sorted(self.tensors.items()):
            hashed.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            hashed.update(raw(tensor))
        return hashed.hexdigest()


BASE_POSITION = ""  # before the first entry; equal marks mean equal entries, from the base on


@dataclass(frozen=True)
class State:
    """The server's whole memory of the model; resized and cut, it is what goes down to a node.

    `server` holds tensors that only the server has, such as the moments of an optimizer: a checkpoint keeps them, no
    message does, and they count as neither parameters nor bytes. Only the strategy and the server optimizer see them.
    """

    tensors: Tensors
    journal: tuple[Entry, ...] = ()
    since: str = BASE_POSITION  # the mark of entries that were cut off in front, because the receiver has them
    base_weights: Tensors = field(default_factory=dict)  # or the weights at that mark, for a receiver that lacks them
    server: Tensors = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Largest rank among the factors, those that wait on the server included; 0 without adapters."""
        axes = ((tensor, rank_axis(name)) for name, tensor in (*self.tensors.items(), *self.server.items()))
        return max((tensor.shape[axis] for tensor, axis in axes if axis is not None), default=0)

    @property
    def numbers(self) -> int:
        """How many numbers there are in tensors and journal."""
        sections = [self.tensors, self.base_weights, *(entry.tensors for entry in self.journal)]
        return sum(tensor.numel() for section in sections for tensor in section.values())

    @property
    def journal_bytes(self) -> int:
        """How many bytes there are in the journal's tensors."""
        return sum(tensor.nbytes for entry in self.journal for tensor in entry.tensors.values())

    @cached_property
    def positions(self) -> tuple[str, ...]:
        """The mark before each entry, and after the last."""
        positions = [self.since]
        for entry in self.journal:
            positions.append(entry.position_after(positions[-1]))
        return tuple(positions)

    def without_server(self) -> "State":
        """Return the state as wrappers and rules of combination see it."""
        return replace(self, server={}) if self.server else self

    def after(self, position: str) -> "State":
        """Without the entries up to `mark`; whole where the journal does not know that mark."""
        positions = self.positions
        if position not in positions:
            return self
        return replace(self, journal=self.journal[positions.index(position) :], since=position, base_weights={})


@dataclass(frozen=True)
class Update:
    """One node's answer, checked: `delta` is what it learned, and zero means that it learned nothing."""

    node: str
    assignment: Assignment
    delta: Tensors
    weight: float  # rows trained on
    metrics: Mapping[str, int | float] = field(default_factory=dict)
