"""Bytes that rot on a disk: a flipped bit in what was kept is found, named, and healed where it can be."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from entries import Listening, at_the_base, state_of
from flwr.app import ConfigRecord, Message
from in_process import federate
from safetensors.torch import save_file
from samples import scans, vision_base

from client_app.local import Local
from client_app.public_errors import NodeError
from client_app.store import ClientStore
from strategies.exchange.federation import Federation
from strategies.exchange.types import Entry, RunFailed, State
from strategies.protocol import checkpoint
from strategies.rounds.run_state import RunState, resumed
from task.config import Model, TaskConfig
from task.data.index import read_index
from task.data.partition import _kept, partition
from task.data.partitioners import registry
from task.data.prepared import data_index, prepare
from task.models.base import BaseError, files
from task.models.finding import accept_offer, kept_bases, node_base, server_base
from task.models.model import TunedModel
from task.storage import seal
from task.storage.store import Store, server_store

STATE = State({"w": torch.arange(64.0), "b": torch.ones(3).bfloat16()}, (Entry(1, 5, {"k": torch.randn(40)}),))


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


# ---------------------------------------------------------------------- checkpoints


@pytest.fixture
def last(tmp_path: Path) -> Path:
    path = tmp_path / checkpoint.LAST
    checkpoint.save(path, STATE, {"round": 2, "seed": 0, "strategy": "fedavg", **RunState(round=2).about()})
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
    save_file({"w": torch.ones(2)}, path, metadata={"about": json.dumps({checkpoint.POSITION: "", "round": 3})})
    with caplog.at_level(logging.WARNING, "flwr"):
        for _ in range(2):
            assert checkpoint.load(path)[1] == {"round": 3}
    assert caplog.text.count("cannot be verified") == 1


# ---------------------------------------------------------------------- what a store keeps


@pytest.fixture
def task(tmp_path: Path) -> tuple[TaskConfig, Path]:
    images, labels = scans()
    np.savez(tmp_path / "rows.npz", x_train=images, y_train=labels)
    config = TaskConfig.read({"model.name": "given", "data.name": str(tmp_path / "rows.npz"), "data.test-split": ""})
    return config, vision_base(tmp_path / "vision")


def client(store: Path) -> Local:
    """A node that has nothing yet but a place."""
    return Local((("store-path", str(store)),), 1, ConfigRecord(), TaskConfig())


def another_process() -> None:
    """Forget what this one has found whole."""
    seal._whole.clear()


@pytest.mark.parametrize("kind", ["data", "indexes", "splits"])
def test_rows_that_rot_are_named_and_made_again(
    task: tuple[TaskConfig, Path], store: Store, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Inverted pixels and zeroed labels were trained on."""
    config, base = task
    iid = replace(config, data=replace(config.data, partitioner=registry.load("iid")()))

    def all_of_it() -> list[bytes]:
        rows, plan = prepare(iid, base, store).train, data_index(iid, store)
        parts = partition(iid, plan, 3, store)
        return [rows.batch(range(len(rows)))["pixel_values"].numpy().tobytes(), plan.train.labels.tobytes(),
                *(part.tobytes() for part in parts)]  # fmt: skip

    before = all_of_it()
    for path in sorted(store.root.glob(f"{kind}/*/*.npy")):
        place = path.stat().st_size - 1
        flip(path, place)
        another_process()
        read_index.cache_clear()
        _kept.cache_clear()
        caplog.clear()
        assert all_of_it() == before
        assert f"{path} is damaged: its bytes are not those that were written; it is removed" in caplog.text


def test_rows_of_an_earlier_version_are_made_again(task: tuple[TaskConfig, Path], store: Store) -> None:
    config, base = task
    prepare(config, base, store)
    for path in store.root.glob(f"*/*/{seal.SEAL}"):
        path.unlink()
    another_process()
    prepare(config, base, store)
    assert len(list(store.root.glob(f"data/*/{seal.SEAL}"))) == 1


def test_a_process_looks_at_a_file_once(task: tuple[TaskConfig, Path], store: Store, monkeypatch: Any) -> None:
    config, base = task
    prepare(config, base, store)
    another_process()
    hashed: list[Path] = []
    monkeypatch.setattr(seal, "_hash", lambda path, original=seal._hash: hashed.append(path) or original(path))
    for _ in range(3):
        prepare(config, base, store)
    assert len(hashed) == len(set(hashed)) > 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "more", "missing"])
