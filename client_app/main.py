"""The ClientApp. All it does is said in the message; what the node itself knows is in `client_app.local`.

Imports that take seconds (torch, transformers, peft) happen when a message needs them: a profile needs torch alone.
"""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client_app.consent import guarded
from client_app.local import Local

app = ClientApp()


@app.query("profile")
@guarded
def profile(message: Message, context: Context) -> Message:
    """What this node is, and whether it holds the base that the order names."""
    local = _local(message, context)
    return Message(RecordDict({"profile": local.profile()}), reply_to=message)


@app.query("base")
@guarded
def base(message: Message, context: Context) -> Message:
    """Keep the base that the server sends along."""
    local = _local(message, context)
    kept = local.accept_base(message.content)
    return Message(RecordDict({"metrics": MetricRecord({"files": kept})}), reply_to=message)


@app.query("trial")
@guarded
def trial(message: Message, context: Context) -> Message:
    """A few steps of training, timed, at the smallest and the largest rank that this node can train."""
    from client_app.trial import tried

    local = _local(message, context)
    return Message(RecordDict({"trial": tried(local).record()}), reply_to=message)


@app.train()
@guarded
def train(message: Message, context: Context) -> Message:
    """One round of local training: install the start, train, answer with the update."""
    from client_app.training import trained

    local = _local(message, context)
    return Message(trained(local, message.content), reply_to=message)


@app.evaluate()
@guarded
def evaluate(message: Message, context: Context) -> Message:
    """Score the state on the rows this node keeps for it."""
    from client_app.training import evaluated

    local = _local(message, context)
    return Message(evaluated(local, message.content), reply_to=message)


def _local(message: Message, context: Context) -> Local:
    """This node, for the order in a message."""
    from strategies.exchange.order import record_of

    return Local.of(context, record_of(message.content, "order"))
