"""Bytes that rot on a disk: a flipped bit in what was kept is found, named, and healed where it can be."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from strategies.exchange import checkpoint
from strategies.exchange.federation import Federation
from strategies.exchange.session import Session, resumed
from strategies.exchange.vocabulary import Entry, RunFailed, State

STATE = State({"w": torch.arange(64.0), "b": torch.ones(3).bfloat16()}, (Entry(1, 5, {"k": torch.randn(40)}),))


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


# ---------------------------------------------------------------------- checkpoints


@pytest.fixture
def last(tmp_path: Path) -> Path:
    path = tmp_path / checkpoint.LAST
    checkpoint.save(path, STATE, {"round": 2, "seed": 0, "strategy": "fedavg", **Session(round=2).about()})
    return path


def test_no_flipped_bit_of_a_checkpoint_is_believed(last: Path) -> None:
    """Anywhere in the file: either it is named as damaged, or what is read is what was written."""
    whole, said = checkpoint.load(last)
    content = last.read_bytes()
    named = []
    for place in range(0, len(content), 3):
        flip(last, place, place % 8)
        try:
            state, about = checkpoint.load(last)
        except checkpoint.Damaged as error:
            named.append(str(error))
        else:
            assert about == said
            assert all(torch.equal(state.tensors[name], tensor) for name, tensor in whole.tensors.items())
        last.write_bytes(content)
    assert all(str(last) in message for message in named)
    assert len(named) > len(content) / 3 * 0.95


def test_a_resume_says_which_file_is_damaged(last: Path) -> None:
    flip(last, last.stat().st_size - 3)
    with pytest.raises(RunFailed, match=r"last\.safetensors is damaged: its tensors .* the best state or an earlier"):
        resumed("fedavg", Federation(checkpoint=last.parent), 9)


def test_a_damaged_entry_of_a_journal_is_named(last: Path) -> None:
    [entry] = (last.parent / checkpoint.JOURNAL).iterdir()
    flip(entry, entry.stat().st_size - 1, 6)
    with pytest.raises(RunFailed, match=entry.name):
        resumed("fedavg", Federation(checkpoint=last.parent), 9)


def test_a_checkpoint_that_is_cut_off_is_named(last: Path) -> None:
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(RunFailed, match=r"last\.safetensors is damaged or cut off"):
        resumed("fedavg", Federation(checkpoint=last.parent), 9)


def test_a_checkpoint_of_an_earlier_version_is_read_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "old" / checkpoint.LAST
    path.parent.mkdir()
    save_file({"w": torch.ones(2)}, path, metadata={"about": json.dumps({checkpoint.MARK: "", "round": 3})})
    with caplog.at_level(logging.WARNING, "flwr"):
        for _ in range(2):
            assert checkpoint.load(path)[1] == {"round": 3}
    assert caplog.text.count("cannot be verified") == 1
