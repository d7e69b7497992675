"""From defaults, preset and command line to one checked configuration, before anything is started.

Flower cannot combine a TOML file with overrides and answers a wrong key with a bare code, so keys are
merged and checked here: pyproject's defaults <- preset <- every -c, the later ones first. Where a run is resumed, its
own configuration comes after the defaults, and what is set may not differ from it.
"""

import re
import tomllib
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_app.config import RunConfig, Simulation, keys
from server_app.results.started import RESUME
from server_app.resuming import continued, flat
from task.config import EMBEDDED_MODEL
from task.data.sources.registry import of_keyword
from task.device import cores
from task.foreign import meant
from task.schema import ConfigError

Values = dict[str, object]  # run-config keys with dots, as they came

PLACES = ("data.name", "model.name")  # keys that may be paths
INSTALLED = Path(__file__).parent / "app"  # in an installed package: the files of the app that are no modules
LATEST = "latest"  # instead of a results folder: the newest
PAIR = re.compile(r"""\s*([\w.\-]+)=('[^']*'|"[^"]*"|\[[^\]]*\]|\S+)(?=\s|$)""")

BARE = re.compile(r"""[^\s'"\[\]{}=]+""")  # text without quotes


@dataclass(frozen=True)
class Settings:
    """What to run: a checked configuration, and the folder of the Flower app that runs it.

    `idle` are keys that somebody set although this run has no use for them: options of another strategy.
    """

    app: Path
    config: RunConfig
    idle: tuple[str, ...] = ()

    @classmethod
    def read(cls, app: Path | None, preset: str | None, overrides: Sequence[str], here: Path) -> "Settings":
        """Merge and check; relative paths are looked for in `here`. Raises ConfigError with every problem."""
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
    """Return the settings of the run to resume with what was set, where a run is named; its path may be relative to
    `here`. Raises ConfigError."""
    if not (isinstance(own.get(RESUME), str) and own[RESUME]):
        return own
    folder = _run_folder(own, here)
    found = continued(own | {RESUME: str(folder)})
    return found | {"output-dir": found.get("output-dir") or str(folder.parent)}


def check_simulated(config: RunConfig) -> None:
    """Raise ConfigError for what cannot be simulated."""
    if config.task.data.partitioner.own_rows:
        raise ConfigError(
            ["data.partitioner = 'none' is for deployed nodes, which have a data-path; simulated ones have not"]
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
    raise ConfigError([f"{INSTALLED} is not there; install thistledown again, or give a clone of it: --app DIR"])


def is_app(folder: Path) -> bool:
    """Return whether Flower would find an app in the folder."""
    try:
        project = _toml(folder.expanduser() / "pyproject.toml")
    except ConfigError:
        return False
    return "app" in project.get("tool", {}).get("flwr", {})


def defaults(app: Path) -> Values:
    """Every declared key with its default."""
    return flat(_toml(app / "pyproject.toml")["tool"]["flwr"]["app"].get("config", {}))


def merged(app: Path, preset: str | None, overrides: Sequence[str], here: Path) -> Values:
    """All keys: defaults <- preset <- overrides. Raises ConfigError for what cannot be read."""
    return defaults(app) | chosen(app, preset, overrides, here)


def chosen(app: Path, preset: str | None, overrides: Sequence[str], here: Path) -> Values:
    """The keys that somebody set: preset <- overrides. Raises ConfigError for what cannot be read."""
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
    """The file of a preset given by path or by the name it has in presets/. Raises ConfigError."""
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
    """What every `-c "key=value key2='x'"` says. Raises ConfigError."""
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
    """The value of a key in TOML. Of a key that takes text it is the text as it stands, where it has no quotes: it can
    mean nothing else. Raises TOMLDecodeError."""
    known = keys().get(key)
    textual = known is None or known.type is str or typing.get_origin(known.type) is tuple
    try:
        return tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        if textual and BARE.fullmatch(written):
            return written
        raise


def _run_folder(values: Values, here: Path) -> Path:
    """The results folder to go on in: a path, or `latest` among the outputs."""
    if values[RESUME] == LATEST:
        return (here / str(values.get("output-dir") or "outputs") / LATEST).resolve()
    return (here / Path(str(values[RESUME])).expanduser()).resolve()


def joined(values: Values, key: str) -> str | None:
    """Make a list the text that Flower can carry; returns the problem where that cannot be."""
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
    """The same with paths made absolute: those that exist in one of the folders. Other names are hub ids."""
    for key in PLACES:
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
    """What a simulated node is promised that this machine does not have; Ray would wait for it or fail obscurely."""
    import torch

    found = []
    if simulation.num_cpus > cores():
        found.append(f"simulation.num-cpus = {simulation.num_cpus}, but this process may use {cores()}")
    gpus = torch.cuda.device_count() or torch.xpu.device_count()
    if simulation.num_gpus > gpus:
        found.append(f"simulation.num-gpus = {simulation.num_gpus:g}, but this machine has {gpus} that torch can use")
    return found
