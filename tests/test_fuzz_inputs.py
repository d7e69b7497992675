# ruff: noqa: PT017 - an error is one of two right outcomes
"""Damaged configurations, orders, profiles and files of rows: each is refused with its cause, or is what it says."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from samples import write_table
from tiers import examples

import strategies
from server_app.config import RunConfig, keys
from strategies.exchange.types import MAX_ROWS, Profile, Refused
from strategies.protocol import instructions
from strategies.protocol.trial import Trial
from strategies.rounds.handshake import profile_parsing
from task.config import TaskConfig
from task.data.raw import DataError
from task.data.request import Reading
from task.data.sources.registry import open_source
from task.schema import ConfigError
from task.tunings.base import MAX_RANK
from thistledown.settings import Settings
from thistledown.simulation.grid import through_wire

APP = Path(__file__).parent.parent
KEYS = sorted(keys())
WORDS = [
    "",
    "auto",
    "lora",
    "rbla",
    "fedavg",
    "half,quantize",
    "top-k",
    "median",
    "../../etc",
    "8,2",
    "a|b",
    "\0",
    "é",
    "-1",
]


def fuzz(count: int) -> Callable[[Any], Any]:
    return examples(
        count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


values = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=8),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 20),
    st.floats(),
    st.booleans(),
    st.none(),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
)
scalars = st.one_of(
    st.sampled_from(WORDS), st.integers(-2, 20), st.integers(-(2**62), 2**62), st.floats(), st.booleans()
)
known = st.sampled_from(KEYS)
broken = known.flatmap(
    lambda key: st.sampled_from([key[1:], key + "s", key.upper(), key.replace("-", "_"), "x." + key])
)


# ---------------------------------------------------------------------- configurations


@fuzz(400)
@given(st.dictionaries(st.one_of(known, known, known, broken, st.text(max_size=5)), values, min_size=1, max_size=5))
def test_a_damaged_config_is_refused_by_its_key_or_is_one(flat: dict[str, Any]) -> None:
    try:
        run = RunConfig.read(flat)
    except ConfigError as error:
        assert error.problems
        for problem in error.problems:
            known_words = (*flat, *KEYS, "wrapper", "tracker")
            assert any(name in problem for name in known_words if name) or "no key ''" in problem, problem
        return
    assert flat.keys() <= set(KEYS)
    assert RunConfig.read(run.flat) == run, "what was read is written, and read again to the same"


@fuzz(200)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=20),
            st.builds("{}={}".format, known | broken, st.text(max_size=8)),
            st.builds("{}={!r}".format, known | broken, values),
        ),
        max_size=4,
    )
)
def test_damaged_overrides_are_refused_or_make_settings(overrides: list[str]) -> None:
    try:
        made = Settings.read(APP, None, overrides, APP)
    except ConfigError as error:
        assert error.problems
        assert all(problem.strip() for problem in error.problems)
        return
    assert RunConfig.read(made.config.flat) == made.config


@fuzz(150)
@given(st.binary(max_size=60) | st.builds("[{}]\n{}".format, st.text(max_size=8), st.text(max_size=20)).map(str.encode))
def test_a_damaged_preset_is_refused_or_makes_settings(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "mine.toml").write_bytes(content)
        try:
            made = Settings.read(APP, "mine.toml", [], Path(folder))
        except ConfigError as error:
            assert error.problems
            return
    assert RunConfig.read(made.config.flat) == made.config


# ---------------------------------------------------------------------- orders


@fuzz(300)
@given(st.dictionaries(known | broken | st.sampled_from(["base-fingerprint", "global-rank"]), scalars, max_size=4))
def test_damaged_instructions_are_refused_or_valid(changed: dict[str, Any]) -> None:
    record = instructions.write(TaskConfig(), strategies.load("fedavg"), "0" * 32, 8)
    record.update(changed)
    for read in (instructions.task_of, instructions.strategy_of, instructions.rank_of, instructions.fingerprint_of):
        try:
            found = read(record)
        except (ConfigError, Refused) as error:
            assert str(error).strip()
            continue
        if isinstance(found, int):
            assert 0 <= found <= MAX_RANK


# ---------------------------------------------------------------------- what nodes say of themselves

PROFILE: dict[str, Any] = {
    "name": "7", "rank": 8, "num-examples": 10, "store": "ab", "bases": ["0" * 32], "named-base": "",
    "device": "cpu", "memory": 2**33,
    "cores": 4, "versions": "python 3.11", "automatic": False, "dtypes": ["float32"], "labels-fit": True,
    "labels": ["cat", "dog"],
}  # fmt: skip


def delivered(kind: str, record: dict[str, Any]) -> Message:
    question = Message(RecordDict(), dst_node_id=3, message_type="query.profile")
    question.metadata.__dict__["_message_id"] = "question"
    return through_wire(Message(RecordDict({kind: ConfigRecord(record)}), reply_to=question))


claimed = st.one_of(
    scalars,
    st.text(st.characters(codec="utf-8"), max_size=250),
    st.binary(max_size=3),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=3),
    st.lists(st.floats(), min_size=1, max_size=3),
    st.just("\x1b[2J"),
)


@fuzz(400)
@given(st.dictionaries(st.sampled_from(sorted(PROFILE)), claimed | st.none(), min_size=1, max_size=2))
def test_a_damaged_profile_is_refused_by_what_it_says_or_is_one(changed: dict[str, Any]) -> None:
    said = {key: value for key, value in (PROFILE | changed).items() if value is not None}
    try:
        profile = profile_parsing.profile_in(3, delivered("profile", said))
    except Refused as reason:
        assert any(f"its profile says {key} = " in str(reason) or f"'{key}'" in str(reason) for key in changed), reason
        assert len(str(reason)) < 300
        assert str(reason).isprintable()
        return
    assert {field.name: type(getattr(profile, field.name)) for field in fields(Profile)} == {
        "node_id": int, "name": str, "rank": int, "num_examples": int, "store": str, "bases": frozenset, "device": str,
        "memory": int, "cores": int, "versions": str, "automatic": bool, "dtypes": frozenset, "labels_fit": bool,
        "labels": tuple, "key": str, "named_base": str,
    }  # fmt: skip
    assert profile.name
    assert profile.name.isprintable()
    assert 0 <= profile.rank <= MAX_RANK
    assert 0 <= profile.num_examples <= MAX_ROWS


def test_a_good_profile_is_believed() -> None:
    profile = profile_parsing.profile_in(3, delivered("profile", PROFILE))
    assert (profile.name, profile.rank, profile.num_examples) == ("7", 8, 10)
    bare = profile_parsing.profile_in(3, delivered("profile", PROFILE | {"bases": [], "dtypes": [], "labels": []}))
    assert (bare.bases, bare.dtypes, bare.labels) == (frozenset(), frozenset(), ())


@fuzz(200)
@given(st.dictionaries(st.sampled_from(["ranks", "seconds", "bytes", "free", "steps"]), claimed, min_size=1))
def test_a_damaged_trial_is_refused_or_is_one(changed: dict[str, Any]) -> None:
    good = {"ranks": [2, 8], "seconds": [0.1, 0.2], "bytes": [10, 20], "free": 100, "steps": 3}
    try:
        trial = Trial.read(delivered("trial", good | changed).content.config_records["trial"], (2, 4, 8))
    except Refused as reason:
        assert "its trial" in str(reason)
        return
    assert trial.ranks in {(), (2,), (2, 4), (2, 8)}
    assert min((*trial.seconds, *trial.bytes, trial.free, trial.steps)) >= 0


# ---------------------------------------------------------------------- files of rows


@pytest.mark.fewer
@pytest.mark.parametrize(
    "ending", [".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".arrow", ".feather", ".xlsx"]
)
def test_a_damaged_file_is_read_or_refused_by_its_name(ending: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / f"rows{ending}", {"text": ["a", "b", "ü"], "label": [1, 2, 3]})
    whole = path.read_bytes()

    @fuzz(80)
    @given(
        st.floats(0, 1),
        st.integers(0, 6),
        st.binary(max_size=6) | st.sampled_from([b"[" * 50_000, b'"', b"9" * 30, b"\n"]),
    )
    def damage(where: float, length: int, new: bytes) -> None:
        start = int(where * len(whole))
        path.write_bytes(whole[:start] + new + whole[start + length :])
        try:
            table = open_source(str(path)).load("train", Reading(("text", "label")))
        except DataError as error:
            assert str(path) in str(error)
            return
        assert len(table) >= 0

    damage()
