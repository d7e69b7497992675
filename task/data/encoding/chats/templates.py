"""Chat templates, rendered by a separate process that is ended when it takes too long."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any

from task.data.encoding.chats.named import NAMED
from task.data.raw import DataError
from task.data.settings import is_template, is_template_file

STARTED, ROW = 5.0, 0.02  # time limit of an answer in seconds, and the extra time per turn
PASSED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")  # environment variables that are passed on: no secrets
# The process may not find the packages by itself.
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from task.data.encoding.chats.rendering import main; main()"
)
INSTEAD = "use data.template = 'plain'"

PART = 2**22  # characters sent at once

Chat = list[dict[str, str]]  # turns: role and content
Span = tuple[int, int]  # characters of a text, from the first to the one after the last


class Refused(DataError):
    """A template that does not take a conversation, the one at position `chat`. `turn` is the turn with which it is
    refused. `rewritten`: the conversation is taken, but the template rewrites earlier turns when it writes that one."""

    def __init__(self, message: str, public: str, chat: int, turn: int, reason: str, rewritten: bool) -> None:
        super().__init__(message, public)
        self.chat, self.turn, self.reason, self.rewritten = chat, turn, reason, rewritten


def template_of(template: str, tokenizer: Any, place: object) -> str:
    """Return the text of the chat template that `data.template` means; empty: the plain one. Raises DataError."""
    if template in NAMED:
        return NAMED[template]
    if is_template(template):
        return template
    if is_template_file(template):
        problem = "data.template names a file of the server, which sends its text when a run starts"
        raise DataError(f"{problem}; this is still its name: {template:.80}", problem)
    if template == "chat" and not tokenizer.chat_template:
        raise DataError(f"data.template = 'chat', but the tokenizer in {place} has no chat template; use 'plain'")
    if template == "plain" or not tokenizer.chat_template:
        return ""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise DataError(
            f"{place}: {error}; {INSTEAD}", f"the tokenizer has no default chat template; {INSTEAD}"
        ) from error


class Template:
    """A chat template in its running process."""

    def __init__(self, process: "subprocess.Popen[str]", place: object) -> None:
        self._process, self._place, self._rendered_once = process, place, False
        self.has_tag = False  # whether it marks what the assistant wrote

    def texts(self, chats: Sequence[Chat]) -> list[str]:
        """Return every conversation as text, with the beginning of an answer. Raises DataError if the template refuses
        one or exceeds the limits."""
        return list(self._rendered(chats, whole=False))

    def wholes(self, chats: Sequence[Chat]) -> list[tuple[str, list[Span]]]:
        """Return every conversation as text, and the spans of it that the assistant wrote. Raises Refused if the
        template does not take one, DataError if it exceeds the limits."""
        return [(text, [(start, end) for start, end in spans]) for text, spans in self._rendered(chats, whole=True)]

    def _rendered(self, chats: Sequence[Chat], whole: bool) -> Iterator[Any]:
        done = 0
        for part in _parts(chats, first=0 if self._rendered_once else 1):
            try:
                answer = self.ask({"chats": part, "whole": whole}, STARTED + ROW * sum(map(len, part)))
            except Refused as error:
                error.chat += done
                raise
            yield from answer["found"]
            done += len(part)
            self._rendered_once = True

    def ask(self, what: object, seconds: float) -> dict[str, Any]:
        """Return the answer of the process. Raises DataError for an error, or if it does not come in time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = Timer(seconds, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        answer: dict[str, Any] = json.loads(line) if line.endswith("\n") else {"runaway": f"no answer in {seconds:g} s"}
        if "runaway" in answer:
            problem = "the chat template does not end"
            raise DataError(f"{self._place}: {problem}, {answer['runaway']}; {INSTEAD}", f"{problem}; {INSTEAD}")
        if "error" in answer or "rewritten" in answer:
            raise self._refused(answer)
        return answer

    def _refused(self, answer: dict[str, Any]) -> DataError:
        reason, rewritten = answer.get("error", ""), "rewritten" in answer
        problem = "the chat template does not take a conversation"
        said = f"{self._place}: {problem} ({reason}); {INSTEAD}"
        if "chat" not in answer:
            return DataError(f"{self._place}: the chat template cannot be read ({reason}); {INSTEAD}", problem)
        turn = answer["rewritten"] if rewritten else answer.get("turn", 0)
        return Refused(said, f"{problem}; {INSTEAD}", answer["chat"], turn, reason, rewritten)


def _parts(chats: Sequence[Chat], first: int) -> Iterator[list[Chat]]:
    """Yield conversations in parts that fit into a small process. The `first` ones are a part of their own: an endless
    template then fails in seconds, not minutes."""
    part: list[Chat] = []
    length = 0
    for number, chat in enumerate(chats):
        part.append(chat)
        length += sum(len(message["content"]) for message in chat)
        if number + 1 == first or length > PART:
            yield part
            part, length = [], 0
    if part:
        yield part


@contextmanager
def filled_in(text: str, tokenizer: Any, place: object, day: str = "") -> Iterator[Template]:
    """Yield a chat template with the special tokens of the tokenizer in folder `place`; its process ends with the
    block. `day` is the date for the template. Raises DataError."""
    environment = {name: os.environ[name] for name in PASSED if name in os.environ} | {"PYTHONDONTWRITEBYTECODE": "1"}
    paths = [str(Path(path or ".").absolute()) for path in (str(Path(__file__).parents[4]), *sys.path)]
    command = [sys.executable, "-I", "-X", "utf8", "-c", START, json.dumps(paths)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, encoding="utf-8"
    )
    try:
        template = Template(process, place)
        given = {"tools": None, "documents": None}  # variables that templates may use
        about = {"template": text, "day": day, "variables": given | tokenizer.special_tokens_map}
        template.has_tag = template.ask(about, STARTED)["has-tag"]
        yield template
    finally:
        process.kill()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):  # unsent output is lost
                stream.close()  # type: ignore[union-attr]
        process.wait()
