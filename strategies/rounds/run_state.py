"""What a run remembers beside its state, and goes on with when it is resumed."""

import logging
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from strategies.exchange.federation import Federation
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Profile, RunFailed, State
from strategies.protocol import checkpoint
from strategies.registry import PLAIN
from strategies.rounds.defence.influence import Tally

LOG = logging.getLogger("flwr")
LONGEST_REST = 8  # rounds
OFFER_REST = 3600.0  # seconds between two offers of the base to one store, or one key
REMEMBERED = 8  # pulls of a node
ABOUT = "session"  # its key in what a checkpoint says
PRIVACY = "privacy.safetensors"  # beside the checkpoint: what is spent, kept before it is spent


@dataclass
class Rest:
    """How long a node that did not answer is left alone."""

    missed: int  # times in a row
    until: int  # the first round in which it is asked again


@dataclass
class RunState:
    """One run, from its opening to its end, over all processes that it takes. Nodes are named, as their ids change.

    Everything here is plain JSON values.
    """

    token: str = field(default_factory=lambda: secrets.token_hex(16))  # nodes keep what is theirs alone under it
    round: int = -1  # the last that is over
    rank: int = 0  # that adapters are built with
    failures: int = 0  # failed rounds in a row
    ranks: dict[str, int] = field(default_factory=dict)  # of nodes: those found by a trial, and those that were lowered
    named: bool = False  # has any node a name that its key was registered under? then all must have one
    keys: dict[str, str] = field(default_factory=dict)  # of nodes: the key (its fingerprint) that last had the name
    offers: dict[str, float] = field(default_factory=dict)  # stores and keys that were sent the base: when, in seconds
    rests: dict[str, Rest] = field(default_factory=dict)  # of nodes that did not answer when they were last asked
    lengths: dict[str, list[float]] = field(default_factory=dict)  # of the newest updates, by kind: see `plausible`
    usual: list[float] = field(default_factory=list)  # scores of the newest good evaluations: see `collapse`
    sinking: int = 0  # bad evaluations in a row
    good: list[dict[str, Any]] = field(default_factory=list)  # rounds whose states are kept, with their scores
    senders: dict[str, list[float | None]] = field(default_factory=dict)  # since then, and their pulls: see `pulls`
    out: dict[str, str] = field(default_factory=dict)  # nodes that are left out until the run is resumed, and why
    collapses: int = 0
    tallies: dict[str, Tally] = field(default_factory=dict)  # of nodes, the harm that they did: see `influence`
    losses: list[float] = field(default_factory=list)  # the first and the lowest on the rows of examinations
    privacy: dict[str, Any] = field(default_factory=dict)  # what a mechanism remembers (`Mechanism.memory`)

    def about(self) -> dict[str, Any]:
        """As a checkpoint says it."""
        return {ABOUT: asdict(self)}

    @classmethod
    def read(cls, about: dict[str, Any]) -> "RunState":
        """As a checkpoint said it. Raises KeyError, TypeError."""
        said = about[ABOUT]
        rests = {name: Rest(**rest) for name, rest in said["rests"].items()}
        tallies = {name: Tally(**tally) for name, tally in said.get("tallies", {}).items()}
        return cls(**{**said, "rests": rests, "tallies": tallies})

    def keep_privacy(self, folder: Path) -> None:
        """Keep what is spent by itself, for a process that does not come to its next checkpoint."""
        checkpoint.save(folder / PRIVACY, State({}), {"token": self.token, "privacy": self.privacy})

    def find_privacy(self, folder: Path) -> None:
        """Take up what was kept so, if anything was. Raises OSError, Damaged, KeyError."""
        if (folder / PRIVACY).exists():
            said = checkpoint.load(folder / PRIVACY)[1]
            if said["token"] == self.token:
                self.privacy = said["privacy"]

    def budget(self, profile: Profile) -> int:
        """The largest rank that a node trains in this run; 0 where that is still to be found."""
        known = self.ranks.get(profile.name, 0)
        return min(known, profile.rank) if known and profile.rank else known or profile.rank

    # ------------------------------------------------------------------ what was sent to whom

    def offered(self, *whom: str) -> float:
        """Return the seconds until another offer may be sent to all of `whom`; 0 where one may be sent now."""
        now = time.time()
        self.offers = {one: when for one, when in self.offers.items() if now - OFFER_REST < when <= now}
        return max((self.offers[one] + OFFER_REST - now for one in whom if one in self.offers), default=0.0)

    def offer(self, *whom: str) -> None:
        """An offer is sent to these."""
        self.offers |= dict.fromkeys(whom, time.time())

    def pulled(self, node: str, pull: float | None) -> None:
        """A node had a part in a round, and this pull in it."""
        self.senders[node] = [*self.senders.get(node, []), pull][-REMEMBERED:]

    def learned(self, *losses: float) -> float:
        """Return how far the loss on the rows of examinations has fallen in the run, these included, oldest first."""
        known = [*self.losses, *losses]
        self.losses = [known[0], min(known)]
        return self.losses[0] - self.losses[1]

    # ------------------------------------------------------------------ nodes that do not answer

    def missed(self, node: str, round: int) -> Rest:
        """A node did not answer in this round: it rests for 1, 2, 4, ... of the next ones."""
        before = self.rests.get(node, Rest(0, round))
        if before.until <= round:  # training and evaluation of one round are missed once
            before = Rest(before.missed + 1, round + 1 + min(2**before.missed, LONGEST_REST))
        self.rests[node] = before
        return before

    def heard(self, node: str) -> None:
        """A node answered."""
        self.rests.pop(node, None)

    def rested(self, node: str, round: int) -> bool:
        """Is a node asked in this round?"""
        return node not in self.rests or self.rests[node].until <= round


def identity(strategy: Strategy, federation: Federation) -> dict[str, Any]:
    """Return what a checkpoint says of its run, and what a process that resumes it must have equal."""
    optimizer = strategy.server_optimizer.name if strategy.server_optimizer else PLAIN
    return {"strategy": strategy.name, "seed": federation.seed, "server-optimizer": optimizer}


def resumed(strategy: Strategy, federation: Federation, num_rounds: int) -> tuple[State, RunState]:
    """The state and the session that an earlier process of this run has left. Raises RunFailed."""
    if federation.checkpoint is None:
        raise RunFailed("nothing to resume: no folder of checkpoints is named")
    path = federation.checkpoint / checkpoint.LAST
    try:
        state, about = checkpoint.load(path)
        run_state = RunState.read(about)
        run_state.find_privacy(federation.checkpoint)
    except checkpoint.Damaged as error:
        raise RunFailed(f"cannot resume: {error}; {checkpoint.OTHERS}") from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunFailed(f"cannot resume from {path}: {error}") from error
    about = {"server-optimizer": PLAIN} | about  # version 0.1 had no other
    for what, ours in identity(strategy, federation).items():
        if about[what] != ours:
            raise RunFailed(f"{path} is of a run with {what} {about[what]}, not {ours}")
    if run_state.round >= num_rounds:
        raise RunFailed(f"nothing left to do: {run_state.round} of {num_rounds} rounds are over; ask for more rounds")
    LOG.info("resuming after round %d", run_state.round)
    for node, reason in run_state.out.items():
        LOG.warning("node %s, %s, may take part again", node, reason)
    run_state.out, run_state.collapses = {}, 0
    return state, run_state
