"""The run state: what a run remembers besides the model's state, and continues with when it is resumed."""

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
ABOUT = "session"  # key of the run state in a checkpoint's description
PRIVACY = "privacy.safetensors"  # next to the checkpoint: what is spent, written before it is spent


@dataclass
class Rest:
    """How long a node that did not answer is left alone."""

    missed: int  # times in a row
    until: int  # the first round in which it is asked again


@dataclass
class RunState:
    """The state of one run over all processes that it takes, from its handshake to its end.

    Nodes are identified by name, because their ids change. Everything here is plain JSON.
    """

    token: str = field(default_factory=lambda: secrets.token_hex(16))  # nodes keep their client state under it
    round: int = -1  # the last finished round
    base: str = ""  # fingerprint of the base, if nodes said it because the server has no weights
    rank: int = 0  # that adapters are built with
    failures: int = 0  # failed rounds in a row
    ranks: dict[str, int] = field(default_factory=dict)  # of nodes: found by a trial, or lowered
    named: bool = False  # whether any node's name is registered with its key; then all must be
    keys: dict[str, str] = field(default_factory=dict)  # of nodes: fingerprint of the key that last had the name
    offers: dict[str, float] = field(default_factory=dict)  # stores and keys that were sent the base: when, in seconds
    rests: dict[str, Rest] = field(default_factory=dict)  # of nodes that did not answer when they were last asked
    lengths: dict[str, list[float]] = field(default_factory=dict)  # of the newest updates, by kind: see `outliers`
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
        """Return the run state as a checkpoint has it."""
        return {ABOUT: asdict(self)}

    @classmethod
    def read(cls, about: dict[str, Any]) -> "RunState":
        """Read the run state from a checkpoint's description. Raises KeyError, TypeError."""
        said = about[ABOUT]
        rests = {name: Rest(**rest) for name, rest in said["rests"].items()}
        tallies = {name: Tally(**tally) for name, tally in said.get("tallies", {}).items()}
        return cls(**{**said, "rests": rests, "tallies": tallies})

    def keep_privacy(self, folder: Path) -> None:
        """Write what is spent to a file of its own, in case the process does not reach its next checkpoint."""
        checkpoint.save(folder / PRIVACY, State({}), {"token": self.token, "privacy": self.privacy})

    def find_privacy(self, folder: Path) -> None:
        """Read what `keep` wrote, if anything. Raises OSError, Damaged, KeyError."""
        if (folder / PRIVACY).exists():
            said = checkpoint.load(folder / PRIVACY)[1]
            if said["token"] == self.token:
                self.privacy = said["privacy"]

    def budget(self, profile: Profile) -> int:
        """Return the largest rank that a node trains in this run; 0 if that is not known yet."""
        known = self.ranks.get(profile.name, 0)
        return min(known, profile.rank) if known and profile.rank else known or profile.rank

    # ------------------------------------------------------------------ what was sent to whom

    def offered(self, *whom: str) -> float:
        """Return the seconds until another offer may be sent to all of `whom`; 0 if one may be sent now."""
        now = time.time()
        self.offers = {one: when for one, when in self.offers.items() if now - OFFER_REST < when <= now}
        return max((self.offers[one] + OFFER_REST - now for one in whom if one in self.offers), default=0.0)

    def offer(self, *whom: str) -> None:
        """Note that an offer was sent to these."""
        self.offers |= dict.fromkeys(whom, time.time())

    def pulled(self, node: str, pull: float | None) -> None:
        """Note that a node took part in a round, and its pull."""
        self.senders[node] = [*self.senders.get(node, []), pull][-REMEMBERED:]

    def learned(self, *losses: float) -> float:
        """Return how far the loss on the rows of examinations has fallen in the run, these included, oldest first."""
        known = [*self.losses, *losses]
        self.losses = [known[0], min(known)]
        return self.losses[0] - self.losses[1]

    # ------------------------------------------------------------------ nodes that do not answer

    def missed(self, node: str, round: int) -> Rest:
        """Note that a node did not answer in this round: it rests for 1, 2, 4, ... of the next rounds."""
        before = self.rests.get(node, Rest(0, round))
        if before.until <= round:  # a miss of training and evaluation in one round counts once
            before = Rest(before.missed + 1, round + 1 + min(2**before.missed, LONGEST_REST))
        self.rests[node] = before
        return before

    def heard(self, node: str) -> None:
        """Note that a node answered."""
        self.rests.pop(node, None)

    def rested(self, node: str, round: int) -> bool:
        """Return whether a node is asked in this round."""
        return node not in self.rests or self.rests[node].until <= round


def identity(strategy: Strategy, federation: Federation) -> dict[str, Any]:
    """Return the identity of a run in its checkpoints; a process that resumes the run must have the same."""
    optimizer = strategy.server_optimizer.name if strategy.server_optimizer else PLAIN
    return {"strategy": strategy.name, "seed": federation.seed, "server-optimizer": optimizer}


def resumed(strategy: Strategy, federation: Federation, num_rounds: int) -> tuple[State, RunState]:
    """Return the state and the run state that an earlier process of this run has written. Raises RunFailed."""
    if federation.checkpoint is None:
        raise RunFailed("nothing to resume: no checkpoint folder is set")
    path = federation.checkpoint / checkpoint.LAST
    try:
        state, about = checkpoint.load(path)
        run_state = RunState.read(about)
        run_state.find_privacy(federation.checkpoint)
    except checkpoint.Damaged as error:
        raise RunFailed(f"cannot resume: {error}; {checkpoint.OTHERS}") from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunFailed(f"cannot resume from {path}: {error}") from error
    about = {"server-optimizer": PLAIN} | about  # the only one in version 0.1
    for what, ours in identity(strategy, federation).items():
        if about[what] != ours:
            raise RunFailed(f"{path} is of a run with {what} {about[what]}, not {ours}")
    if run_state.round >= num_rounds:
        raise RunFailed(f"nothing left to do: {run_state.round} of {num_rounds} rounds are finished; set more rounds")
    LOG.info("resuming after round %d", run_state.round)
    for node, reason in run_state.out.items():
        LOG.warning("node %s, %s, may take part again", node, reason)
    run_state.out, run_state.collapses = {}, 0
    return state, run_state
