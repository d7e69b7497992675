"""Chat templates of a base, rendered by a separate process that is ended when it takes too long."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any

from task.data.raw import DataError

STARTED, ROW = 5.0, 0.02  # time limit of an answer in seconds, and the extra time per conversation
PASSED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")  # environment variables that are passed on: no secrets
# The process may not find the packages by itself.
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from task.data.encoding.rendering import main; main()"
INSTEAD = "use data.template = 'plain'"

PART = 2**22  # characters sent at once

Chat = list[dict[str, str]]


class Template:
    """A chat template in its running process."""

    def __init__(self, process: "subprocess.Popen[str]", place: object) -> None:
        self._process, self._place, self._rendered_once = process, place, False

    def texts(self, chats: Sequence[Chat]) -> list[str]:
        """Return every conversation as text. Raises DataError if the template refuses one or exceeds the limits."""
        found: list[str] = []
        for part in _parts(chats, first=0 if self._rendered_once else 1):
            found += self.ask(part, STARTED + ROW * len(part))["texts"]
            self._rendered_once = True
        return found

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
            problem = "the tokenizer's chat template does not end"
            raise DataError(f"{self._place}: {problem}, {answer['runaway']}; {INSTEAD}", f"{problem}; {INSTEAD}")
        if "error" in answer:
            problem = "the tokenizer's chat template does not take an instruction"
            raise DataError(f"{self._place}: {problem} ({answer['error']}); {INSTEAD}", f"{problem}; {INSTEAD}")
        return answer


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
def filled_in(tokenizer: Any, place: object, day: str = "") -> Iterator[Template]:
    """Yield the chat template of the tokenizer in folder `place`; its process ends with the block. `day` is the date
    for the template. Raises DataError."""
    try:
        text = tokenizer.get_chat_template()
    except ValueError as error:
        raise DataError(
            f"{place}: {error}; {INSTEAD}", f"the tokenizer has no default chat template; {INSTEAD}"
        ) from error
    environment = {name: os.environ[name] for name in PASSED if name in os.environ} | {"PYTHONDONTWRITEBYTECODE": "1"}
    paths = [str(Path(path or ".").absolute()) for path in (str(Path(__file__).parents[1]), *sys.path)]
    command = [sys.executable, "-I", "-X", "utf8", "-c", START, json.dumps(paths)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, encoding="utf-8"
    )
    try:
        template = Template(process, place)
        given = {"tools": None, "documents": None, "add_generation_prompt": True}  # variables that templates may use
        template.ask({"template": text, "day": day, "variables": given | tokenizer.special_tokens_map}, STARTED)
        yield template
    finally:
        process.kill()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):  # unsent output is lost
                stream.close()  # type: ignore[union-attr]
        process.wait()
