"""Random files in odd places: of no value and no path do five characters in a row leave a deployed node."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deployed_node import context
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from test_hostile_server import Scene, everything
from tiers import scaled
from tuned import samples

SHORTEST = 5  # characters in a row that would tell something
ALL = scaled(int(os.environ.get("FUZZ_LEAKS", "60")))
# None of these stands in what we say ourselves, so that whatever is found has leaked.
SIGNS = "ÄÖÜßQXZЖ€𝒳é\x80\x07\t\n,;'\"|{}\\\udc80\ud83d "
WORDS = st.text(SIGNS, min_size=SHORTEST, max_size=30).filter(str.strip)
BYTES = st.binary(min_size=SHORTEST, max_size=20).map(lambda raw: bytes(128 + byte % 128 for byte in raw))
NUMBERS = st.integers(10**14, 10**18) | st.floats(1e15, 1e30)
FOLDERS = st.lists(
    st.text("QXZÄÖ€'\" ;\\,", min_size=SHORTEST, max_size=20).map(lambda name: f"Q{name}Z"), min_size=1, max_size=3
)
NAMES = ("text", "label")


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[Any]]:
    """Columns of the study, sound or not, and one that is the node's own."""
    rows = draw(st.integers(8, 30))
    odd = draw(st.sampled_from(["none", "text", "label", "both", "name"]))
    cells = WORDS | (NUMBERS | st.none() | st.lists(WORDS, max_size=2) | st.dictionaries(WORDS, WORDS, max_size=1))
    strange = st.lists(cells if draw(st.booleans()) else WORDS, min_size=rows, max_size=rows)
    table = {"text": [f"{draw(WORDS)} good film"] * rows, "label": ["good", "bad"] * (rows // 2) + ["bad"] * (rows % 2)}
    for name in NAMES:
        if odd in (name, "both"):
            table[name] = draw(strange)
    if odd == "name":
        table[draw(WORDS)] = table.pop(draw(st.sampled_from(NAMES)))
    return {**table, draw(WORDS): draw(st.lists(WORDS, min_size=rows, max_size=rows))}


def written(draw: st.DrawFn, place: Path, table: dict[str, list[Any]]) -> Path:
    """The table as a file of some kind; where the kind cannot hold it, as text that is none."""
    kind = draw(st.sampled_from(["csv", "tsv", "txt", "jsonl", "json", "parquet"]))
    path = place / f"{draw(st.text('QXZÄ ', min_size=5, max_size=9))}.{kind}"
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    if kind == "parquet":
        try:
            parquet.write_table(pa.table(table), path)
        except (pa.ArrowException, UnicodeError):
            path.write_bytes(draw(BYTES))
    elif kind in ("csv", "tsv", "txt"):
        between = draw(st.sampled_from(",;\t|"))
        lines = [between.join(map(str, table)), *(between.join(map(str, row.values())) for row in rows)]
        path.write_bytes("\n".join(lines).encode(draw(st.sampled_from(["latin-1", "utf-8"])), "replace") + draw(BYTES))
    else:
        text = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
        path.write_text(text + draw(st.sampled_from(["", "\n", "{", '"QXZQXZ'])))
    return path


def grams(value: Any) -> set[str]:
    """Every five characters in a row of a cell, as text of any encoding."""
    if isinstance(value, dict | list):
        return {gram for item in (*value, *(value.values() if isinstance(value, dict) else ())) for gram in grams(item)}
    text = str(value)
    return {text[start : start + SHORTEST] for start in range(len(text) - SHORTEST + 1)}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Iterator[Scene]:
    sample = samples(tmp_path_factory.mktemp("server"), words)["bert"]
    flat = {key: value for key, value in sample.flat.items() if key not in ("data.name", "model.name")}
    flat |= {
        "model.name": "bert",
        "data.name": "texts",
        "data.partitioner": "none",
        "tuning": "lora",
        "local-steps": 1,
        "evaluate": "both",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr(logging.getLogger("flwr"), "level", logging.CRITICAL)
        yield Scene(tmp_path_factory.mktemp("node"), sample.base, context(), flat)


@settings(max_examples=ALL, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_nothing_of_a_cell_or_a_path_leaves(scene: Scene, data: st.DataObject) -> None:
    table = data.draw(tables())
    number = len(list(scene.folder.iterdir()))
    place = (scene.folder / f"{number}").joinpath(*data.draw(FOLDERS))
    place.mkdir(parents=True)
    path = written(data.draw, place, table)
    node = context(data_path=str(path), store_path=str(place / "store"), device="cpu")
    order = scene.message("train", "fedavg").config_records["instructions"]
    known = str(dict(order)) + " good film"
    secret = {gram for column, cells in table.items() if column not in NAMES for gram in grams(column)}
    secret |= {gram for cells in table.values() for cell in cells for gram in grams(cell)}
    secret |= {gram for part in path.relative_to(scene.folder / f"{number}").parts for gram in grams(part)}
    secret = {gram for gram in secret if gram not in known and not gram.isdecimal()}
    for kind in ("query.base", "query.profile", "evaluate", "train"):
        text, _ = everything(node, kind, scene.message(kind, "fedavg"))
        said = text.replace(str(number), "")
        found = sorted(gram for gram in secret if gram in said)
        assert not found, (kind, found[:3], text[:500])
    OUTCOMES.append(text.startswith("error"))


OUTCOMES: list[bool] = []


@pytest.mark.slow  # few files are all sound, or all not
def test_both_outcomes_were_seen() -> None:
    """Files that are sound and files that are not."""
    assert len(OUTCOMES) >= ALL
    assert len(set(OUTCOMES)) == 2