def test_a_damaged_base_is_no_longer_advertised_and_may_be_offered_again(
    store: Store, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    base = server_base(Model(), server_store())
    contents = {name: path.read_bytes() for name, path in files(base.folder).items()}
    accept_offer(contents, base.fingerprint, store)
    assert kept_bases(store) == [base.fingerprint]
    path = store.path("bases", base.fingerprint) / "model.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "flipped":
        flip(path, path.stat().st_size // 2)
    elif damage == "more":
        (path.parent / "tokenizer.json").write_text("{}")
    else:
        path.unlink()
    another_process()
    assert kept_bases(store) == []
    assert "it is removed from the store" in caplog.text
    with pytest.raises(BaseError, match=base.fingerprint) as lacks:
        node_base(Model(), base.fingerprint, store)
    assert lacks.value.public == f"it lacks the base {base.fingerprint}"
    accept_offer(contents, base.fingerprint, store)
    assert node_base(Model(), base.fingerprint, store)


def test_a_base_that_an_earlier_version_kept_is_checked_by_its_fingerprint(store: Store) -> None:
    base = server_base(Model(), server_store())
    for whole in (True, False):
        place = store.path("bases", base.fingerprint)
        place.mkdir(parents=True, exist_ok=True)
        for name, path in files(base.folder).items():
            (place / name).write_bytes(path.read_bytes())
        (place / seal.SEAL).unlink(missing_ok=True)
        if not whole:
            flip(place / "model.safetensors", 50_000)
        assert kept_bases(store) == ([base.fingerprint] if whole else [])


def test_what_a_node_keeps_is_checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = client(tmp_path)
    for round in (1, 2):
        ClientStore(node, round).keep({"private": {"w": torch.full((3,), float(round))}})
    [newest] = tmp_path.glob("own/*/2.safetensors")
    flip(newest, newest.stat().st_size - 1)
    assert ClientStore(node, 3).client_state()["private"]["w"].tolist() == [1.0] * 3
    assert f"{newest} is damaged" in caplog.text
    assert not newest.exists()


def test_a_damaged_entry_on_a_node_is_as_one_that_it_lacks(
    tmp_path: Path, strategy: Listening, model: TunedModel
) -> None:
    """The server then sends the whole journal."""
    node, state = client(tmp_path), state_of(1, 2)
    ClientStore(node, 1).installed(strategy, at_the_base(), state)
    path = tmp_path / "journals" / state.positions[1] / "entry.safetensors"
    flip(path, path.stat().st_size - 1)
    another_process()
    with pytest.raises(NodeError, match="lacks a part of the journal"):
        ClientStore(node, 2).installed(strategy, at_the_base(), state.after(state.positions[2]))
    ClientStore(node, 2).installed(strategy, at_the_base(), state)


@pytest.mark.slow
def test_a_node_whose_base_rots_in_a_run_is_offered_it_again(tmp_path: Path) -> None:
    """It failed every round from then on, and advertised the base for ever."""
    store, base = Store(tmp_path / "store"), server_base(Model(), server_store())
    accept_offer({name: path.read_bytes() for name, path in files(base.folder).items()}, base.fingerprint, store)

    def rot(partition: int, kind: str, reply: Message) -> Message:
        metrics = reply.content.metric_records.get("metrics", {})
        if kind == "train" and metrics.get("server-round") == 1 and partition == 1:
            [path] = store.root.glob("bases/*/model.safetensors")
            path.write_bytes(path.read_bytes()[:-100])
            another_process()
        return reply

    places = {number: {"store-path": str(store.root if number == 1 else tmp_path / "other")} for number in range(3)}
    everyone, others = ["0", "1", "2"], ["0", "2"]
    options = {"num-server-rounds": 3, "simulation.num-supernodes": 3}
    outcome = federate(tmp_path / "outputs", options, node_configs=places, spoil=rot)
    good = [sorted(line["node"] for line in entry["nodes"] if not line["refused"]) for entry in outcome.rounds[1:]]
    assert good == [everyone, others, everyone]
    [refused] = [line["refused"] for line in outcome.rounds[2]["nodes"] if line["refused"]]
    assert refused == "it has lost the base, and is asked for its profile again"
    assert [exchange.partition for exchange in outcome.grid.of("query.base")].count(1) == 1
