"""The process that renders chat templates: untrusted programs, run within limits.

Jinja's sandbox blocks access to Python, but not endless loops or large memory. Therefore a template runs in its own
process, which has little memory, writes no files, has no environment variables and is ended by its parent. It imports
only Jinja. The parent's side is `task.data.encoding.chats.templates`.

The protocol is lines of JSON: first the template and its variables, then lists of conversations, as prompts or as whole
conversations with what the assistant wrote in them. Each gets one line in reply.
"""

import json
import random
import re
import resource
import secrets
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from types import FrameType
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 2**29  # bytes of address space
SECONDS = 3  # time limit per conversation
LONGEST = 2**20  # characters of a rendered conversation
BEGIN, END = (f"\ue000{secrets.token_hex(8)}{sign}" for sign in "+-")  # around what a model wrote; no text has them
MARK = re.compile(f"({re.escape(BEGIN)}|{re.escape(END)})")

Span = tuple[int, int]  # characters of a text, from the first to the one after the last
Chat = list[dict[str, str]]


class Runaway(Exception):
    """A template that does not end within the limits."""


class Rewritten(Exception):
    """A template that does not write an answer by lengthening the text of the turns before it."""


class Generation(Extension):
    """The tag `{% generation %}`, which marks text that a model wrote. It is rendered as its content, between marks."""

    tags = {"generation"}  # noqa: RUF012  Jinja's own way
    used = False  # whether the template has the tag

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Return the nodes inside the tag, between marks."""
        next(parser.stream)
        self.used = True
        begin, end = (nodes.Output([nodes.TemplateData(mark)]) for mark in (BEGIN, END))
        return [begin, *parser.parse_statements(("name:endgeneration",), drop_needle=True), end]


def environment(day: str = "") -> ImmutableSandboxedEnvironment:
    """Return the environment that chat templates expect: block tags leave no white space, JSON is not escaped. `day` is
    the date for templates."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = _json
    made.globals |= {"raise_exception": _refuse, "strftime_now": strftime_of(day)}
    return made


def render(template: Any, variables: dict[str, Any]) -> tuple[str, list[Span]]:
    """Return one conversation as text, and what the template's tags mark in it. Raises Runaway, TemplateError."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    random.seed(0)  # templates may use random numbers, which must be the same on all machines
    parts, length = [], 0
    for part in template.generate(**variables):
        parts.append(part)
        length += len(part)
        if length > LONGEST:
            raise Runaway(f"it writes more than {LONGEST} characters")
    signal.setitimer(signal.ITIMER_REAL, 0)
    return _text_and_spans("".join(parts))


def _text_and_spans(marked: str) -> tuple[str, list[Span]]:
    text, spans, began = "", [], 0
    for piece in MARK.split(marked):
        if piece == BEGIN:
            began = len(text)
        elif piece == END:
            spans.append((began, len(text)))
        else:
            text += piece
    return text, spans


class Renderer:
    """A template with its variables."""

    def __init__(self, template: str, variables: dict[str, Any], day: str) -> None:
        made = environment(day)
        self._template, self._variables = made.from_string(template), variables
        self.has_tag = next(one for one in made.extensions.values() if isinstance(one, Generation)).used

    def text(self, chat: Chat, ask: bool = True) -> str:
        """Return the turns as text; `ask`: the beginning of an answer follows."""
        return self._rendered(chat, ask)[0]

    def whole(self, chat: Chat) -> tuple[str, list[Span]]:
        """Return the turns as text, and the spans that the assistant wrote: as the template marks them, else those by
        which every answer lengthens the text before it. Raises Rewritten."""
        text, spans = self._rendered(chat, False)
        return text, spans if self.has_tag else [self._answer(chat, turn, text) for turn in answers(chat)]

    def refused(self, chat: Chat) -> int:
        """Return the turn with which a conversation is refused: without it and all that follows, it is not."""
        for turn in range(len(chat) - 1, 0, -1):
            try:
                self._rendered(chat[:turn], False)
            except FAULTS:
                continue
            return turn
        return 0

    def _answer(self, chat: Chat, turn: int, text: str) -> Span:
        try:
            before, after = self.text(chat[:turn]), self.text(chat[: turn + 1], ask=False)
        except FAULTS as error:
            raise Rewritten(turn) from error
        if not (after.startswith(before) and text.startswith(after)):
            raise Rewritten(turn)
        return len(before), len(after)

    def _rendered(self, chat: Chat, ask: bool) -> tuple[str, list[Span]]:
        return render(self._template, self._variables | {"messages": chat, "add_generation_prompt": ask})


def answers(chat: Chat) -> list[int]:
    """Return the positions of the assistant's turns."""
    return [turn for turn, message in enumerate(chat) if message["role"] == "assistant"]


FAULTS = (TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError)


def main() -> None:
    """Answer lines until the input ends."""
    if sys.platform == "linux":  # macOS has no such limit; time and length are bounded there too
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    signal.signal(signal.SIGALRM, _too_long)
    renderer: Renderer | None = None
    for line in sys.stdin:
        asked, answer = json.loads(line), dict[str, object]()
        try:
            if renderer is None:
                renderer = Renderer(asked["template"], asked["variables"], asked["day"])
                answer["has-tag"] = renderer.has_tag
            else:
                _render_all(renderer, asked, answer)
        except Runaway as error:
            answer["runaway"] = str(error)
        except MemoryError:
            answer["runaway"] = f"it needs more than {MEMORY >> 20} MiB"
        except FAULTS as error:
            answer["error"] = f"{type(error).__name__}: {error}"[:500]
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(answer), flush=True)


def _render_all(renderer: Renderer, asked: dict[str, Any], answer: dict[str, object]) -> None:
    """Add the rendered conversations to an answer, and the number of the one that is being rendered."""
    found = answer["found"] = list[object]()
    for number, chat in enumerate(asked["chats"]):
        answer["chat"] = number
        if not asked["whole"]:
            found.append(renderer.text(chat))
            continue
        try:
            found.append(renderer.whole(chat))
        except Rewritten as error:
            answer["rewritten"] = error.args[0]
            return
        except FAULTS as error:
            answer["error"] = f"{type(error).__name__}: {error}"[:500]
            answer["turn"] = renderer.refused(chat)
            return


def _too_long(number: int, frame: FrameType | None) -> NoReturn:
    raise Runaway(f"it takes longer than {SECONDS} s")


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Return JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def strftime_of(day: str) -> Callable[[str], str]:
    """Return the `strftime` of a day at midnight, or of now if `day` is empty."""
    return (datetime.fromisoformat(day) if day else datetime.now()).strftime


if __name__ == "__main__":
    main()
