"""The ClientApp. All it does is said in the message; what the node itself knows is in `client_app.local`.

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
    """What this node is, and whether it holds the base that the order names."""
    return _answer(message, context, lambda local: RecordDict({"profile": local.profile()}))


@app.query("base")
@guarded
def base(message: Message, context: Context) -> Message:
    """Keep the base that the server sends along."""

    def keep(local: Local) -> RecordDict:
        return RecordDict({"metrics": MetricRecord({"files": local.accept_base(message.content)})})

    return _answer(message, context, keep)


@app.query("trial")
@guarded
def trial(message: Message, context: Context) -> Message:
    """A few steps of training, timed, at the smallest and the largest rank that this node can train."""
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
    """One round of local training: install the start, train, answer with the update."""
    from client_app.training import trained

    return _answer(message, context, lambda local: trained(local, message.content))


@app.evaluate()
@guarded
def evaluate(message: Message, context: Context) -> Message:
    """Score the state on the rows this node keeps for it."""
    from client_app.training import evaluated

    return _answer(message, context, lambda local: evaluated(local, message.content))


def _answer(message: Message, context: Context, work: Callable[[Local], RecordDict]) -> Message:
    """The reply that this node works out for the order in a message, in the time that its owner allows."""
    from strategies.protocol.instructions import record_of

    local = Local.of(context, record_of(message.content, "instructions"))
    with within_seconds(local.policy.max_seconds):
        return Message(work(local), reply_to=message)
