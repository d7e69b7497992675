"""The process that renders chat templates: untrusted programs, run within limits.

Jinja's sandbox blocks access to Python, but not endless loops or large memory. Therefore a template runs in its own
process, which has little memory, writes no files, has no environment variables and is ended by its parent. It imports
only Jinja. The parent's side is `task.data.encoding.templates`.

The protocol is lines of JSON: first the template and its variables, then conversations. Each gets one line in reply.
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

MEMORY = 2**29  # bytes of address space
SECONDS = 3  # time limit per conversation
LONGEST = 2**20  # characters of a rendered conversation


class Runaway(Exception):
    """A template that does not end within the limits."""


class Generation(Extension):
    """The tag `{% generation %}`, which marks text that a model wrote. It is rendered as its content."""

    tags = {"generation"}  # noqa: RUF012  Jinja's own way

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Return the nodes inside the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment(day: str = "") -> ImmutableSandboxedEnvironment:
    """Return the environment that chat templates expect: block tags leave no white space, JSON is not escaped. `day` is
    the date for templates."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = _json
    made.globals |= {"raise_exception": _refuse, "strftime_now": strftime_of(day)}
    return made


def render(template: Any, variables: dict[str, Any]) -> str:
    """Return one conversation as text. Raises Runaway, TemplateError."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    random.seed(0)  # templates may use random numbers, which must be the same on all machines
    parts, length = [], 0
    for part in template.generate(**variables):
        parts.append(part)
        length += len(part)
        if length > LONGEST:
            raise Runaway(f"it writes more than {LONGEST} characters")
    signal.setitimer(signal.ITIMER_REAL, 0)
    return "".join(parts)


def main() -> None:
    """Answer lines until the input ends."""
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
    """Return JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def strftime_of(day: str) -> Callable[[str], str]:
    """Return the `strftime` of a day at midnight, or of now if `day` is empty."""
    return (datetime.fromisoformat(day) if day else datetime.now()).strftime


if __name__ == "__main__":
    main()
