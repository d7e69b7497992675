"""A curious or broken server: what a message cannot make a deployed node do, and what a node's errors do not tell."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deployed_node import SECRET, asked, context, refusal, settings
from flwr.app import ConfigRecord
from safetensors.torch import save_file
from samples import write_table

from client_app.local import Local
from client_app.public_errors import NodeError
from strategies.exchange.types import Refused, State
from strategies.protocol import instructions, wire
from task.config import Model, TaskConfig
from task.models.base import BaseError, named_folder
from task.models.finding import accept_offer, named_base, node_base
from task.storage.store import Store
from task.tunings.base import MAX_RANK

PARTITION: dict[str, Any] = {"partition_id": 0, "num_partitions": 2}


# ---------------------------------------------------------------------- paths


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return write_table(tmp_path / "private.csv", {"text": [SECRET, "b", "c", "d"], "label": ["x", "y", "x", "y"]})


def texts(path: object) -> ConfigRecord:
    return settings(task__kind="text-classification", model__name="given", data__name=str(path), data__test_split="")


def test_a_message_cannot_name_a_file_of_a_deployed_node(private: Path, tmp_path: Path) -> None:
    node = context(**PARTITION, store_path=str(tmp_path / "store"))
    said = refusal("query.profile", {"instructions": texts(private)}, node)
    assert "follow-paths = true" in said
    assert not list((tmp_path / "store").glob("indexes/*"))


@pytest.mark.parametrize("name", ["../private.csv", "~/private.csv", "./private.csv", "a/../../private.csv", "/"])
def test_no_spelling_of_a_path_is_followed(name: str, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = private.parent / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    monkeypatch.setenv("HOME", str(private.parent))
    assert "name the path" in refusal("query.profile", {"instructions": texts(name)}, context(**PARTITION))


def test_what_lies_in_the_working_folder_is_no_name(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(private.parent)
    there = refusal("query.profile", {"instructions": texts("private.csv")}, context(**PARTITION))
    gone = refusal("query.profile", {"instructions": texts("nothing.csv")}, context(**PARTITION))
    assert there == gone.replace("nothing", "private") == "data.name = 'private.csv' cannot be read here"


def test_a_node_may_agree_to_follow_paths(private: Path, tmp_path: Path) -> None:
    node = context(**PARTITION, store_path=str(tmp_path / "store"), follow_paths=True)
    record = texts(private)
    record.update({"data.partitioner": "iid", "data.test-fraction": 0.0, "data.validation-fraction": 0.0})
    answer = asked("query.profile", {"instructions": record}, node)
    assert answer.content.config_records["profile"]["num-examples"] == 2


@pytest.mark.parametrize("value", ["true", 1, "yes", False])
def test_nothing_but_true_is_consent(value: object, private: Path) -> None:
    assert "name the path" in refusal(
        "query.profile", {"instructions": texts(private)}, context(**PARTITION, follow_paths=value)
    )


def test_its_own_data_is_read_whatever_the_instructions_name(private: Path, tmp_path: Path) -> None:
    node = context(data_path=str(private), store_path=str(tmp_path / "store"))
    answer = asked("query.profile", {"instructions": texts("/etc/passwd")}, node)
    assert answer.content.config_records["profile"]["num-examples"] == 4


def test_a_model_is_not_looked_for_at_a_path(tmp_path: Path) -> None:
    folder, store = tmp_path / "model", Store(tmp_path / "store")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    model = Model(name=str(folder))
    found = named_base(model, store)
    assert node_base(model, found, store).folder == folder
    assert named_base(model, store, paths=False) == ""
    with pytest.raises(BaseError, match="paths are not followed here"):
        node_base(model, found, store, paths=False)


# ---------------------------------------------------------------------- code


@pytest.mark.parametrize("kind", ["query.profile", "query.base", "query.rehearsal", "query.trial", "train", "evaluate"])
def test_code_of_a_model_needs_the_nodes_own_consent(kind: str) -> None:
    content: dict[str, Any] = {"instructions": settings(model__name="owner/model", model__trust_remote_code=True)}
    said = refusal(kind, content, context(**PARTITION))
    assert "trust-remote-code = true in its node config" in said


def test_a_node_may_agree_to_run_code() -> None:
    record = settings(model__name="owner/model", model__trust_remote_code=True)
    assert Local.of(context(trust_remote_code=True), record).config.model.trust_remote_code
    with pytest.raises(NodeError):
        Local.of(context(trust_remote_code="true"), record)


# ---------------------------------------------------------------------- bases


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "/tmp/evil.json",
        "a/b.json",
        "pytorch_model.bin",
        "weights.pt",
        "model.pkl",
        "modeling.py",
        "x.npz",
    ],
)
def test_an_offer_has_no_other_files_than_a_base(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    from task.models.base import content_hash

    contents = {"config.json": b"{}", name: b"evil"}
    wanted = content_hash({file: (len(data), [data]) for file, data in contents.items()})
    with pytest.raises(BaseError, match="bad file names"):
        accept_offer(contents, wanted, store)
    assert not list(tmp_path.rglob("*evil*"))
    assert not list((tmp_path / "store").rglob("*.json"))


def test_an_offer_must_be_what_it_says(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="is not 0000"):
        accept_offer({"config.json": b"{}"}, "0" * 32, Store(tmp_path))


@pytest.mark.parametrize("fingerprint", ["../../x", "", "0" * 31, 7, "A" * 32, "0" * 32 + "\n"])
def test_a_fingerprint_is_no_path(fingerprint: object, tmp_path: Path) -> None:
    node = context(**PARTITION, store_path=str(tmp_path))
    offered = wire.pack(State({"config.json": torch.zeros(2, dtype=torch.uint8)}))
    said = refusal("query.base", {**offered, "instructions": settings(base_fingerprint=fingerprint)}, node)
    assert "offered base is not" in said or "must be a text" in said or said.startswith("BaseError")
    content = {
        **offered,
        "instructions": settings(base_fingerprint=fingerprint, global_rank=0),
        "assignment": ASSIGNMENT,
    }
    said = refusal("train", content, node)
    assert "is not a fingerprint" in said or "must be a text" in said or said.startswith("BaseError")
    assert not (tmp_path / "bases").exists() or not list((tmp_path / "bases").iterdir())


def test_a_folder_of_pickles_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(BaseError, match="other weight formats can run code"):
        named_folder(Model(name=str(tmp_path)))


# ---------------------------------------------------------------------- orders and tickets

ASSIGNMENT = ConfigRecord({"server-round": 1, "rounds": 2, "seed": 3, "rank": 0})


@pytest.mark.parametrize("kind", ["query.profile", "query.base", "query.rehearsal", "query.trial", "train", "evaluate"])
def test_a_message_without_instructions(kind: str) -> None:
    assert "no record 'instructions'" in refusal(kind, {"assignment": ASSIGNMENT}, context(**PARTITION))


@pytest.mark.parametrize("name", ["server-round", "rounds", "seed", "rank", "basis"])
@pytest.mark.parametrize("value", [-1, 0.5, "1", float("inf"), float("nan"), [1], None])
def test_an_assignment_consists_of_integers(name: str, value: object) -> None:
    record = ConfigRecord({**ASSIGNMENT})
    if value is None:
        record.pop(name, None)
    else:
        record[name] = value  # type: ignore[assignment]
    if value is None and name == "basis":
        assert instructions.read_assignment(record).basis == 0
        return
    with pytest.raises(Refused, match=f"message's {name} must be a whole number"):
        instructions.read_assignment(record)


def test_ranks_in_instructions_are_bounded() -> None:
    with pytest.raises(Refused, match="global-rank must be a whole number from 0 to 1024"):
        instructions.rank_of(ConfigRecord({"global-rank": MAX_RANK + 1}))
    with pytest.raises(Refused, match="rank must be a whole number from 0 to 1024"):
        instructions.read_assignment(ConfigRecord({**ASSIGNMENT, "rank": 10**9}))


@pytest.mark.parametrize("mark", ["../../x", "0" * 31, "/etc", "0" * 32 + "/"])
def test_a_journal_position_is_no_path(mark: str) -> None:
    """Marks name folders of the store."""
    with pytest.raises(Refused, match="is not a journal position"):
        wire.unpack(wire.pack(State({}, since=mark)))


# ---------------------------------------------------------------------- simulation


def test_only_a_process_of_ray_is_simulated() -> None:
    from client_app.public_errors import simulated

    assert not simulated()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Ray's local mode")
@pytest.mark.flower
def test_an_actor_of_ray_is_simulated() -> None:
    import ray

    from client_app.public_errors import simulated

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        answer: Callable[[], bool] = ray.remote(simulated).remote()  # type: ignore[assignment]
        assert ray.get(answer) is True  # type: ignore[call-overload]
    finally:
        ray.shutdown()
    assert not simulated()
    assert TaskConfig().model.trust_remote_code is False
