"""Commands that prepare runs and start them: new, check, keys, presets, run, compare; and completion."""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from thistledown.verbs.flags import Commands, Say, add_app, add_overrides, count, finite

if TYPE_CHECKING:
    from thistledown.settings import Settings


def add(commands: Commands) -> None:
    """Add these commands to the command line."""
    run = commands.add_parser("run", help="simulate a federation and leave its results in outputs/")
    run.add_argument("--verbose", action="store_true", help="show the whole log, Flower's and Ray's too")
    run.add_argument(
        "--engine",
        choices=("ray", "local"),
        default="ray",
        help="what simulates: Ray below Flower's SuperLink, or processes of this command, which start sooner (default: "
        "ray); results are the same",
    )
    run.add_argument(
        "--ray-address",
        default="",
        metavar="HOST:PORT",
        help="simulate on this Ray cluster, of which this machine is a node; default: a Ray of the run's own",
    )
    run.description = "Simulate a federation on this machine; results go to outputs/ in the current directory."
    run.set_defaults(do=_run)
    check = commands.add_parser("check", help="show what a run would do, without running it")
    for command in (run, check):
        command.add_argument(
            "preset", nargs="?", help="a TOML file with run-config keys, or the name of one in presets/"
        )
        add_overrides(command)
        add_app(command)
    check.add_argument(
        "--rows", type=count, default=0, metavar="N", help="also show what the first N training rows become"
    )
    check.description = "Check a configuration and show what each node would do and send, without running it."
    check.set_defaults(do=_check)
    _add_compare(commands)
    _add_new(commands)
    keys = commands.add_parser("keys", help="search the run-config keys: defaults, accepted values, meanings")
    keys.description = "Show the keys whose name or meaning has WORD, or that another tool calls by it."
    keys.add_argument("word", nargs="?", default="", metavar="WORD", help="default: all keys")
    keys.set_defaults(do=_keys)
    presets = commands.add_parser("presets", help="show the presets, and what each is for")
    presets.add_argument("--app", type=Path, metavar="DIR", help="a clone; default: the installed one")
    presets.set_defaults(do=_presets)
    completion = commands.add_parser("completion", help="print a script that completes commands in your shell")
    completion.description = "Print a script for a shell: source <(thistledown completion bash)"
    completion.add_argument("shell", choices=("bash", "zsh"))
    completion.set_defaults(do=partial(_completion, commands.choices))


def _add_new(commands: Commands) -> None:
    new = commands.add_parser("new", help="look at data, and write a preset that trains on it")
    new.description = (
        "Look at data, say what it is taken for and what is odd in it, and write a preset that trains on it. Each "
        "guess is named with the flag that changes it."
    )
    new.add_argument("data", metavar="FILE", help="a csv, jsonl, parquet, a folder of images, or a hub dataset")
    new.add_argument("--kind", metavar="KIND", help="what is learned, a task kind: text-classification and so on")
    new.add_argument("--text", metavar="COLUMN", help="the column of texts")
    new.add_argument("--label", metavar="COLUMN", help="the column of labels")
    new.add_argument("--site", metavar="COLUMN", help="the column that says which node has a row; '' for none")
    new.add_argument("--model", metavar="MODEL", help="the base: a hub id or a folder")
    new.add_argument("--nodes", type=int, metavar="N", help="nodes to simulate")
    new.add_argument("--to", type=Path, metavar="FILE", help="the preset; default: named after the data, here")
    new.add_argument("--force", action="store_true", help="write over a preset that exists")
    add_overrides(new, "any other keys of the preset")
    new.set_defaults(do=_new)


def _add_compare(commands: Commands) -> None:
    compare = commands.add_parser(
        "compare", help="run several settings over the same split, and show them side by side"
    )
    compare.description = (
        "Compare presets, overrides such as \"strategy='rbla'\", and finished results folders: quality, bytes and "
        "seconds over several seeds. What was run before is kept; Ctrl-C loses nothing."
    )
    compare.add_argument("entries", nargs="+", metavar="ENTRY", help="a preset, overrides, or a results folder")
    compare.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="runs of each, with other seeds (default: 3)"
    )
    compare.add_argument(
        "--baselines", action="store_true", help="also train every node alone, and one model on all rows"
    )
    compare.add_argument("--jobs", type=int, default=0, metavar="N", help="runs at a time; default: as cores allow")
    compare.add_argument("--target", type=finite, metavar="Q", help="quality to reach; default: most of the best gain")
    compare.add_argument(
        "--to", type=Path, default=Path("outputs", "compare"), metavar="DIR", help="default: outputs/compare"
    )
    add_overrides(compare, "keys for all entries but results folders")
    compare.set_defaults(do=_compare)


def _run(arguments: argparse.Namespace, say: Say) -> bool:
    from thistledown.commands.run import run

    if arguments.engine == "local":
        if arguments.ray_address:
            from task.schema import ConfigError

            raise ConfigError(["--ray-address names a Ray cluster, and --engine local runs without Ray; leave out one"])
        from thistledown.commands.run_local import run as run_locally

        return run_locally(_settings(arguments, say), say, verbose=arguments.verbose)
    return run(_settings(arguments, say), say, verbose=arguments.verbose, ray_address=arguments.ray_address)


def _compare(arguments: argparse.Namespace, say: Say) -> bool:
    from thistledown.comparison.compare import Asked, compare

    asked = Asked(
        arguments.entries,
        arguments.seeds,
        arguments.baselines,
        arguments.jobs,
        arguments.target,
        arguments.to.absolute(),
        arguments.overrides,
    )
    return compare(asked, say)


def _check(arguments: argparse.Namespace, say: Say) -> bool:
    from thistledown.commands.check import check

    check(_settings(arguments, say), say, arguments.rows)
    return True


def _new(arguments: argparse.Namespace, say: Say) -> bool:
    from thistledown.commands.new import Asked, new
    from thistledown.drafting.preset import FLAGS

    flags = {key: getattr(arguments, flag.removeprefix("--")) for key, flag in FLAGS.items()}
    given = {key: value for key, value in flags.items() if value is not None}
    new(Asked.of(arguments.data, arguments.to, arguments.force, given, arguments.overrides), say)
    return True


def _keys(arguments: argparse.Namespace, say: Say) -> bool:
    from thistledown.commands.keys import keys

    for line in keys(arguments.word):
        say(line)
    return True


def _presets(arguments: argparse.Namespace, say: Say) -> bool:
    from thistledown.commands.presets import presets
    from thistledown.settings import app_folder

    for line in presets(app_folder(arguments.app)):
        say(line)
    return True


def _completion(commands: Mapping[str, argparse.ArgumentParser], arguments: argparse.Namespace, say: Say) -> bool:
    from thistledown.commands.completion import completion
    from thistledown.settings import app_folder

    presets = sorted(path.stem for path in (app_folder(None) / "presets").glob("*.toml"))
    say(completion(arguments.shell, commands, presets))
    return True


def _settings(arguments: argparse.Namespace, say: Say) -> "Settings":
    from server_app.outputs import problem_of
    from task.schema import ConfigError
    from thistledown.settings import Settings

    settings = Settings.read(arguments.app, arguments.preset, arguments.overrides, Path.cwd())
    if problem := problem_of(Path(settings.config.server.output_dir)):
        raise ConfigError([problem])
    for key in settings.idle:
        say(f"note: {key} has no effect on this run (strategy = '{settings.config.strategy.name}')")
    return settings
