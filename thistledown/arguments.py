"""The commands of `thistledown` and their arguments."""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        """End the process with exit code 2."""
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help explains the arguments\n")


KEYS = "run-config keys, as for `flwr run`: \"num-server-rounds=3 strategy='rbla'\""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with a subparser for each command."""
    parser = Parser(
        prog="thistledown",
        description="Federated fine-tuning of pretrained models where almost nothing crosses the wire.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('thistledown')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    run = commands.add_parser("run", help="simulate a federation and leave its results in outputs/")
    run.add_argument("--verbose", action="store_true", help="show the whole log, Flower's and Ray's too")
    check = commands.add_parser("check", help="show what a run would do, without running it")
    for command in (run, check):
        command.description = f"{command.prog.rsplit(' ', 1)[-1]}: see the presets and the keys in pyproject.toml"
        command.add_argument(
            "preset", nargs="?", help="a TOML file with run-config keys, or the name of one in presets/"
        )
        _add_overrides(command)
        _add_app(command)
    check.add_argument(
        "--rows", type=_count, default=0, metavar="N", help="also show what the first N training rows become"
    )
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
    _add_overrides(new, "any other keys of the preset")
    export = commands.add_parser("export", help="write the tuned model of a run, from its checkpoint")
    export.description = "Rebuild the tuned model from the checkpoint in a results folder. Only the base is needed."
    export.add_argument("results", type=Path, help="a results folder, such as outputs/latest")
    export.add_argument("--state", choices=("best", "last"), default="best", help="which round (default: best)")
    export.add_argument(
        "--to", type=Path, metavar="DIR", help="where to write it; default: model/ in the results folder"
    )
    export.add_argument(
        "--merge", action="store_true", help="merge the adapter into its base: a plain transformers model"
    )
    predict = commands.add_parser("predict", help="ask the tuned model of a run about texts, images or a file")
    predict.description = (
        "Ask the tuned model of a run: about texts or images, or about every row of a file. The answers to a file are "
        "written beside it, with its own columns."
    )
    predict.add_argument("results", type=Path, help="a results folder, such as outputs/latest")
    predict.add_argument("values", nargs="*", metavar="TEXT|IMAGE", help="texts, or paths of images")
    predict.add_argument("--file", metavar="FILE", help="rows to ask about: csv, jsonl, parquet and so on")
    predict.add_argument(
        "--to", type=Path, metavar="FILE", help="where to write the answers: .csv, .tsv, .jsonl or .parquet"
    )
    predict.add_argument("--state", choices=("best", "last"), default="best", help="which round (default: best)")
    _add_overrides(predict, "keys of [data] that differ from the run's: \"data.text-column='body'\"")
    up = commands.add_parser("up", help="deploy SuperLink and nodes with TLS on this machine, for a try")
    up.description = (
        "Start a SuperLink with TLS and a SuperNode for each file, and end them by Ctrl-C. Nothing stays but results."
    )
    up.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a node's own data: a file or folder")
    up.add_argument("--run", action="store_true", help="run one federation and end, instead of waiting for Ctrl-C")
    up.add_argument("--preset", metavar="PRESET", help="a TOML file with run-config keys, or the name of a preset")
    _add_overrides(up)
    _add_app(up)
    certs = commands.add_parser("certs", help="make the certificates and node keys of a deployment")
    certs.description = (
        "Create an authority, the SuperLink's certificate and a key pair per node. Files that exist are not changed."
    )
    certs.add_argument("folder", type=Path, metavar="DIR", help="where to write them; keep its ca.key there")
    certs.add_argument(
        "--names", type=_listed, default=[], help="host names and addresses of the SuperLink, comma-separated"
    )
    certs.add_argument("--nodes", type=_listed, default=[], help="names of nodes, comma-separated")
    certs.add_argument("--days", type=int, default=825, help="how long certificates are valid (default: 825)")
    purge = commands.add_parser("purge", help="list what stores contain, and remove old items")
    purge.description = (
        "List kind, key, size, time since last use and source of every item. With --yes, items that can be created or "
        "fetched again are removed; others, such as accounts, only if --kind names their kind."
    )
    purge.add_argument("--store-path", type=Path, metavar="DIR", help="a store; default: this user's, server and node")
    purge.add_argument("--kind", type=_listed, default=[], metavar="KINDS", help="only these, comma-separated")
    purge.add_argument("--older-than", default="", metavar="AGE", help="only items not used for this long: 30d, 12h")
    purge.add_argument("--yes", action="store_true", help="remove them; without this nothing is removed")
    status = commands.add_parser("status", help="show the status of runs: running, completed, failed or interrupted")
    status.description = "Show the status of a run, or of all runs in a folder of outputs, and how to resume them."
    status.add_argument(
        "folder", type=Path, nargs="?", default=Path("outputs"), metavar="DIR", help="results, or outputs (default)"
    )
    keys = commands.add_parser("keys", help="search the run-config keys: defaults, accepted values, meanings")
    keys.description = "Show the keys whose name or meaning has WORD, or that another tool calls by it."
    keys.add_argument("word", nargs="?", default="", metavar="WORD", help="default: all keys")
    presets = commands.add_parser("presets", help="show the presets, and what each is for")
    presets.add_argument("--app", type=Path, metavar="DIR", help="a clone; default: the installed one")
    account = commands.add_parser("account", help="show the privacy budget that a node's rows have spent")
    account.description = "Show the privacy budget that a node has spent, by data set and run, and in total."
    account.add_argument(
        "folder", type=Path, nargs="?", metavar="DIR", help="the node's store-path or account-path; default: its store"
    )
    account.add_argument("--delta", type=float, default=1e-5, help="delta at which epsilon is shown (default: 1e-5)")
    app = commands.add_parser("app", help="show what a clone sends to nodes as the app")
    what = app.add_subparsers(dest="what", required=True, metavar="what")
    digest = what.add_parser("hash", help="print the hash of the app, which a node's owner pins")
    digest.description = "Print the SHA-256 of the bundle that a run of this clone sends, for thistledown-superexec."
    digest.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="a clone; default: the installed one")
    policy = commands.add_parser("policy", help="explain what a node's owner allows")
    asked = policy.add_subparsers(dest="what", required=True, metavar="what")
    explain = asked.add_parser("check", help="explain what a node with this policy does and refuses")
    explain.description = "Check a policy file and explain what a node with it does and refuses."
    explain.add_argument("file", type=Path, metavar="FILE", help="a TOML file, as the node config key policy names it")
    run.description = "Simulate a federation on this machine; results go to outputs/ in the current directory."
    check.description = "Check a configuration and show what each node would do and send, without running it."
    return parser


def _add_overrides(command: argparse.ArgumentParser, help: str = KEYS) -> None:
    command.add_argument(
        "-c", dest="overrides", metavar="'key=value ...'", action="append", default=[], help=f"{help}; may be repeated"
    )


def _add_app(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--app", type=Path, metavar="DIR", help="clone of thistledown to run; default: the installed one"
    )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows")
    return int(text)
