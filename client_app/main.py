"""The ClientApp. A message carries all instructions; what the node itself knows is in `client_app.local`.

Imports that take seconds (torch, transformers, peft) happen when a message needs them: a profile needs torch alone.
"""

from collections.abc import Callable

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client_app.deadline import within_seconds
from client_app.local import Local
from client_app.public_errors import guarded

app = ClientApp()


@app.query("profile")
@guarded
def profile(message: Message, context: Context) -> Message:
    """Answer with the node's profile, and whether it has the base that the instructions name."""
    return _answer(message, context, lambda local: RecordDict({"profile": local.profile()}))


@app.query("base")
@guarded
def base(message: Message, context: Context) -> Message:
    """Store the base that the server sends."""

    def keep(local: Local) -> RecordDict:
        return RecordDict({"metrics": MetricRecord({"files": local.accept_base(message.content)})})

    return _answer(message, context, keep)


@app.query("trial")
@guarded
def trial(message: Message, context: Context) -> Message:
    """Answer with a trial: a few timed training steps at the smallest and the largest rank that this node can train."""
    from client_app.trial import run_trial

    return _answer(message, context, lambda local: RecordDict({"trial": run_trial(local).record()}))


@app.query("rehearsal")
@guarded
def rehearsal(message: Message, context: Context) -> Message:
    """Prepare this node's rows and run the model once, before the first round."""
    from client_app.rehearsal import rehearsed

    return _answer(message, context, rehearsed)


@app.train()
@guarded
def train(message: Message, context: Context) -> Message:
    """Run one round of local training: install the state, train, answer with the update."""
    from client_app.training import trained

    return _answer(message, context, lambda local: trained(local, message.content))


@app.evaluate()
@guarded
def evaluate(message: Message, context: Context) -> Message:
    """Score the state on this node's evaluation rows."""
    from client_app.training import evaluated

    return _answer(message, context, lambda local: evaluated(local, message.content))


def _answer(message: Message, context: Context, work: Callable[[Local], RecordDict]) -> Message:
    """Return the reply to the instructions in a message, within the time limit of the node's owner."""
    from strategies.protocol.instructions import record_of

    local = Local.of(context, record_of(message.content, "instructions"))
    with within_seconds(local.policy.max_seconds):
        return Message(work(local), reply_to=message)


def stays(message: Message) -> bool:
    """Return whether another message of its run may follow, so that a deployed node's process stays, with what it has
    loaded. Whoever forked it asks (`thistledown.processes.serving`)."""
    asked = message.content.config_records
    if "assignment" not in asked:
        return True
    number, rounds = (asked["assignment"].get(key) for key in ("server-round", "rounds"))
    evaluates = asked["instructions"].get("evaluate", "server") != "server"
    return number != rounds or (evaluates and message.metadata.message_type == "train")
