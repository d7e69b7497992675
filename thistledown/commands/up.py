"""`thistledown up`: a whole deployment on this machine, for a try, with a file for each node."""

import json
import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import tomli_w

from server_app.results.started import nested
from strategies.rounds.handshake.resolve import resolve
from task.arithmetic import environment_of
from task.config import TaskConfig
from task.data.labels import SEPARATOR
from task.data.prepared import DataError
from task.schema import ConfigError, Flat, flatten
from task.storage.store import StoreError, server_store
from thistledown.commands.certs import NODE
from thistledown.commands.check import quiet
from thistledown.commands.run import followed, resumed_after
from thistledown.processes.deployment import NAME, Deployment
from thistledown.settings import Settings

Say = Callable[[str], None]
LOOK_EVERY = 1.0  # seconds


def up(
    files: Sequence[Path], app: Path | None, preset: str | None, overrides: Sequence[str], once: bool, say: Say
) -> bool:
    """Start a deployment with a node for each file. With `once`, run one federation on it and return whether it
    completed; else wait for Ctrl-C. Nothing stays either way but the results.

    Raises ConfigError for files or settings that do not fit, SuperLinkError if a program does not start or ends.
    """
    nodes = named(files)
    settings = settings_for(nodes, app, preset, overrides)
    start = partial(Deployment, settings.app, nodes, environment_of(settings.config.task))
    done = resumed_after(settings, say)
    count = "a node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    say(f"starting a SuperLink with TLS, and {count}: {', '.join(nodes)}")
    if once:
        return followed(settings, start, lambda there: there.submit(_written(settings)), say, done=done)
    with start() as deployment:
        config = deployment.folder / "federation.toml"
        config.write_text(_written(settings), encoding="utf-8")
        say("they are up; run a federation from another terminal, as often as you like:")
        run = ["flwr", "run", str(deployment.bundle), NAME, "--stream", "--run-config", str(config)]
        say(f"FLWR_HOME={shlex.quote(str(deployment.home))} {shlex.join(run)}")
        say(f"results go to {settings.config.server.output_dir}; Ctrl-C ends all processes and removes the rest")
        while True:
            time.sleep(LOOK_EVERY)
            deployment.check()


def named(files: Sequence[Path]) -> dict[str, Path]:
    """Return the files by the names of their nodes: the file's name without its ending. Raises ConfigError."""
    problems = [f"there is no file or folder {file}" for file in files if not file.exists()]
    names = [file.stem for file in files]
    problems += [f"{file}: a node's name has letters, digits, '.', '-' and '_'; rename the file"
                 for file in files if not NODE.fullmatch(file.stem)]  # fmt: skip
    problems += [f"{count} files are called '{name}', and so would be their nodes; rename them"
                 for name, count in Counter(names).items() if count > 1]  # fmt: skip
    if problems:
        raise ConfigError(problems)
    return {file.stem: file.resolve() for file in files}


def settings_for(nodes: Mapping[str, Path], app: Path | None, preset: str | None, overrides: Sequence[str]) -> Settings:
    """Return the settings for nodes with own files. `overrides` go first; labels are the files'."""
    own = f"data.partitioner='none' evaluate='nodes' node-names='registered' min-available-nodes={len(nodes)}"
    read = Settings.read(app, preset, [own, *overrides], Path.cwd())
    task = read.config.task
    if task.data.labels:
        return read
    names = dict.fromkeys(name for file in nodes.values() for name in _labels(task, file))
    ordered = sorted(names, key=lambda name: (int(name) if name.isdecimal() else 0, name))
    labels = f"data.labels={json.dumps(SEPARATOR.join(ordered), ensure_ascii=False)}"
    return Settings.read(app, preset, [own, labels, *overrides], Path.cwd()) if names else read


def _labels(task: TaskConfig, file: Path) -> tuple[str, ...]:
    """Return the labels in a node's file, as if the server had it. Raises ConfigError."""
    there: Flat = {"data.name": str(file), "data.test-split": "", "data.partitioner": "iid", "evaluate": "server"}
    try:
        with quiet():
            return resolve(TaskConfig.read(flatten(task) | there), server_store(), 1).data.labels
    except (DataError, StoreError) as error:
        raise ConfigError([str(error)]) from error


def _written(settings: Settings) -> str:
    return tomli_w.dumps(nested(settings.config.flat))
