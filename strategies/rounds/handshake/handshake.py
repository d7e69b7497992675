"""The handshake of server and node: the node sends its profile, is offered the base if it lacks it, and runs a trial if
its rank is automatic.

`Handshake.greet` is the whole conversation without the waiting: it yields the messages that it has sent and receives
the replies. `start.py` waits for them, with all nodes at once; `newcomers.py` does not.
"""

import logging
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from flwr.app import Message, RecordDict

from strategies.exchange.types import Profile, Refused, State
from strategies.protocol import instructions, wire
from strategies.protocol.trial import Trial
from strategies.rounds import messaging, validation
from strategies.rounds.context import RunContext
from strategies.rounds.handshake import names, profile_parsing, ranks
from strategies.rounds.handshake.agreement import agreed_base
from strategies.rounds.handshake.names import Names, shared
from task.config import TaskConfig
from task.files.contents import has_weights
from task.models.base import Base, files
from task.versions import differing, versions, written

LOG = logging.getLogger("flwr")
SPEAKERS = 3  # nodes that are asked to run the model for all, one after another
Answers = Iterable[tuple[messaging.Sent, Message | None]]
Greeting = Generator[list[messaging.Sent], Answers, "HandshakeResult"]


@dataclass(frozen=True)
class HandshakeResult:
    """The result of asking some nodes. `bytes_base` were spent on offers of the base."""

    profiles: dict[int, Profile]  # by Flower's node id
    left_out: dict[int, str]  # node id -> reason
    postponed: dict[int, str] = field(default_factory=dict)  # node id -> reason; these may be asked again
    bytes_up: int = 0
    bytes_down: int = 0
    bytes_base: int = 0
    called: dict[int, str] = field(default_factory=dict)  # names of nodes that are left out, if known

    def without(self, reasons: Mapping[int, str]) -> "HandshakeResult":
        """Return the result without these nodes, each for its reason."""
        for node_id, reason in reasons.items():
            LOG.warning("left out node %s: %s", self.profiles[node_id].name, reason)
        kept = {node_id: profile for node_id, profile in self.profiles.items() if node_id not in reasons}
        called = self.called | {node_id: self.profiles[node_id].name for node_id in reasons}
        return replace(self, profiles=kept, left_out=self.left_out | dict(reasons), called=called)

    def later(self, reasons: Mapping[int, str]) -> "HandshakeResult":
        """Return the result without these nodes for now."""
        kept = {node_id: profile for node_id, profile in self.profiles.items() if node_id not in reasons}
        called = self.called | {node_id: self.profiles[node_id].name for node_id in reasons}
        return replace(self, profiles=kept, postponed=self.postponed | dict(reasons), called=called)


