"""`thistledown new`: what data is taken for, and a preset that trains on it."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server_app import data_notices
from server_app.config import RunConfig
from task.config import EMBEDDED_MODEL
from task.data.guessing.columns import seen
from task.data.index import DataIndex
from task.data.partition import partition
from task.data.partitioners.base import SplitError
from task.data.prepared import data_index
from task.data.raw import DataError, lacks
from task.data.request import Reading
from task.data.sources.base import Source, read_split
from task.data.sources.registry import of_keyword, open_source
from task.data.splits import TEST, TRAIN, called
from task.models.base import BaseError
from task.schema import ConfigError
from task.storage.store import StoreError, server_store
from thistledown.drafting import choices
from thistledown.drafting.column_lines import described
from thistledown.drafting.kind_guess import taken
from thistledown.drafting.oddities import odd
from thistledown.drafting.preset import Choice, written
from thistledown.drafting.sites import lacking, site_of
from thistledown.settings import Values, app_folder, defaults, joined, pairs, placed

SITE, COLUMN, NODES = "data.id-column", "-column", "simulation.num-supernodes"
TRAINED, TESTED = "data.train-split", "data.test-split"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What the user says: the data, where the preset goes, and keys."""

    name: str
    to: Path
    keys: Mapping[str, object]

    @classmethod
    def of(cls, name: str, to: Path | None, force: bool, flags: Values, overrides: Sequence[str]) -> "Asked":
        """Return what is said by flags and by -c. Raises ConfigError for a preset that exists, unless `force`, and for
        a flag and a key that say the same."""
        keys = pairs(overrides)
        if twice := [key for key in flags if key in keys]:
            raise ConfigError([f"{key} is given by -c and by a flag of its own; leave one out" for key in twice])
        keys |= flags
        place = to or Path(f"{Path(name).name.partition('.')[0] or 'preset'}.toml")
        if not place.absolute().parent.is_dir():
            raise ConfigError([f"--to {place}: there is no folder {place.absolute().parent}"])
        if place.is_dir() or (place.exists() and not force):
            raise ConfigError([f"{place} exists; name another file by --to, or write over it by --force"])
        if problems := [problem for key in keys if (problem := joined(keys, key))]:
            raise ConfigError(problems)
        return cls(name, place, keys)

    def text(self, key: str, default: str = "") -> str:
        """Return the value of a key of text."""
        return str(self.keys.get(key, default))

    @property
    def columns(self) -> dict[str, str]:
        """Return the columns that are named, by key, without that of sites."""
        return {key: str(name) for key, name in self.keys.items() if key.endswith(COLUMN) and key != SITE}


def new(asked: Asked, say: Say) -> None:
    """Say what the data is taken for and what is odd in it, and write the preset. Raises ConfigError."""
    import datasets

    datasets.disable_progress_bars()
    try:
        _new(asked, say)
    except (BaseError, DataError, SplitError, StoreError) as error:
        raise ConfigError([str(error)]) from error


def _new(asked: Asked, say: Say) -> None:
    source = open_source(asked.name, asked.text("data.subset"), asked.text(TRAINED, TRAIN))
    splits = _splits(source, asked)
    written_as = Reading(None, {}, asked.text("data.delimiter"), asked.text("data.encoding"))
    raw = read_split(source, str(splits[TRAINED].value), written_as)
    columns = seen(raw)
    _check(asked, [column.name for column in columns])
    say(f"{asked.name}: {len(raw):,} rows" + (f" in '{splits[TRAINED].value}'" if len(source.splits()) > 1 else ""))
    for line in described(raw, columns):
        say(line)
    site = site_of(columns, None if SITE not in asked.keys else asked.text(SITE), asked.columns.values())
    found = taken([one for one in columns if one is not site], asked.columns, asked.text("task.kind"), asked.name)
    model = EMBEDDED_MODEL if of_keyword(asked.name) and "model.name" not in asked.keys else asked.text("model.name")
    own = [*choices.of_method(found), _data(asked), *choices.of_task(found, raw, columns, site, model)]
    chosen, index, strange = _indexed([*own, *splits.values()], asked)
    chosen += choices.of_sizes(found, index, site, _whole(asked.keys.get(NODES, 0)))
    config, chosen = _config(chosen, asked)
    nodes = config.server.simulation.num_supernodes
    split = partition(config.task, index, nodes, server_store())
    notices = data_notices.of_run(config.task, index, split)
    for line in dict.fromkeys([*odd(raw, columns, found, site), *strange, *index.notices, *notices]):
        say(f"odd: {line.removeprefix(f'{source.name}: ')}")
    say("these follow from the data, and each can be changed:")
    for choice in chosen:
        if choice.guessed:
            say(choice.line())
    _write(asked, chosen)
    named = shlex.quote(str(asked.to))
    say(f"{asked.to} is written; next: thistledown check {named}, thistledown run {named}")


