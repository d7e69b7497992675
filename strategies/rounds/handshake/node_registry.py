"""Who is there: nodes that fitted when they were asked, and which of them are connected now."""

import logging
from dataclasses import dataclass, field, replace

from flwr.serverapp import Grid

from strategies.exchange import cohort
from strategies.exchange.federation import Federation, Round
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import (
    BASE_MARK,
    Absent,
    LacksBase,
    Outgrown,
    OutOfMemory,
    Profile,
    Refused,
    State,
    Ticket,
)
from strategies.rounds.handshake.handshake import Meeting
from strategies.rounds.handshake.names import identities
from strategies.rounds.handshake.newcomers import Newcomers
from strategies.rounds.handshake.opening import Opening
from strategies.rounds.handshake.ranks import below
from strategies.rounds.run_state import Session

LOG = logging.getLogger("flwr")


@dataclass
class Roll:
    """The nodes of a run, from its opening on."""

    strategy: Strategy
    grid: Grid
    opening: Opening
    federation: Federation
    timeout: float
    session: Session
    known: dict[int, Profile] = field(default_factory=dict)  # every node that ever fitted, by Flower's id
    left_out: set[int] = field(default_factory=set)
    told: dict[int, str] = field(default_factory=dict)  # why nodes do not take part yet, as it was last said
    present: list[Profile] = field(default_factory=list)  # in the order of names
    newcomers: Newcomers = field(init=False)
    marks: dict[int, str] = field(default_factory=dict)  # how much of the journal each node is known to hold, by id

    def __post_init__(self) -> None:
        self.newcomers = Newcomers(self.opening.host)
        self._welcome(self.opening.meeting, set())
        self._see(set(self.known))

    def call(self, report: Round) -> None:
        """Look who is connected; nodes never seen before are asked what they are, and take part once they have
        answered. That is waited for only where too few others could train."""
        nodes = identities(self.grid)
        self.opening.host.names.see(nodes)
        there = set(nodes)
        self.newcomers.ask(node_id for node_id in nodes if node_id not in self.known and node_id not in self.left_out)
        self._see(there)
        while self.newcomers.guests:
            for meeting in self.newcomers.met(wait=len(self.present) < self.federation.min_train_nodes):
                self._welcome(meeting, there)
                for profile in meeting.profiles.values():
                    self.session.heard(profile.name)
                report.spent(meeting.bytes_up, meeting.bytes_down, meeting.bytes_base)
            self._see(there)
            if len(self.present) >= self.federation.min_train_nodes:
                break

    def leave_out(self, nodes: dict[str, str]) -> None:
        """Ask these nodes nothing more in this process, for the reason that each is here with."""
        self.session.out |= nodes
        self.present = [profile for profile in self.present if profile.name not in nodes]

    def lower(self, profile: Profile, rank: int) -> None:
        """From now on this node trains no more than `rank`."""
        LOG.info("node %s goes on at rank %d", profile.name, rank)
        self.session.ranks[profile.name] = rank
        self.known[profile.node_id] = replace(profile, rank=rank)

    def share(self, profile: Profile, ticket: Ticket, state: State) -> State:
        """What this node is sent: its start, without the part of the journal that it holds."""
        return self.strategy.start_of(state, ticket).after(self.marks.get(profile.node_id, BASE_MARK))

    def answered(self, profile: Profile, state: State) -> None:
        """A good reply: the node holds the journal that was sent to it."""
        self.marks[profile.node_id] = state.marks[-1]
        self.session.heard(profile.name)

    def failed(self, profile: Profile, round: int, reason: Refused) -> None:
        """No good reply: what the node holds is not known, so it will be sent everything. One that did not answer at
        all rests for some rounds, so that its next message does not wait behind this one."""
        self.marks.pop(profile.node_id, None)
        if isinstance(reason, Absent):
            rest = self.session.missed(profile.name, round)
            LOG.info("node %s rests until round %d", profile.name, rest.until)
        else:
            self.session.heard(profile.name)

    def refused(self, profile: Profile, ticket: Ticket, reason: Refused) -> None:
        """No good update. A node that ran out of memory goes on at a smaller rank, where there is one; one whose data
        grew, or whose base is lost, is asked again what it is and has."""
        self.failed(profile, ticket.round, reason)
        if isinstance(reason, Outgrown | LacksBase):
            self.known.pop(profile.node_id, None)
        candidates = self.opening.config.lora.auto_ranks if profile.automatic else ()
        if isinstance(reason, OutOfMemory) and (rank := below(ticket.rank, candidates)):
            self.lower(profile, rank)

    def cohort(self, purpose: str, fraction: float, minimum: int, round: int) -> list[Profile]:
        """Who takes part in `purpose` in this round: drawn from those that do not rest, unless these are too few."""
        return cohort.draw(self.awake(round, minimum), fraction, minimum, self.federation.seed, purpose, round)

    def awake(self, round: int, minimum: int) -> list[Profile]:
        """The nodes that do not rest in this round; all that are there where these are fewer than `minimum`."""
        awake = [profile for profile in self.present if self.session.rested(profile.name, round)]
        return awake if len(awake) >= minimum else self.present

    def resting(self, round: int) -> list[str]:
        """Names of the nodes that are connected and left alone in this round."""
        return [profile.name for profile in self.present if not self.session.rested(profile.name, round)]

    def tickets(self, round: int, rounds: int, state: State | None = None) -> dict[str, Ticket]:
        """The strategy's assignment to all who are there, no rank above what the state holds."""
        tickets = self.strategy.assign(self.present, round, rounds, self.federation.seed)
        if state is None:
            return tickets
        return {name: replace(ticket, rank=min(ticket.rank, state.rank)) for name, ticket in tickets.items()}

    def _see(self, there: set[int]) -> None:
        out = self.session.out
        connected = [p for node_id, p in self.known.items() if node_id in there and p.name not in out]
        self.present = sorted(connected, key=lambda profile: profile.order)

    def _welcome(self, meeting: Meeting, there: set[int]) -> None:
        """Remember new nodes. A restarted node has a new id but its old name, and takes its own place again."""
        held = {profile.name: profile for node_id, profile in self.known.items() if node_id in there}
        new = {node_id: profile for node_id, profile in meeting.profiles.items() if profile.name not in held}
        waiting = {
            node_id: f"it says it is '{profile.name}', which node {held[profile.name].node_id} is while it is connected"
            for node_id, profile in meeting.profiles.items()
            if profile.name in held
        }
        for node_id, reason in (waiting | meeting.postponed).items():
            if self.told.get(node_id) != reason:
                LOG.warning("node %d does not take part yet: %s", node_id, reason)
                self.told[node_id] = reason
        back = {profile.name for profile in new.values()}
        self.known = {node_id: p for node_id, p in self.known.items() if p.name not in back} | new
        self.left_out |= set(meeting.left_out)
        for profile in new.values():
            self.opening.host.names.bind(profile)
        self.session.ranks |= {profile.name: profile.rank for profile in new.values() if profile.automatic}
