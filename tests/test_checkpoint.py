"""A state on disk: it comes back bit for bit, and a save that fails leaves the one before."""

import os
from pathlib import Path

import pytest
import torch

from strategies.algebra.tensors import raw
from strategies.exchange.types import Entry, State, Tensors
from strategies.protocol import checkpoint, wire

STATE = State(
    {
        "m/0.lora_A.weight": torch.randn(3, 4),
        "m/0.lora_B.weight": torch.randn(5, 3).bfloat16(),
        "scalar": torch.tensor(-0.0),
        "empty": torch.empty(0, 3),
        "count": torch.tensor([2**62]),
    },
    (Entry(1, 2**62 + 1, {"k/a": torch.randn(4).half()}), Entry(2, 7, {}), Entry(3, 8, {"k": torch.tensor([True])})),
)


def bits(tensors: Tensors) -> dict[str, object]:
    return {name: (t.dtype, tuple(t.shape), bytes(raw(t))) for name, t in tensors.items()}


def assert_same(one: State, other: State) -> None:
    assert bits(one.tensors) == bits(other.tensors)
    assert [(e.round, e.seed, bits(e.tensors)) for e in one.journal] == [
        (e.round, e.seed, bits(e.tensors)) for e in other.journal
    ]


def test_state_and_words_come_back(tmp_path):
    about = {"round": 3, "seed": 0, "strategy": "fedavg", "best": {"accuracy": 0.5}}
    path = tmp_path / "new" / checkpoint.LAST
    checkpoint.save(path, STATE, about)
    state, said = checkpoint.load(path)
    assert_same(state, STATE)
    assert said == about
    assert sorted(os.listdir(path.parent)) == ["journal", path.name]


def test_more_than_ten_entries_keep_their_order(tmp_path):
    state = State({}, tuple(Entry(i, 100 - i, {"k": torch.tensor([i])}) for i in range(12)))
    checkpoint.save(tmp_path / "s", state, {})
    assert_same(checkpoint.load(tmp_path / "s")[0], state)


def test_an_entry_is_written_once(tmp_path):
    """And what is beside it does not grow with the journal."""
    entries = tuple(Entry(i, 0, {"k": torch.randn(1000)}) for i in range(30))
    sizes, times = [], {}
    for count in range(31):
        checkpoint.save(tmp_path / "s", State({"w": torch.ones(3)}, entries[:count]), {"round": count})
        sizes.append((tmp_path / "s").stat().st_size)
        for path in (tmp_path / "journal").glob("*"):
            assert times.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    assert len(times) == 30
    assert len(set(sizes[1:])) == 1
    assert sizes[1] < 1000


def test_states_of_one_run_share_entries(tmp_path):
    older = State({"w": torch.ones(3)}, STATE.journal[:2])
    for name, state in (("best", older), ("last", STATE)):
        checkpoint.save(tmp_path / name, state, {})
    assert len(list((tmp_path / "journal").glob("*"))) == 3
    assert_same(checkpoint.load(tmp_path / "best")[0], older)
    assert_same(checkpoint.load(tmp_path / "last")[0], STATE)


def test_a_lost_entry_is_said(saved):
    (saved.parent / "journal" / f"{STATE.positions[2]}.safetensors").unlink()
    with pytest.raises(OSError, match=STATE.positions[2]):
        checkpoint.load(saved)


def test_views_and_shared_memory_can_be_saved(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    parts = {"row": whole[0], "rows": whole[:2], "column": whole[:, 1], "turned": whole.T}
    checkpoint.save(tmp_path / "s", State(parts), {})
    assert_same(checkpoint.load(tmp_path / "s")[0], State(parts))


def test_what_came_over_the_wire_can_be_saved(tmp_path):
    came = wire.unpack(wire.pack(STATE))
    checkpoint.save(tmp_path / "s", came, {})
    assert_same(checkpoint.load(tmp_path / "s")[0], STATE)


def test_the_newest_replaces_the_one_before(tmp_path):
    for number in range(3):
        checkpoint.save(tmp_path / "s", State({"w": torch.tensor([float(number)])}), {"round": number})
    state, said = checkpoint.load(tmp_path / "s")
    assert (state.tensors["w"].item(), said) == (2.0, {"round": 2})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "s", STATE, {"round": 1})
    return tmp_path / "s"


def test_words_that_json_cannot_hold_leave_the_old_file(saved):
    with pytest.raises(TypeError):
        checkpoint.save(saved, State({"w": torch.zeros(3)}), {"round": object()})
    assert_same(checkpoint.load(saved)[0], STATE)


def test_tensors_that_cannot_be_saved_leave_the_old_file(saved):
    with pytest.raises((RuntimeError, ValueError)):
        checkpoint.save(saved, State({"w": torch.zeros(3).to_sparse()}), {})
    assert_same(checkpoint.load(saved)[0], STATE)


def test_a_disk_that_takes_no_more_leaves_the_old_file(saved):
    (saved.parent / "s.part").mkdir()  # where the draft would be written
    with pytest.raises(Exception, match=r"(?i)directory"):
        checkpoint.save(saved, State({"w": torch.zeros(3)}), {})
    assert_same(checkpoint.load(saved)[0], STATE)


def test_a_draft_left_by_a_crash_does_not_matter(saved):
    (saved.parent / "s.part").write_bytes(b"half a file")
    assert_same(checkpoint.load(saved)[0], STATE)
    checkpoint.save(saved, State({"w": torch.zeros(3)}), {"round": 2})
    assert checkpoint.load(saved)[1] == {"round": 2}
    assert sorted(os.listdir(saved.parent)) == ["journal", "s"]


def test_the_state_in_memory_is_not_touched(tmp_path):
    before = bits(STATE.tensors)
    about = {"round": 1}
    checkpoint.save(tmp_path / "s", STATE, about)
    assert bits(STATE.tensors) == before
    assert about == {"round": 1}
