"""What a message may make this node do, and what this node reports in return.

The instructions come from a server that may be curious or broken. On a deployed node they may name no path of the
node's disk and may run no code that comes with a model, unless the node config allows it: `follow-paths = true`,
`trust-remote-code = true`. A public error contains no value of a row; the node's log has everything. Simulated nodes
are the server's own machine and user: there is nothing to consent to, and nothing to hide.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import wraps
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message

from task.config import TaskConfig
from task.data.sources.registry import of_keyword, unreadable
from task.kinds import registry as kinds
from task.model_settings import QUANTIZED, UNQUANTIZED
from task.models.base import HUB_ID

PATHS, CODE, QUANTIZATION = "follow-paths", "trust-remote-code", "quantization"
IN_PROCESS: ContextVar[bool] = ContextVar("in-process", default=False)
HIDDEN = "the details are only in this node's own log"
Handler = Callable[[Message, Context], Message]


class NodeError(ValueError):
    """A node config that does not fit the instructions, or instructions that this node does not follow. `public` is the
    message for the server, if it says less than the log's."""

    def __init__(self, message: str, public: str | None = None) -> None:
        super().__init__(message)
        self.public = message if public is None else public


class NodeFailed(RuntimeError):
    """The error that a node reports to the server."""


def simulated() -> bool:
    """Return whether this node is simulated, in a Ray actor (nothing else here starts Ray) or in the server's own
    process."""
    ray = sys.modules.get("ray")
    return IN_PROCESS.get() or (ray is not None and bool(ray.is_initialized()))


@contextmanager
def in_process() -> Iterator[None]:
    """Treat nodes as simulated in the server's process within this block."""
    token = IN_PROCESS.set(True)
    try:
        yield
    finally:
        IN_PROCESS.reset(token)


def follows_paths(node: Mapping[str, object]) -> bool:
    """Return whether instructions may name files and folders of this machine."""
    return node.get(PATHS) is True or simulated()


def check_code(config: TaskConfig, node: Mapping[str, object]) -> None:
    """Raise NodeError if the instructions run a model's own code and the node has not agreed to that."""
    if config.model.trust_remote_code and not (node.get(CODE) is True or simulated()):
        raise NodeError(
            f"the instructions ask for code of model.name = '{config.model.name}' (model.trust-remote-code)"
            f"; this node runs it only with {CODE} = true in its node config"
        )


def with_own_quantization(config: TaskConfig, instructions: ConfigRecord, node: Mapping[str, object]) -> TaskConfig:
    """Return the settings with the node's own quantization of the base, if its node config has one. Raises NodeError if
    it does not exist, or does not go with what the run does."""
    from strategies.exchange.compatibility import unquantizable
    from strategies.protocol.instructions import strategy_of

    if (own := node.get(QUANTIZATION)) is None:
        return config
    if own not in (UNQUANTIZED, *QUANTIZED):
        known = ", ".join((UNQUANTIZED, *QUANTIZED))
        problem = f"must be one of {known}"
        raise NodeError(
            f"node config quantization = {own!r:.40} {problem}", f"the node config's quantization {problem}"
        )
    compute = config.model.compute_dtype if own == "4bit" else "auto"
    config = replace(config, model=replace(config.model, quantization=str(own), compute_dtype=compute))
    if problems := config.problems() + unquantizable(strategy_of(instructions), config):
        raise NodeError(f"node config quantization = '{own}': {'; '.join(problems)}")
    return config


def check_source(config: TaskConfig, node: Mapping[str, object]) -> None:
    """Raise NodeError if `data.name` is a path, or something in the working folder, and the node does not follow
    paths."""
    name = config.data.name
    if of_keyword(name) or follows_paths(node):
        return
    if not HUB_ID.fullmatch(name) or Path(name).exists():
        said = (
            f"the instructions name the path data.name = '{name:.80}'; this node reads its own data-path, and what the "
            f"instructions name only with {PATHS} = true in its node config"
        )
        # whether something of that name lies in the working folder is not the server's business
        raise NodeError(said, unreadable(name) if HUB_ID.fullmatch(name) else said)


def check_labels(config: TaskConfig) -> None:
    """Raise NodeError if a deployed node would have to name a classifier's labels from its own rows."""
    if not config.data.labels and kinds.of(config).drawn_head and not simulated():
        raise NodeError("the instructions name no labels, and a node does not report its own: data.labels must be set")


def guarded(handler: Handler) -> Handler:
    """Return the handler with its errors made public: those of a deployed node reveal nothing of its rows."""

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
    """Return the node's name for the error, if the server cannot know it yet, so that people know who is left out."""
    name = context.node_config.get("name")
    return f" (node '{name}')" if name and message.metadata.message_type == "query.profile" else ""


def public_message(error: Exception) -> str:
    """Return the public message of an error: its `public` if it has one, else its type."""
    public = getattr(error, "public", None)
    return public if isinstance(public, str) else f"{type(error).__name__}: {HIDDEN}"
