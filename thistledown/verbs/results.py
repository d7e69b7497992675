"""Commands about the results of runs: status, runs, watch, predict, export."""

import argparse
import sys
from pathlib import Path

from thistledown.verbs.flags import Commands, Say, add_overrides, add_results


def add(commands: Commands) -> None:
    """Add these commands to the command line."""
    _add_status(commands)
    _add_runs(commands)
    _add_watch(commands)
    _add_predict(commands)
    _add_export(commands)


def _add_status(commands: Commands) -> None:
    status = commands.add_parser("status", help="show the status of runs: running, completed, failed or interrupted")
    status.description = "Show the status of a run, or of all runs in a folder of outputs, and how to resume them."
    status.add_argument(
        "folder", type=Path, nargs="?", default=Path("outputs"), metavar="DIR", help="results, or outputs (default)"
    )
    status.set_defaults(do=_status)


def _status(arguments: argparse.Namespace, say: Say) -> bool:
    from thistledown.commands.results.status import status

    for line in status(arguments.folder):
        say(line)
    return True


def _add_runs(commands: Commands) -> None:
    runs = commands.add_parser("runs", help="show a table of the runs in outputs/: scores, bytes, time")
    runs.add_argument("folder", type=Path, nargs="?", default=Path("outputs"), metavar="DIR", help="default: outputs")
    runs.set_defaults(do=_runs)


def _runs(arguments: argparse.Namespace, say: Say) -> bool:
    from thistledown.commands.results.runs import runs

    for line in runs(arguments.folder):
        say(line)
    return True


def _add_watch(commands: Commands) -> None:
    watch = commands.add_parser("watch", help="show the report of a run in a browser, while it goes on")
    watch.description = "Serve the report of a run on this machine alone. The page follows the run by itself."
    shown = "a results folder, or outputs (default), of which the newest run is shown"
    watch.add_argument("folder", type=Path, nargs="?", default=Path("outputs"), metavar="RESULTS", help=shown)
    watch.add_argument("--port", type=int, default=8765, metavar="N", help="default: 8765; 0 for any that is free")
    watch.set_defaults(do=_watch)


def _watch(arguments: argparse.Namespace, say: Say) -> bool:
    from thistledown.commands.results.watch import watch

    watch(arguments.folder, arguments.port, say)
    return True


def _add_predict(commands: Commands) -> None:
    predict = commands.add_parser("predict", help="ask the tuned model of a run about texts, images or a file")
    predict.description = (
        "Ask the tuned model of a run: about texts or images, or about every row of a file. The answers to a file are "
        "written beside it, with its own columns."
    )
    add_results(predict)
    predict.add_argument("values", nargs="*", metavar="TEXT|IMAGE", help="texts, or paths of images")
    predict.add_argument("--chat", action="store_true", help="talk to a language model; /reset begins anew")
    predict.add_argument("--file", metavar="FILE", help="rows to ask about: csv, jsonl, parquet and so on")
    predict.add_argument(
        "--to", type=Path, metavar="FILE", help="where to write the answers: .csv, .tsv, .jsonl or .parquet"
    )
    add_overrides(predict, "keys of [data] that differ from the run's: \"data.text-column='body'\"")
    predict.set_defaults(do=_predict)


def _predict(arguments: argparse.Namespace, say: Say) -> bool:
    from thistledown.commands.results.chat import chat
    from thistledown.commands.results.predict import predict

    if arguments.chat:
        more = [*arguments.values, *filter(None, (arguments.file, arguments.to))]
        chat(arguments.results, arguments.state, arguments.overrides, more)
        return True
    predict(
        arguments.results, arguments.state, arguments.overrides, arguments.values, arguments.file, arguments.to, say
    )
    return True


def _add_export(commands: Commands) -> None:
    export = commands.add_parser("export", help="write the tuned model of a run, from its checkpoint")
    export.description = "Rebuild the tuned model from the checkpoint in a results folder. Only the base is needed."
    add_results(export)
    export.add_argument(
        "--to", type=Path, metavar="DIR", help="where to write it; default: model/ in the results folder"
    )
    export.add_argument(
        "--merge", action="store_true", help="merge the adapter into its base: a plain transformers model"
    )
    export.add_argument("--push", metavar="REPO", help="upload it to the Hugging Face Hub, such as me/my-model")
    export.add_argument("--public", action="store_true", help="with --push: anybody may read it; default: private")
    export.set_defaults(do=_export)


def _export(arguments: argparse.Namespace, say: Say) -> bool:
    from task.schema import ConfigError
    from thistledown.commands.results.export import export
    from thistledown.commands.results.push import NotPushed, check_name, push

    if arguments.push is not None:
        check_name(arguments.push)
    elif arguments.public:
        raise ConfigError(["--public is for --push REPO"])
    folder = export(arguments.results, arguments.state, arguments.to, say, merge=arguments.merge)
    if arguments.push is None:
        return True
    try:
        push(folder, arguments.push, arguments.public, say)
    except NotPushed as error:
        print(error, file=sys.stderr)
        return False
    return True