def _splits(source: Source, asked: Asked) -> dict[str, Choice]:
    """Return the splits to train on and to test. Raises DataError if there is none to train on."""
    have = list(source.splits())
    train = asked.text(TRAINED) or called(TRAIN, have, source.name) or (have[0] if len(have) == 1 else "")
    if train not in have:
        said = lacks("split", train or TRAIN, have)
        raise DataError(f'{source.name} {said}; name the one to train on: -c "{TRAINED}=..."')
    test = asked.text(TESTED) or called(TEST, have, source.name)
    cut = "" if test else "none: test rows are cut from the others (data.test-fraction)"
    return {
        TRAINED: Choice(TRAINED, train, "rows to train on", train != TRAIN),
        TESTED: Choice(TESTED, test, cut or "rows that the quality is reported on", True),
    }


def _check(asked: Asked, names: Sequence[str]) -> None:
    """Raise ConfigError for columns that the data does not have."""
    flags = {"data.text-column": "--text", "data.label-column": "--label"}
    wrong = {key: name for key, name in asked.columns.items() if name and name not in names}
    if wrong:
        raise ConfigError([lacking(flags.get(key, key), name, names) for key, name in wrong.items()])


def _data(asked: Asked) -> Choice:
    return Choice("data.name", _from(asked.to, asked.name), "a file, a folder, or a dataset of the Hugging Face Hub")


def _from(preset: Path, name: str) -> str:
    """Return a name as the preset says it: a path beside the preset relative to it, any other path whole."""
    place = Path(name).expanduser()
    if of_keyword(name) or name == EMBEDDED_MODEL or not place.exists():
        return name
    folder = preset.absolute().parent.resolve()
    whole = place.resolve()
    return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else str(whole)


def _indexed(chosen: list[Choice], asked: Asked) -> tuple[list[Choice], DataIndex, list[str]]:
    """Return the keys with the index of the data, and what is odd. Test rows without labels, as in contests, are left
    out."""
    try:
        return chosen, data_index(_config(chosen, asked)[0].task, server_store()), []
    except DataError as error:
        tested = next(choice for choice in chosen if choice.key == TESTED)
        if not tested.value or TESTED in asked.keys:
            raise
        others = [choice for choice in chosen if choice is not tested]
        cut = Choice(TESTED, "", f"none: '{tested.value}' cannot be used, so test rows are cut from the others", True)
        found = data_index(_config([*others, cut], asked)[0].task, server_store())
        return [*others, cut], found, [f"test rows cannot be used: {error}"]


def _config(chosen: Iterable[Choice], asked: Asked) -> tuple[RunConfig, list[Choice]]:
    """Return the checked configuration, and its keys: those that the user gives replace others. Raises ConfigError."""
    given = {key: Choice(key, _named(asked, key), "as you say") for key in asked.keys}
    keys = {choice.key: choice for choice in chosen} | given
    if not keys.get(SITE, Choice(SITE, "", "")).value:
        keys.pop(SITE, None)
    values = placed({key: choice.value for key, choice in keys.items()}, asked.to.absolute().parent)
    return RunConfig.read(defaults(app_folder(None)) | values), list(keys.values())


def _named(asked: Asked, key: str) -> object:
    return _from(asked.to, asked.text(key)) if key == "model.name" else asked.keys[key]


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _write(asked: Asked, chosen: Sequence[Choice]) -> None:
    title = (
        f"thistledown run {shlex.quote(asked.to.name)}\n\nWritten by thistledown new for {Path(asked.name).name}. "
        "Each key has its reason above it; `thistledown keys WORD` explains\nothers, and "
        "`thistledown check` shows what a run would do.\n"
    )
    draft = asked.to.with_name(f".{asked.to.name}.draft")
    try:
        draft.write_text(written(title, chosen), encoding="utf-8")
        draft.replace(asked.to)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConfigError([f"{asked.to} cannot be written: {error.strerror}"]) from error
