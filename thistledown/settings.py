"""The checked configuration of a run, merged from defaults, preset and command line before anything is started.

Flower cannot combine a TOML file with overrides and reports a wrong key only by an exit code, so keys are merged and
checked here: pyproject's defaults <- preset <- every -c, where later ones win. For a run that is resumed, its own
configuration comes after the defaults, and the keys that are set may not differ from it.
"""

import re
import tomllib
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_app.config import RunConfig, Simulation, keys
from server_app.results.started import RESUME, flat
from server_app.resuming import continued
from task.config import EMBEDDED_MODEL
from task.data.settings import is_template_file
from task.data.sources.registry import of_keyword
from task.device import cores
from task.foreign_names import meant
from task.schema import ConfigError

Values = dict[str, object]  # dotted run-config keys with unparsed values

PLACES = ("data.name", "model.name")  # keys that may be paths
TEMPLATE = "data.template"  # may be a file as well
INSTALLED = Path(__file__).parent / "app"  # in an installed package: the app's files that are not modules
LATEST = "latest"  # in place of a results folder: the newest one
PAIR = re.compile(r"""\s*([\w.\-]+)=('[^']*'|"[^"]*"|\[[^\]]*\]|\S+)(?=\s|$)""")

BARE = re.compile(r"""[^\s'"\[\]{}=]+""")  # text without quotes


@dataclass(frozen=True)
class Settings:
    """A checked configuration and the folder of the Flower app that runs it.

    `idle` are keys that were set but have no effect on this run, such as options of another strategy.
    """

    app: Path
    config: RunConfig
    idle: tuple[str, ...] = ()

    @classmethod
    def read(cls, app: Path | None, preset: str | None, overrides: Sequence[str], here: Path) -> "Settings":
        """Merge and check the settings. Relative paths are resolved in `here`. Raises ConfigError with all problems."""
        folder = app_folder(app)
        declared, own = defaults(folder), chosen(folder, preset, overrides, here)
        values = declared | continued_in(own, here)
        values["output-dir"] = values.get("output-dir") or str(here.absolute() / "outputs")
        config = RunConfig.read(values)
        idle = tuple(key for key in values if key not in config.flat and values[key] != declared[key])
        problems = [
            f"the key '{key}' is not declared in [tool.flwr.app.config] of {folder / 'pyproject.toml'}"
            for key in config.flat
            if key not in declared
        ]
        if problems := problems + _beyond_machine(config.server.simulation):
            raise ConfigError(problems)
        return cls(folder, config, idle)


def continued_in(own: Values, here: Path) -> Values:
    """Return the settings of the run to resume, updated with `own`; without `resume`, return `own`.

    The path of the run may be relative to `here`. Raises ConfigError.
    """
    if not (isinstance(own.get(RESUME), str) and own[RESUME]):
        return own
    folder = _run_folder(own, here)
    found = continued(own | {RESUME: str(folder)})
    return found | {"output-dir": found.get("output-dir") or str(folder.parent)}


def check_simulated(config: RunConfig) -> None:
    """Raise ConfigError for a configuration that cannot be simulated."""
    if config.task.data.partitioner.own_rows:
        raise ConfigError(
            ["data.partitioner = 'none' is for deployed nodes, which have a data-path; choose another to simulate"]
        )


def app_folder(given: Path | None) -> Path:
    """Return the folder of the Flower app: `given`, else the clone that this package lies in, else INSTALLED.

    Raises ConfigError.
    """
    if given is not None:
        if is_app(given):
            return given.expanduser().resolve()
        raise ConfigError([f"--app {given} is not a Flower app: its pyproject.toml has no [tool.flwr.app]"])
    for folder in (INSTALLED.parents[1], INSTALLED):
        if is_app(folder):
            return folder.resolve()
    raise ConfigError([f"{INSTALLED} does not exist; reinstall thistledown, or give a clone of it: --app DIR"])


def is_app(folder: Path) -> bool:
    """Return whether Flower would find an app in the folder."""
    try:
        project = _toml(folder.expanduser() / "pyproject.toml")
    except ConfigError:
        return False
    return "app" in project.get("tool", {}).get("flwr", {})


def defaults(app: Path) -> Values:
    """Return every declared key with its default."""
    return flat(_toml(app / "pyproject.toml")["tool"]["flwr"]["app"].get("config", {}))


def merged(app: Path, preset: str | None, overrides: Sequence[str], here: Path) -> Values:
    """Return all keys: defaults <- preset <- overrides. Raises ConfigError for input that cannot be read."""
    return defaults(app) | chosen(app, preset, overrides, here)


