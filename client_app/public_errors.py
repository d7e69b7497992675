"""What a message may make this node do, and what this node tells in return.

The order comes from a server that may be curious or broken. On a deployed node it names no path of the node's disk and
runs no code that comes with a model, unless the node config says that it may: `follow-paths = true`,
`trust-remote-code = true`. An error that goes back tells no value of a row; the node's log has it all. Where Flower
simulates nodes they are the server's own machine and user: there is nothing to consent to, and nothing to hide.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path

from flwr.app import Context, Message

from task.config import TaskConfig
from task.data.sources.registry import of_keyword, unreadable
from task.kinds import registry as kinds
from task.models.base import HUB_ID

PATHS, CODE = "follow-paths", "trust-remote-code"
IN_PROCESS: ContextVar[bool] = ContextVar("in-process", default=False)
HIDDEN = "an error that only this node's own log tells"
Handler = Callable[[Message, Context], Message]


class NodeError(ValueError):
    """A node config that cannot serve the order, or an order that this node does not follow. `public` is what others
    are told, where that is less than the message."""

    def __init__(self, message: str, public: str | None = None) -> None:
        super().__init__(message)
        self.public = message if public is None else public


class NodeFailed(RuntimeError):
    """What a node tells of an error."""


def simulated() -> bool:
    """Return whether this node is simulated, in an actor of Ray (nothing else here starts Ray) or in the server's own
    process."""
    ray = sys.modules.get("ray")
    return IN_PROCESS.get() or (ray is not None and bool(ray.is_initialized()))


@contextmanager
def in_process() -> Iterator[None]:
    """Within this block nodes are simulated by the process that is the server too."""
    token = IN_PROCESS.set(True)
    try:
        yield
    finally:
        IN_PROCESS.reset(token)


def follows_paths(node: Mapping[str, object]) -> bool:
    """May an order name files and folders of this machine?"""
    return node.get(PATHS) is True or simulated()


def check_code(config: TaskConfig, node: Mapping[str, object]) -> None:
    """NodeError for an order to run code of a model where the node has not agreed to that."""
    if config.model.trust_remote_code and not (node.get(CODE) is True or simulated()):
        raise NodeError(
            f"the order asks for code that comes with model.name = '{config.model.name}' (model.trust-remote-code); "
            f"this node runs it only with {CODE} = true in its node config"
        )


def check_source(config: TaskConfig, node: Mapping[str, object]) -> None:
    """NodeError for an order whose `data.name` is a path, or something in the working folder, where the node does not
    follow paths."""
    name = config.data.name
    if of_keyword(name) or follows_paths(node):
        return
    if not HUB_ID.fullmatch(name) or Path(name).exists():
        said = (
            f"the order names the path data.name = '{name:.80}'; this node reads its own data-path, and what the order "
            f"names only with {PATHS} = true in its node config"
        )
        # whether something of that name lies in the working folder is the node's own business
        raise NodeError(said, unreadable(name) if HUB_ID.fullmatch(name) else said)


def check_labels(config: TaskConfig) -> None:
    """NodeError for an order by which a deployed node would name the labels of a classifier from its own rows."""
    if not config.data.labels and kinds.of(config).drawn_head and not simulated():
        raise NodeError("the order names no labels, and a node does not tell its own: data.labels must be set")


def guarded(handler: Handler) -> Handler:
    """The handler, whose errors leave a deployed node without what its rows hold."""

    @wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except Exception as error:
            if simulated():
                raise
            raise NodeFailed(
                public_message(error) + _who(message, context)
            ) from error  # Flower logs both, and sends the first

    return answer


def _who(message: Message, context: Context) -> str:
    """The node by its name, where the server cannot know it yet: who is left out should be known by more than an id."""
    name = context.node_config.get("name")
    return f" (node '{name}')" if name and message.metadata.message_type == "query.profile" else ""


def public_message(error: Exception) -> str:
    """What others may know of an error: its `public`, where it is one of ours that has that, else its type."""
    public = getattr(error, "public", None)
    return public if isinstance(public, str) else f"{type(error).__name__}: {HIDDEN}"
