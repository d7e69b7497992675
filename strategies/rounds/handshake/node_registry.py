"""The node registry: nodes that passed the handshake, and which of them are connected now."""

import logging
from dataclasses import dataclass, field, replace

from strategies.exchange import cohort
from strategies.exchange.callback import RoundReport
from strategies.exchange.types import (
    BASE_POSITION,
    Absent,
    Assignment,
    LacksBase,
    Outgrown,
    OutOfMemory,
    Profile,
    Refused,
    State,
)
from strategies.rounds.context import RunContext
from strategies.rounds.handshake.handshake import Handshake, HandshakeResult
from strategies.rounds.handshake.names import identities
from strategies.rounds.handshake.newcomers import Newcomers
from strategies.rounds.handshake.ranks import below

LOG = logging.getLogger("flwr")


@dataclass
class NodeRegistry:
    """The nodes of a run, from the first handshake on."""

    context: RunContext
    handshake: Handshake
    first: HandshakeResult  # of the nodes that were connected before round 1
    known: dict[int, Profile] = field(default_factory=dict)  # every node that ever passed the handshake, by Flower's id
    left_out: set[int] = field(default_factory=set)
    reasons: dict[int, str] = field(default_factory=dict)  # why nodes do not take part yet, as last logged
    present: list[Profile] = field(default_factory=list)  # in the order of names
    newcomers: Newcomers = field(init=False)
    positions: dict[int, str] = field(default_factory=dict)  # known journal position of each node, by id
    reported: dict[str, int] | None = None  # what `connections` returned last

    def __post_init__(self) -> None:
        self.newcomers = Newcomers(self.handshake)
        self._welcome(self.first, set())
        self._see(set(self.known))

    def call(self, report: RoundReport) -> None:
        """Update who is connected. New nodes are asked for their profiles and take part once they have answered; the
        round waits for them only if too few others can train."""
        nodes = identities(self.context.grid)
        self.handshake.names.see(nodes)
        there = set(nodes)
        self.newcomers.ask(node_id for node_id in nodes if node_id not in self.known and node_id not in self.left_out)
        self._see(there)
        while self.newcomers.guests:
            for result in self.newcomers.met(wait=len(self.present) < self.context.federation.min_train_nodes):
                self._welcome(result, there)
                for profile in result.profiles.values():
                    self.context.run_state.heard(profile.name)
                report.spent(result.bytes_up, result.bytes_down, result.bytes_base)
            self._see(there)
            if len(self.present) >= self.context.federation.min_train_nodes:
                break

    def connections(self) -> dict[str, int] | None:
        """Return the ids of the connected nodes by name, or None if they are the same as before."""
        now = {profile.name: profile.node_id for profile in self.present}
        if now == self.reported:
            return None
        self.reported = now
        return now

    def leave_out(self, nodes: dict[str, str]) -> None:
        """Leave these nodes out for the rest of this process, each for its reason."""
        self.context.run_state.out |= nodes
        self.present = [profile for profile in self.present if profile.name not in nodes]

    def leave_out_smaller(self, rank: int) -> None:
        """Leave out the nodes that cannot train the rank that the run started with, because the base gave it up."""
        small = {profile.name: profile.rank for profile in self.present if profile.rank < rank}
        for name, own in small.items():
            said = "node %s is left out: it can train rank %d, and the run started with %d; begin anew with less"
            LOG.warning(said, name, own, rank)
        self.leave_out(dict.fromkeys(small, f"it can train less than rank {rank}, which the run started with"))

    def lower(self, profile: Profile, rank: int) -> None:
        """Lower the rank that this node trains to `rank`."""
        LOG.info("node %s continues at rank %d", profile.name, rank)
        self.context.run_state.ranks[profile.name] = rank
        self.known[profile.node_id] = replace(profile, rank=rank)

    def share(self, profile: Profile, assignment: Assignment, state: State) -> State:
        """Return the node's start without the part of the journal that it has."""
        return self.context.strategy.start_of(state, assignment).after(
            self.positions.get(profile.node_id, BASE_POSITION)
        )

    def answered(self, profile: Profile, state: State) -> None:
        """Note a good reply: the node has the journal that was sent to it."""
        self.positions[profile.node_id] = state.positions[-1]
        self.context.run_state.heard(profile.name)

    def failed(self, profile: Profile, round: int, reason: Refused) -> None:
        """Note that there was no good reply: it is not known what the node has, so it will be sent everything.

        A node that did not answer at all rests for some rounds, so that its next message does not queue behind this
        one.
        """
        self.positions.pop(profile.node_id, None)
        if isinstance(reason, Absent):
            rest = self.context.run_state.missed(profile.name, round)
            LOG.info("node %s rests until round %d", profile.name, rest.until)
        else:
            self.context.run_state.heard(profile.name)

    def refused(self, profile: Profile, assignment: Assignment, reason: Refused) -> None:
        """Note that there was no good update. A node that ran out of memory continues at a smaller rank, if there is
        one; a node whose data grew, or whose base is lost, is asked for its profile again."""
        self.failed(profile, assignment.round, reason)
        if isinstance(reason, Outgrown | LacksBase):
            self.known.pop(profile.node_id, None)
        candidates = self.context.config.tuning.candidates() if profile.automatic else ()
        if isinstance(reason, OutOfMemory) and (rank := below(assignment.rank, candidates)):
            self.lower(profile, rank)

    def cohort(self, purpose: str, fraction: float, minimum: int, round: int) -> list[Profile]:
        """Return the nodes that take part in `purpose` in this round: drawn from those that do not rest, unless these
        are too few."""
        return cohort.draw(self.awake(round, minimum), fraction, minimum, self.context.federation.seed, purpose, round)

    def awake(self, round: int, minimum: int) -> list[Profile]:
        """Return the nodes that do not rest in this round; all connected nodes if these are fewer than `minimum`."""
        awake = [profile for profile in self.present if self.context.run_state.rested(profile.name, round)]
        return awake if len(awake) >= minimum else self.present

    def resting(self, round: int) -> list[str]:
        """Return the names of the nodes that are connected but rest in this round."""
        return [profile.name for profile in self.present if not self.context.run_state.rested(profile.name, round)]

    def assignments(self, round: int, rounds: int, state: State | None = None) -> dict[str, Assignment]:
        """Return the strategy's assignment for all connected nodes; no rank is above the state's."""
        assignments = self.context.strategy.assign(self.present, round, rounds, self.context.federation.seed)
        if state is None:
            return assignments
        return {
            name: replace(assignment, rank=min(assignment.rank, state.rank)) for name, assignment in assignments.items()
        }

    def _see(self, there: set[int]) -> None:
        out = self.context.run_state.out
        connected = [p for node_id, p in self.known.items() if node_id in there and p.name not in out]
        self.present = sorted(connected, key=lambda profile: profile.sort_key)

    def _welcome(self, result: HandshakeResult, there: set[int]) -> None:
        """Add new nodes. A restarted node has a new id but its old name, and takes its own place again."""
        held = {profile.name: profile for node_id, profile in self.known.items() if node_id in there}
        new = {node_id: profile for node_id, profile in result.profiles.items() if profile.name not in held}
        waiting = {
            node_id: f"it says it is '{profile.name}', which node {held[profile.name].node_id} is while it is connected"
            for node_id, profile in result.profiles.items()
            if profile.name in held
        }
        for node_id, reason in (waiting | result.postponed).items():
            if self.reasons.get(node_id) != reason:
                LOG.warning("node %d does not take part yet: %s", node_id, reason)
                self.reasons[node_id] = reason
        back = {profile.name for profile in new.values()}
        self.known = {node_id: p for node_id, p in self.known.items() if p.name not in back} | new
        self.left_out |= set(result.left_out)
        for profile in new.values():
            self.handshake.names.bind(profile)
        self.context.run_state.ranks |= {profile.name: profile.rank for profile in new.values() if profile.automatic}
