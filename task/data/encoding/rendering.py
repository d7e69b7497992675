"""The process that fills in a chat template: a program that somebody else wrote, behind limits.

Jinja's sandbox keeps it from Python, and not from running for ever or filling the memory. So it runs in a process of
its own, which has little memory, writes no file, knows no environment and is ended by whoever asked. It imports
nothing but Jinja. See `task.data.encoding.templates` for the other half.

Lines of JSON: first the template and its variables, then conversations; each is answered by a line.
"""

import json
import random
import resource
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

MEMORY = 2**29  # bytes of addresses
SECONDS = 3  # for one conversation
LONGEST = 2**20  # characters of what becomes of one


class Runaway(Exception):
    """A template that does not come to an end."""


class Generation(Extension):
    """`{% generation %}`, which marks what a model has written; here its content is all there is to it."""

    tags = {"generation"}  # noqa: RUF012  Jinja's own way

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Return the nodes inside the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment(day: str = "") -> ImmutableSandboxedEnvironment:
    """Return what chat templates are written for: block tags leave no white space, JSON keeps its letters. `day` is the
    one that they are told."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = _json
    made.globals |= {"raise_exception": _refuse, "strftime_now": strftime_of(day)}
    return made


def render(template: Any, variables: dict[str, Any]) -> str:
    """Return what becomes of one conversation. Raises Runaway, TemplateError."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    random.seed(0)  # templates may draw; all machines draw alike
    parts, length = [], 0
    for part in template.generate(**variables):
        parts.append(part)
        length += len(part)
        if length > LONGEST:
            raise Runaway(f"it writes more than {LONGEST} characters")
    signal.setitimer(signal.ITIMER_REAL, 0)
    return "".join(parts)


def main() -> None:
    """Answer lines until there are no more."""
    if sys.platform == "linux":  # macOS has no such limit; time and length are bounded there too
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    signal.signal(signal.SIGALRM, _too_long)
    template, variables = None, {}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if template is None:
                template, variables = environment(asked["day"]).from_string(asked["template"]), asked["variables"]
                answer: dict[str, object] = {}
            else:
                answer = {"texts": [render(template, variables | {"messages": chat}) for chat in asked]}
        except Runaway as error:
            answer = {"runaway": str(error)}
        except MemoryError:
            answer = {"runaway": f"it needs more than {MEMORY >> 20} MiB"}
        except (TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(answer), flush=True)


def _too_long(number: int, frame: FrameType | None) -> NoReturn:
    raise Runaway(f"it takes longer than {SECONDS} s")


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Without the escapes that Jinja makes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def strftime_of(day: str) -> Callable[[str], str]:
    """Return what tells a template the time: midnight of a day, or now where there is none."""
    return (datetime.fromisoformat(day) if day else datetime.now()).strftime


if __name__ == "__main__":
    main()