def chosen(app: Path, preset: str | None, overrides: Sequence[str], here: Path) -> Values:
    """Return the keys that were set: preset <- overrides. Raises ConfigError for input that cannot be read."""
    problems: list[str] = []
    layers: list[Values] = []
    if preset is not None:
        try:
            path = preset_path(app, preset, here)
            layers.append(placed(flat(_toml(path)), here, path.parent))
        except ConfigError as error:
            problems += error.problems
    try:
        layers.append(placed(pairs(overrides), here))
    except ConfigError as error:
        problems += error.problems
    values = {key: value for layer in layers for key, value in layer.items()}
    problems += [problem for key in values if (problem := joined(values, key))]
    if problems:
        raise ConfigError(problems)
    return values


def preset_path(app: Path, preset: str, here: Path) -> Path:
    """Return the file of a preset, given by path or by its name in presets/. Raises ConfigError."""
    path = here / Path(preset).expanduser()
    if path.is_file():
        return path
    named = {file.stem: file for file in sorted((app / "presets").glob("*.toml"))}
    if preset in named:
        return named[preset]
    hint = meant(Path(preset).stem, tuple(named))
    raise ConfigError(
        [f"there is no preset '{preset}'{hint} (there are {', '.join(named) or 'none'}, or give a TOML file)"]
    )


def pairs(overrides: Sequence[str]) -> Values:
    """Parse the `-c "key=value key2='x'"` options. Raises ConfigError."""
    values: Values = {}
    problems = []
    for text in overrides:
        position = 0
        while text[position:].strip():
            match = PAIR.match(text, position)
            if match is None:
                rest = text[position:].strip()
                problems.append(
                    f"-c: cannot read '{rest}'; write key=value pairs with spaces between them, text in quotes"
                )
                break
            key, value = match.groups()
            try:
                values[key] = _value(key, value)
            except tomllib.TOMLDecodeError:
                problems.append(f"-c {key}={value}: not a TOML value; true, 3, 0.5, or text in quotes: {key}='{value}'")
            position = match.end()
    if problems:
        raise ConfigError(problems)
    return values


def _value(key: str, written: str) -> object:
    """Return a value written in TOML. Unquoted text is accepted for a key that takes text, where it is unambiguous.

    Raises TOMLDecodeError.
    """
    known = keys().get(key)
    textual = known is None or known.type is str or typing.get_origin(known.type) is tuple
    try:
        return tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        if textual and BARE.fullmatch(written):
            return written
        raise


def _run_folder(values: Values, here: Path) -> Path:
    """Return the results folder to resume: a path, or `latest` in the outputs folder."""
    if values[RESUME] == LATEST:
        return (here / str(values.get("output-dir") or "outputs") / LATEST).resolve()
    return (here / Path(str(values[RESUME])).expanduser()).resolve()


def joined(values: Values, key: str) -> str | None:
    """Replace a list by the joined text that Flower can carry. Returns a problem if that is not possible."""
    value = values[key]
    if not isinstance(value, list):
        return None
    known = keys().get(key)
    separator = known.separator if known else ","
    whole = all(type(item) is int for item in value)
    text = all(isinstance(item, str) and separator not in item for item in value)
    if not (whole or text):
        return f"{key} must be a list of whole numbers, or of texts without '{separator}', not {value!r}"
    values[key] = separator.join(str(item) for item in value)
    return None


def placed(values: Values, *folders: Path) -> Values:
    """Return the values with paths that exist in one of the folders made absolute. Other names are Hub ids."""
    template = (TEMPLATE,) if is_template_file(str(values.get(TEMPLATE, ""))) else ()
    for key in (*PLACES, *template):
        name = values.get(key)
        if isinstance(name, str) and name and name != EMBEDDED_MODEL and not of_keyword(name):
            found = [path for folder in folders if (path := folder / Path(name).expanduser()).exists()]
            if found:
                values[key] = str(found[0].resolve())
    return values


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot read {path}: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path} is not valid TOML: {error}"]) from error


def _beyond_machine(simulation: Simulation) -> list[str]:
    """Return a problem for every resource of a simulated node that this machine lacks.

    Without this check, Ray waits for the resource or fails with an obscure error.
    """
    import torch

    found = []
    if simulation.num_cpus > cores():
        found.append(f"simulation.num-cpus = {simulation.num_cpus}, but this process may use {cores()}")
    gpus = torch.cuda.device_count() or torch.xpu.device_count()
    if simulation.num_gpus > gpus:
        found.append(f"simulation.num-gpus = {simulation.num_gpus:g}, but this machine has {gpus} that torch can use")
    return found
