"""Run the README's commands with the lowest and the newest versions that pyproject.toml allows: `make test-versions`.

Each environment is made by uv in a temporary folder, of wheels alone, and removed afterwards: the lowest version is the
lowest that has a wheel for that Python. Of `make test` it runs the files in TESTS, which call the libraries that change
most. It prints a Markdown table, or why an environment cannot be installed. For torch without CUDA say where it is:

.venv/bin/python tests/versions.py --python 3.11 --with torch==2.13.0+cpu --find-links FOLDER
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
ENDS = {"lowest": "lowest-direct", "newest": "highest"}  # and what uv calls them
SHOWN = ("flwr", "torch", "transformers", "peft", "numpy")
TESTS = [f"tests/test_{name}.py" for name in ("checkpoint", "kinds", "models", "simulate", "tunings", "wire")]
RUNNERS = ("pytest", "pytest-xdist", "hypothesis")


def called(*command: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command with the variables of this process but those that name its environment."""
    own = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of what a command printed."""
    return (done.stdout + done.stderr).strip().splitlines()[-1]


def cells(python: str, end: str, asked: Sequence[str], options: Sequence[str], folder: Path) -> Iterator[str]:
    """Yield the cells of a row: Python, end, versions, what the run did, what the tests did."""
    yield from (python, end)
    bin = folder / "environment" / "bin"
    made = called("uv", "venv", "--quiet", "--python", python, str(bin.parent))
    if made.returncode:
        yield f"no environment: {last_line(made)}"
        return
    install = ["uv", "pip", "install", "--quiet", "--python", str(bin / "python"), "--only-binary", ":all:"]
    newest = called(*install, *RUNNERS, *options)
    own = ["--no-binary", "thistledown", "--resolution", ENDS[end], "--index-strategy", "unsafe-best-match"]
    done = called(*install, *own, *options, str(ROOT), *asked)
    if newest.returncode or done.returncode:
        yield f"not installed: {(newest.stderr + done.stderr).strip()}".replace("\n", " ")
        return
    listed = json.loads(
        called("uv", "pip", "list", "--quiet", "--python", str(bin / "python"), "--format", "json").stdout
    )
    versions = {package["name"]: package["version"] for package in listed}
    yield ", ".join(f"{name} {versions[name]}" for name in SHOWN)
    run = called(str(bin / "thistledown"), "run", folder=folder)
    summary = folder / "outputs" / "latest" / "summary.json"
    yield f"accuracy {json.loads(summary.read_text())['final']:.3f}" if not run.returncode else last_line(run)
    tests = called(str(bin / "python"), "-m", "pytest", "-n2", "-p", "no:cacheprovider", "-m", "not slow", *TESTS)
    numbers = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", tests.stdout)
    yield ", ".join(numbers) or last_line(tests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="*", default=PYTHONS, metavar="VERSION")
    parser.add_argument("--end", nargs="*", default=list(ENDS), choices=list(ENDS))
    parser.add_argument("--with", nargs="*", default=[], dest="asked", metavar="REQUIREMENT")
    parser.add_argument("--find-links", nargs="*", default=[], metavar="FOLDER")
    arguments = parser.parse_args()
    options = [part for place in arguments.find_links for part in ("--find-links", place)]
    print("| Python | end | versions | `thistledown run` | tests |\n|---|---|---|---|---|", flush=True)
    for python in arguments.python:
        for end in arguments.end:
            with tempfile.TemporaryDirectory() as folder:
                print(f"| {' | '.join(cells(python, end, arguments.asked, options, Path(folder)))} |", flush=True)


if __name__ == "__main__":
    main()
