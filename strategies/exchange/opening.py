"""Before round 1: wait for nodes, settle base, labels and split, ask every node what it is, offer the base, and let
nodes try ranks where nobody has said theirs.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from strategies.exchange import claims, door, order, post, ranks, wire
from strategies.exchange.algorithm import Algorithm
from strategies.exchange.federation import Federation
from strategies.exchange.session import Session
from strategies.exchange.vocabulary import Profile, Refused, RunFailed, State
from task.base import Base, files, server_base
from task.config import TaskConfig
from task.data import Outline, outline
from task.loading import warm_up
from task.partition import partition, table
from task.store import Store, server_store
from task.versions import differing, versions, written

LOG = logging.getLogger("flwr")
POLL = 0.2  # seconds between looks for nodes
SHOWN = 10  # nodes whose reasons an error lists before it says how many more there are


@dataclass(frozen=True)
class Opening:
    """What the run starts from."""

    config: TaskConfig
    base: Base
    meeting: "Meeting"


@dataclass(frozen=True)
class Meeting:
    """What came of asking some nodes. `bytes_base` went into offers of the base."""

    profiles: dict[int, Profile]  # by Flower's node id
    left_out: dict[int, str]  # node id -> reason
    bytes_up: int = 0
    bytes_down: int = 0
    bytes_base: int = 0


def open_run(
    strategy: Algorithm, grid: Grid, config: TaskConfig, federation: Federation, timeout: float, session: Session
) -> Opening:
    """Everything up to the first round. Raises ConfigError, RunFailed and the task's own errors.

    Nodes are asked before the base is settled: training the embedded one, or reading a large one, and imports then
    overlap with the start of their processes.
    """
    node_ids = wait_for_nodes(grid, federation)
    if not config.data.labels:
        config = settled(config, server_store(), len(node_ids))
    asked = _ask(grid, node_ids, config)
    base = federation.base or server_base(config.model, server_store())
    warm_up()
    meeting = _offered(grid, _met(grid, asked, config, timeout), strategy, config, base, timeout)
    meeting = _tried(grid, meeting, strategy, config, base, timeout, session)
    _check_enough(meeting, federation)
    LOG.info("%d nodes take part", len(meeting.profiles))
    return Opening(config, base, meeting)


def meet(
    grid: Grid, node_ids: Iterable[int], strategy: Algorithm, opening: Opening, timeout: float, session: Session
) -> Meeting:
    """Nodes that connect later: asked in the same way, given the base if they lack it."""
    config, base = opening.config, opening.base
    meeting = _met(grid, _ask(grid, node_ids, config), config, timeout)
    meeting = _offered(grid, meeting, strategy, config, base, timeout)
    return _tried(grid, meeting, strategy, config, base, timeout, session)


def _check_enough(meeting: Meeting, federation: Federation) -> None:
    """Raise RunFailed, with the reason of every node that does not fit, where too few do."""
    fit, asked = len(meeting.profiles), len(meeting.profiles) + len(meeting.left_out)
    limits = {"min-available-nodes": federation.min_available_nodes, "min-train-nodes": federation.min_train_nodes}
    key, needed = max(limits.items(), key=lambda item: item[1])
    if fit >= needed:
        return
    reasons = [f"node {node_id}: {reason}" for node_id, reason in meeting.left_out.items()]
    more = [f"and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN else []
    said = "; ".join([*reasons[:SHOWN], *more]) or "no more are connected"
    raise RunFailed(f"{fit} of {asked} nodes can take part, {key} is {needed}: {said}")


def wait_for_nodes(grid: Grid, federation: Federation) -> list[int]:
    """Ids of the nodes that are there, once there are enough. Raises RunFailed after the wait."""
    deadline = time.monotonic() + federation.node_wait_timeout
    while True:
        ids = sorted(grid.get_node_ids())
        if len(ids) >= federation.min_available_nodes:
            return ids
        if time.monotonic() >= deadline:
            raise RunFailed(
                f"{len(ids)} nodes came within {federation.node_wait_timeout:g} s, min-available-nodes is "
                f"{federation.min_available_nodes}: {federation.min_available_nodes - len(ids)} are missing"
            )
        time.sleep(POLL)


def needs_no_data(config: TaskConfig) -> bool:
    """Do nodes bring all data, and score by themselves, so that the server may have none?"""
    named = config.causal or bool(config.data.labels)
    return config.data.partitioner == "none" and named and config.evaluate == "nodes"


def settled(config: TaskConfig, store: Store, num_nodes: int) -> TaskConfig:
    """The settings with the label names filled in, after checking that the data can be split over the nodes.

    Raises DataError, SplitError.
    """
    if needs_no_data(config):
        return config
    plan = outline(config, store)
    if config.data.partitioner != "none":
        _check_split(config, plan, store, num_nodes)
    return replace(config, data=replace(config.data, labels=plan.labels))


def _ask(grid: Grid, node_ids: Iterable[int], config: TaskConfig) -> list[post.Sent]:
    """Ask every node what it is."""
    question = post.Parcel.of(RecordDict({"order": order.write_task(config)}))
    sent = [post.send(grid, node_id, "query.profile", "0", question) for node_id in node_ids]
    LOG.info("asked %d nodes for their profiles", len(sent))
    return sent


def _met(grid: Grid, asked: list[post.Sent], config: TaskConfig, timeout: float) -> Meeting:
    """Profiles of the nodes that answer and fit; the others are left out with a reason."""
    profiles: dict[int, Profile] = {}
    left_out: dict[int, str] = {}
    up = 0
    for item, reply in post.replies(grid, asked, time.monotonic() + timeout):
        try:
            profile = claims.profile_in(item.node_id, reply)
            up += wire.size(door.content(reply))
            if any(profile.name == other.name for other in profiles.values()):
                raise Refused(f"there is a node named '{profile.name}' already")
            _check_fits(profile, config)
            profiles[item.node_id] = profile
        except Refused as reason:
            left_out[item.node_id] = str(reason)
            LOG.warning("left out node %d: %s", item.node_id, reason)
    return Meeting(profiles, left_out, up, sum(item.bytes for item in asked))


def _check_fits(profile: Profile, config: TaskConfig) -> None:
    """Raise Refused for a node whose device or labels are not for this task; only say where its software is another.

    That its data has the columns a node has found out before it answers; the names and shapes of what it trains are
    seen at the door, in its first reply, because a model takes seconds to build.
    """
    if profile.dtypes and (dtype := config.model.dtype) not in profile.dtypes:
        raise Refused(f"its device, {profile.device}, does not train in model.dtype = '{dtype}'")
    if not profile.labels_fit:
        own = f"; it has {'|'.join(profile.labels)!r:.200}" if profile.labels else ""
        raise Refused(f"its labels are not among those of the run, {'|'.join(config.data.labels)!r:.200}{own}")
    if other := differing(profile.versions, ours := written(versions())):
        LOG.warning("node %s has %.200s, the server %s: bits may differ", profile.name, other, ours)


def _offered(
    grid: Grid, meeting: Meeting, strategy: Algorithm, config: TaskConfig, base: Base, timeout: float
) -> Meeting:
    """The meeting after sending the base once to every store that lacks it; nodes that do not get it are left out."""
    lacking = {p.store: p for p in meeting.profiles.values() if base.fingerprint not in p.bases}
    if not lacking:
        return meeting
    if not config.model.offer:
        reason = f"it lacks the base '{base.name}' ({base.fingerprint}) and model.offer is false"
        return _without(meeting, base, dict.fromkeys(lacking, reason))
    contents = {
        name: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        for name, path in files(base.folder).items()
    }
    records = wire.pack(State(contents))
    records["order"] = order.write(config, strategy, base.fingerprint)
    parcel = post.Parcel.of(records)
    sent = [post.send(grid, profile.node_id, "query.base", "0", parcel) for profile in lacking.values()]
    LOG.info("offered the base '%s' to %d stores that lack it, %d bytes each", base.name, len(sent), sent[0].bytes)
    answers = post.replies(grid, sent, time.monotonic() + timeout)
    refused = {}
    for (_, reply), store in zip(answers, lacking, strict=True):
        try:
            door.admit_metrics(reply)
        except Refused as reason:
            refused[store] = f"it did not take the base: {reason}"
    return _without(replace(meeting, bytes_base=sum(item.bytes for item in sent)), base, refused)


def _without(meeting: Meeting, base: Base, reasons: Mapping[str, str]) -> Meeting:
    """The meeting without the nodes that lack the base and will not get it; the reasons are by store."""
    out = {
        node_id: reasons[profile.store]
        for node_id, profile in meeting.profiles.items()
        if profile.store in reasons and base.fingerprint not in profile.bases
    }
    for node_id, reason in out.items():
        LOG.warning("left out node %s: %s", meeting.profiles[node_id].name, reason)
    kept = {node_id: profile for node_id, profile in meeting.profiles.items() if node_id not in out}
    return replace(meeting, profiles=kept, left_out=meeting.left_out | out)


def _tried(
    grid: Grid, meeting: Meeting, strategy: Algorithm, config: TaskConfig, base: Base, timeout: float, session: Session
) -> Meeting:
    """The meeting with a rank for every node: what the run knows of it, or its own; from a trial on that node where it
    is automatic and new to the run."""
    known = {node_id: replace(p, rank=session.budget(p)) for node_id, p in meeting.profiles.items()}
    meeting = replace(meeting, profiles=known)
    automatic = sorted((p for p in known.values() if p.automatic and not p.rank), key=lambda profile: profile.order)
    if not automatic:
        return meeting
    parcel = post.Parcel.of(RecordDict({"order": order.write(config, strategy, base.fingerprint)}))
    sent = [post.send(grid, profile.node_id, "query.trial", "0", parcel) for profile in automatic]
    candidates = config.lora.auto_ranks
    LOG.info("%d nodes try ranks %d to %d", len(sent), candidates[0], candidates[-1])
    lines, found, up = [], {}, 0
    answers = post.replies(grid, sent, time.monotonic() + timeout)
    for (_, reply), profile in zip(answers, automatic, strict=True):
        trial, choice = _choice(profile, reply, candidates, timeout)
        lines.append((profile, trial, choice))
        found[profile.node_id] = replace(profile, rank=choice.rank)
        up += wire.size(reply.content) if reply is not None and not reply.has_error() else 0
    for line in ranks.table(lines).splitlines():
        LOG.info("%s", line)
    down = sum(item.bytes for item in sent)
    return replace(
        meeting,
        profiles=meeting.profiles | found,
        bytes_up=meeting.bytes_up + up,
        bytes_down=meeting.bytes_down + down,
    )


def _choice(
    profile: Profile, reply: Message | None, candidates: tuple[int, ...], timeout: float
) -> tuple[ranks.Trial | None, ranks.Choice]:
    """What a node's trial says, and the rank that follows; the smallest where there is no trial."""
    try:
        trial = ranks.Trial.read(door.content(reply).config_records.get("trial", {}), candidates)
    except Refused as reason:
        LOG.warning("node %s: no trial: %s", profile.name, reason)
        return None, ranks.Choice(candidates[0], ranks.UNKNOWN)
    choice = ranks.choose(trial, candidates, timeout)
    if not choice.fits:
        LOG.warning("node %s: not even rank %d fits its %s", profile.name, choice.rank, choice.limit)
    return trial, choice


def _check_split(config: TaskConfig, plan: Outline, store: Store, num_nodes: int) -> None:
    split = partition(config, plan, num_nodes, store)
    for line in table(split, plan.train.labels, plan.labels).splitlines():
        LOG.info("%s", line)
