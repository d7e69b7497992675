"""`thistledown predict --chat`: a conversation with the tuned language model of a run."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from task.data.raw import DataError
from task.models.base import BaseError
from task.prediction.chat import Conversation
from task.schema import ConfigError
from task.storage.store import StoreError
from thistledown.commands.results.predict import quiet_libraries, write
from thistledown.predictor import Predictor
from thistledown.settings import pairs

RESET = "/reset"
PROMPT = "> "


def chat(results: Path, which: str, overrides: Sequence[str], more: Sequence[object]) -> None:
    """Answer each line of standard input, with the lines and answers before it, until it ends. `more` is what else the
    command was given, which must be nothing. Raises ConfigError."""
    if more:
        raise ConfigError([f"--chat reads what is said from standard input; leave out {more[0]}"])
    quiet_libraries()
    try:
        predictor = Predictor(results, which, pairs(overrides))
        conversation = predictor.conversation()
        _note("end of input (Ctrl-D) ends the conversation, /reset begins anew" if sys.stdin.isatty() else "")
        _note("" if conversation.has_turns else "this model was tuned to continue texts: each is asked by itself")
        for line in _lines():
            _answer(conversation, line)
    except UnicodeDecodeError as error:
        raise ConfigError([f"standard input is no {error.encoding} text: {error.reason}"]) from error
    except (DataError, BaseError, StoreError) as error:
        raise ConfigError([str(error)]) from error


def _note(text: str) -> None:
    """Print a note that is no part of the conversation."""
    if text:
        print(text, file=sys.stderr, flush=True)


def _lines() -> Iterator[str]:
    """Yield what is said, line by line, until the end of input; at a terminal also until Ctrl-C."""
    if not sys.stdin.isatty():
        yield from (text for line in sys.stdin if (text := line.strip()))
        return
    import readline  # noqa: F401  which lets `input` edit lines and recall earlier ones

    try:
        while True:
            if text := input(PROMPT).strip():
                yield text
    except (EOFError, KeyboardInterrupt):
        print()


def _answer(conversation: Conversation, line: str) -> None:
    """Write the answer to a line. Ctrl-C cuts it off, and the line is then forgotten."""
    if line == RESET:
        conversation.turns.clear()
        _note("the conversation is empty")
        return
    try:
        conversation.ask(line, write)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    print(flush=True)
