"""A federation by a plain Flower app, on a SuperLink and Ray as `flwr run` has them.

python -m benchmarks.peers.by_flower FOLDER
"""

import argparse
from pathlib import Path

import tomli_w

from benchmarks.peers.case import Case
from thistledown.processes.superlink import SuperLink

APP = Path(__file__).with_name("flower_app")


def main() -> None:
    """Run the federation in a folder, and print its log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    with SuperLink() as superlink:
        config = tomli_w.dumps({"folder": str(folder)})
        process = superlink.submit(APP, config, Case.read(folder).nodes, cpus=1, gpus=0.0)
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
        superlink.check()


if __name__ == "__main__":
    main()
