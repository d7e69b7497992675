"""The command line of `thistledown`: its commands are in `thistledown/verbs/`."""

import argparse
from importlib.metadata import version
from typing import NoReturn

from thistledown.verbs import deploying, results, running


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        """End the process with exit code 2."""
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help explains the arguments\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with a subparser for each command. Its result has `do`, which does what
    is asked."""
    parser = Parser(
        prog="thistledown",
        description="Federated fine-tuning of pretrained models where almost nothing crosses the wire.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('thistledown')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for group in (running, results, deploying):
        group.add(commands)
    return parser