@dataclass(frozen=True)
class Handshake:
    """The conversation with a node before it takes part."""

    context: RunContext
    names: Names

    def greet(self, node_ids: Iterable[int]) -> Greeting:
        """Run the handshake with these nodes."""
        asked = self._ask(node_ids)
        result = self._met((yield asked), sum(item.bytes for item in asked))
        result = result.without(shared(result.profiles.values()))
        if not (base := self.context.base).fingerprint:
            self.context.run_state.base = agreed_base(result.profiles.values(), base.name)
        result, offers = self._offers(result)
        if offers:
            result = self._taken(result, list(offers), (yield list(offers.values())))
        result = yield from self._dry_run(result)
        known = {node_id: replace(p, rank=self.context.run_state.budget(p)) for node_id, p in result.profiles.items()}
        result = replace(result, profiles=known)
        if trying := sorted((p for p in known.values() if p.automatic and not p.rank), key=lambda p: p.sort_key):
            sent = self._try(trying)
            result = self._ranked(result, trying, (yield sent), sum(item.bytes for item in sent))
        return result

    def _ask(self, node_ids: Iterable[int]) -> list[messaging.Sent]:
        """Ask every node for its profile."""
        # everything that nodes will be asked, as a policy may refuse it; the base's fingerprint is not known yet
        question = messaging.Payload.of(
            RecordDict({"instructions": instructions.write(self.context.config, self.context.strategy, "")})
        )
        sent = [messaging.send(self.context.grid, node_id, "query.profile", "0", question) for node_id in node_ids]
        LOG.info("asked %d nodes for their profiles", len(sent))
        return sent

    def _met(self, answers: Answers, down: int) -> HandshakeResult:
        """Return the profiles of the nodes that answer and fit; the others are left out with a reason."""
        profiles: dict[int, Profile] = {}
        left_out: dict[int, str] = {}
        called: dict[int, str] = {}
        up = 0
        for item, reply in answers:
            name = ""
            try:
                profile = profile_parsing.profile_in(item.node_id, reply)
                up += wire.size(validation.content(reply))
                name = str(item.node_id)  # until its own name is known
                profile = self.names.checked(profile)
                name = profile.name
                _check_fits(profile, self.context.config)
                profiles[item.node_id] = profile
            except Refused as reason:
                left_out[item.node_id] = str(reason)
                name = name or self.names.registered(item.node_id) or names.said_in(str(reason)) or str(item.node_id)
                called[item.node_id] = name
                LOG.warning("left out node %s: %s", name, reason)
        return HandshakeResult(profiles, left_out, bytes_up=up, bytes_down=down, called=called)

    def _offers(self, result: HandshakeResult) -> tuple[HandshakeResult, dict[str, messaging.Sent]]:
        """Send the base once to every store that lacks it; return what was sent, by store.

        A store, and a key, is sent it at most once an hour: a node with a new store in every round would get it again
        and again.
        """
        base, run_state = self.context.base, self.context.run_state
        lacking = {p.store: p for p in result.profiles.values() if base.fingerprint not in p.bases}
        if not lacking:
            return result, {}
        offered = self.context.config.model.offer
        if not offered or not has_weights(files(base.folder)):
            why = "the server has no weights of it to offer" if offered else "model.offer is false"
            reason = f"it lacks the base '{base.name}' ({base.fingerprint or 'no node has it'}) and {why}"
            return _without(result, base, dict.fromkeys(lacking, reason)), {}
        waits = {store: run_state.offered(*_paid(profile)) for store, profile in lacking.items()}
        payload = self._payload(base) if not all(waits.values()) else None
        sent: dict[str, messaging.Sent] = {}
        for store, profile in lacking.items():
            if payload is not None and not waits[store]:
                run_state.offer(*_paid(profile))
                sent[store] = messaging.send(self.context.grid, profile.node_id, "query.base", "0", payload)
        late = {
            store: "it was sent the base and still lacks it; it is not sent again within an hour"
            for store, wait in waits.items()
            if wait
        }
        result = result.later(_by_store(result, base, late))
        if sent:
            size = next(iter(sent.values())).bytes
            LOG.info("offered the base '%s' to %d stores that lack it, %d bytes each", base.name, len(sent), size)
        return replace(result, bytes_base=result.bytes_base + sum(item.bytes for item in sent.values())), sent

    def _payload(self, base: Base) -> messaging.Payload:
        contents = {
            name: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
            for name, path in files(base.folder).items()
        }
        records = wire.pack(State(contents))
        records["instructions"] = instructions.write(self.context.config, self.context.strategy, base.fingerprint)
        return messaging.Payload.of(records)

    def _taken(self, result: HandshakeResult, stores: list[str], answers: Answers) -> HandshakeResult:
        """Leave out the nodes that did not get the base."""
        refused = {}
        for (_, reply), store in zip(answers, stores, strict=True):
            try:
                validation.validate_metrics(reply)
            except Refused as reason:
                refused[store] = f"it did not take the base: {reason}"
        return _without(result, self.context.base, refused)

    def _dry_run(self, result: HandshakeResult) -> Greeting:
        """Have nodes prepare their rows and run the model once; leave out those that cannot.

        All are asked if their rows are their own. If the server has rows, but reads no weights, one node runs the model
        for all: the first of at most SPEAKERS that can. If none of these can, all nodes are left out.
        """
        asked = sorted(result.profiles.values(), key=lambda profile: profile.sort_key)
        if self.context.config.data.partitioner.own_rows:
            return (yield from self._rehearsed(result, asked)) if asked else result
        if not self.context.base.bare or self.context.run_state.round >= 0:
            return result
        for speaker in asked[:SPEAKERS]:
            result = yield from self._rehearsed(result, [speaker])
            if speaker.node_id in result.profiles:
                return result
            why = f"node {speaker.name} could not run the model: {result.left_out[speaker.node_id]}"
        return result.without(dict.fromkeys(result.profiles, why)) if result.profiles else result

    def _rehearsed(self, result: HandshakeResult, asked: Iterable[Profile]) -> Greeting:
        """Have these nodes prepare their rows and run the model once; leave out those that cannot."""
        instruction = instructions.write(self.context.config, self.context.strategy, self.context.base.fingerprint)
        payload = messaging.Payload.of(RecordDict({"instructions": instruction}))
        sent = [messaging.send(self.context.grid, one.node_id, "query.rehearsal", "0", payload) for one in asked]
        LOG.info("%d nodes prepare their rows and run the model once", len(sent))
        reasons, up = {}, 0
        for item, reply in (yield sent):
            try:
                validation.validate_metrics(reply)
                up += wire.size(validation.content(reply))
            except Refused as reason:
                reasons[item.node_id] = str(reason)
        down = result.bytes_down + sum(item.bytes for item in sent)
        return replace(result, bytes_up=result.bytes_up + up, bytes_down=down).without(reasons)

    def _try(self, automatic: list[Profile]) -> list[messaging.Sent]:
        """Ask nodes whose rank is automatic and new to the run for a trial."""
        instruction = instructions.write(self.context.config, self.context.strategy, self.context.base.fingerprint)
        payload = messaging.Payload.of(RecordDict({"instructions": instruction}))
        candidates = self.context.config.tuning.candidates()
        LOG.info("%d nodes try ranks %d to %d", len(automatic), candidates[0], candidates[-1])
        return [
            messaging.send(self.context.grid, profile.node_id, "query.trial", "0", payload) for profile in automatic
        ]

    def _ranked(
        self, result: HandshakeResult, automatic: list[Profile], answers: Answers, down: int
    ) -> HandshakeResult:
        """Set the ranks that follow from trials."""
        lines, found, up = [], {}, 0
        for (_, reply), profile in zip(answers, automatic, strict=True):
            trial, choice = _choice(profile, reply, self.context.config.tuning.candidates(), self.context.timeout)
            lines.append((profile, trial, choice))
            found[profile.node_id] = replace(profile, rank=choice.rank)
            up += wire.size(reply.content) if reply is not None and not reply.has_error() else 0
        for line in ranks.table(lines).splitlines():
            LOG.info("%s", line)
        up, down = result.bytes_up + up, result.bytes_down + down
        return replace(result, profiles=result.profiles | found, bytes_up=up, bytes_down=down)


