"""A run of a study in one process: the arguments, results and exit codes of `thistledown run`, and the same bits.

It starts neither SuperLink nor Ray, so small federations take half of the time: `--engine local` of a study.
"""

import argparse
import sys

from benchmarks.federation import COMPLETED, FAILED, ROOT
from strategies.exchange.types import RunFailed
from thistledown import simulate
from thistledown.settings import Settings


def main() -> int:
    """Run the federation that the arguments describe and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.local", description=__doc__)
    parser.add_argument("preset", nargs="?")
    parser.add_argument("-c", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    values = dict(Settings.read(ROOT, arguments.preset, arguments.overrides, ROOT).config.flat)
    strategy, wrappers, outputs = (str(values.pop(key, "")) for key in ("strategy", "wrappers", "output-dir"))
    try:
        simulate(strategy, wrappers=wrappers, output_dir=outputs, **values)
    except RunFailed as error:
        print(error, file=sys.stderr)
        return FAILED
    return COMPLETED


if __name__ == "__main__":
    sys.exit(main())
