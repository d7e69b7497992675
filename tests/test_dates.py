"""A chat template may ask what day it is: that is one day for a run, on every node, whenever it is resumed."""

from pathlib import Path
from typing import Any

import pytest
from samples import language_base, write_table
from tuned import ROWS

from strategies.rounds.handshake.resolve import resolve
from task.config import TaskConfig
from task.data.encoding.chats.templates import filled_in
from task.data.encoding.completions import CompletionEncoder
from task.data.encoding.texts import tokenizer_in
from task.data.prepared import prepare
from task.schema import ConfigError
from task.storage.store import Store

CHAT = (
    "{% for m in messages %}{{ m.content }}{% endfor %} "
    "{{ 'day' if strftime_now('%d %b %Y') == '31 Jan 2026' else 'night' }}"
)
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %} day"
DRAWN = "{% for m in messages %}{{ m.content }}{% endfor %} {{ range(10 ** 5) | random }} {{ lipsum(n=1) }}"


def config(file: Path, **options: Any) -> TaskConfig:
    flat = {"task.kind": "causal-lm", "model.name": "given", "data.name": str(file), "data.partitioner": "iid"}
    flat |= {"data.test-split": "", "data.max-length": 16}
    return TaskConfig.read(flat | options)


def keys(store: Store) -> set[str]:
    return {path.name for path in (store.root / "data").iterdir() if not path.name.startswith(".")}


@pytest.mark.first(1)
@pytest.mark.parametrize(("template", "kinds"), [(CHAT, 2), (PLAIN, 1)])
def test_rows_are_those_of_their_day(template: str, kinds: int, tmp_path: Path, store: Store) -> None:
    base, file = language_base(tmp_path / "base", template), write_table(tmp_path / "rows.jsonl", ROWS)
    parts = [
        prepare(config(file, **{"data.date": day}), base, store) for day in ("2026-01-31", "2026-02-01", "2026-01-31")
    ]
    ids = [part.train.inputs.tokens.ids.tolist() for part in parts]  # type: ignore[union-attr]
    assert ids[0] == ids[2]
    assert (ids[0] == ids[1]) == (kinds == 1)
    assert len(keys(store)) == kinds
    said = [line for line in parts[0].notices if "the date: 2026-01-31 for the whole run (data.date)" in line]
    assert len(said) == kinds - 1


def test_a_run_has_a_day(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import date

    from task.kinds import causal_lm

    class Fixed(date):
        @classmethod
        def today(cls) -> date:
            return date(2026, 3, 4)

    monkeypatch.setattr(causal_lm, "date", Fixed)
    file = write_table(tmp_path / "rows.jsonl", ROWS)
    begun = resolve(config(file), store, 2)
    assert begun.data.date == "2026-03-04"
    assert CompletionEncoder.of(tmp_path, begun.data).day == "2026-03-04"
    assert resolve(config(file, **{"data.date": "2026-01-31"}), store, 2).data.date == "2026-01-31"


@pytest.mark.parametrize("day", ["yesterday", "2026-02-30", "31.1.2026", "20260131", "2026-01-31T10:00"])
def test_what_is_no_day_is_refused(day: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.date = '.*' is not a date, such as '2026-01-31'"):
        config(tmp_path, **{"data.date": day})


def test_a_template_that_draws_draws_the_same(tmp_path: Path) -> None:
    tokenizer = tokenizer_in(language_base(tmp_path / "base", DRAWN))
    found = []
    for _ in range(2):
        with filled_in(DRAWN, tokenizer, tmp_path) as own:
            found.append(own.texts([[{"role": "user", "content": "a"}]] * 2))
    assert found[0] == found[1]
    assert found[0][0] == found[0][1]


def test_rows_of_another_day_are_not_taken_from_the_cache(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody says a day, such as in a notebook."""
    from datetime import date

    from task.data.encoding import completions

    base, file = language_base(tmp_path / "base", CHAT), write_table(tmp_path / "rows.jsonl", ROWS)
    ids = []
    for day in (date(2026, 1, 31), date(2026, 2, 1)):
        fixed = type("Fixed", (date,), {"today": classmethod(lambda cls, day=day: day)})
        monkeypatch.setattr(completions, "date", fixed)
        ids.append(prepare(config(file), base, store).train.inputs.tokens.ids.tolist())  # type: ignore[union-attr]
    assert ids[0] != ids[1]