def _check_fits(profile: Profile, config: TaskConfig) -> None:
    """Raise Refused for a node whose device or labels do not fit the task; only warn if its software differs.

    The node itself has checked the columns of its data before it answers. The names and shapes of its trained tensors
    are validated in its first reply, because building a model takes seconds.
    """
    if profile.dtypes and (dtype := config.model.dtype) not in profile.dtypes:
        raise Refused(f"its device, {profile.device}, does not train in model.dtype = '{dtype}'")
    if not profile.labels_fit:
        own = f"; it has {'|'.join(profile.labels)!r:.200}" if profile.labels else ""
        raise Refused(f"its labels are not among the run's, {'|'.join(config.data.labels)!r:.200}{own}")
    if other := differing(profile.versions, ours := written(versions())):
        LOG.warning("node %s has %.200s, the server %s: bits may differ", profile.name, other, ours)


def _paid(profile: Profile) -> tuple[str, str]:
    """Return whom an offer is counted for: the store, and the node, by its key if it has one."""
    return f"store {profile.store}", f"node {profile.key or profile.node_id}"


def _by_store(result: HandshakeResult, base: Base, reasons: Mapping[str, str]) -> dict[int, str]:
    """Return the reasons by node, for nodes that lack the base; the given reasons are by store."""
    return {
        node_id: reasons[profile.store]
        for node_id, profile in result.profiles.items()
        if profile.store in reasons and base.fingerprint not in profile.bases
    }


def _without(result: HandshakeResult, base: Base, reasons: Mapping[str, str]) -> HandshakeResult:
    """Return the result without the nodes that lack the base and will not get it; the reasons are by store."""
    return result.without(_by_store(result, base, reasons))


def _choice(
    profile: Profile, reply: Message | None, candidates: tuple[int, ...], timeout: float
) -> tuple[Trial | None, ranks.Choice]:
    """Return a node's trial, and the rank that follows; the smallest rank without a trial."""
    try:
        trial = Trial.read(validation.content(reply).config_records.get("trial", {}), candidates)
    except Refused as reason:
        LOG.warning("node %s: no trial: %s", profile.name, reason)
        return None, ranks.Choice(candidates[0], ranks.UNKNOWN)
    choice = ranks.choose(trial, candidates, timeout)
    if not choice.fits:
        LOG.warning("node %s: not even rank %d fits its %s", profile.name, choice.rank, choice.limit)
    return trial, choice
