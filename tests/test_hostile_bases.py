"""Bases that somebody made to do harm: they are read inside their folder and nowhere else, or refused in a sentence."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deployed_node import asked, context, refusal, settings
from safetensors.torch import load_file, save_file
from samples import language_base, vision_base

from strategies.exchange.types import State
from strategies.protocol import wire
from task.config import Model, TaskConfig
from task.data.encoding.images import ImageEncoder
from task.data.encoding.texts import tokenizer_in
from task.data.raw import DataError
from task.models.base import Base, BaseError, files, fingerprint
from task.models.finding import accept_offer, node_base, server_base
from task.models.loading import loaded
from task.storage.store import Store, server_store

INDEX = "model.safetensors.index.json"
CAUSAL = TaskConfig.read({"task.kind": "causal-lm", "model.name": "given", "data.name": "given"})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return language_base(tmp_path / "base")


def sharded(base: Path) -> Path:
    """The same base in two files and an index."""
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-0000{1 + (name > names[3])}-of-00002.safetensors" for name in names}
    for place in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == place}, base / place, {"format": "pt"})
    (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return base


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def offer(base: Path, store: Store) -> str:
    """Offer a folder as a server does that announces what it sends, whatever that is."""
    from task.models.base import content_hash

    contents = {path.name: path.read_bytes() for path in base.iterdir()}
    wanted = content_hash({name: (len(data), [data]) for name, data in contents.items()})
    accept_offer(contents, wanted, store)
    return wanted


def load(folder: Path, config: TaskConfig = CAUSAL) -> Any:
    return loaded(Base("given", folder, ""), config)[0]


def kept(store: Store) -> list[str]:
    return [str(path) for path in store.root.rglob("*") if path.is_file()]


# ---------------------------------------------------------------------- the index


def test_shards_of_the_base_itself_are_read(base: Path, store: Store) -> None:
    before = load(base).state_dict()
    wanted = offer(sharded(base), store)
    after = load(node_base(Model(), wanted, store).folder).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("place", ["../../../private/model.safetensors", "{private}", "../base/../../private.bin"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_an_index_leads_to_no_file_of_the_node(
    base: Path, tmp_path: Path, store: Store, place: str, suffix: str
) -> None:
    """Else `tuning = "full"` would send somebody else's weights back as an update."""
    private = tmp_path / "private" / f"model{suffix}"
    private.parent.mkdir()
    secret = {name: torch.full_like(tensor, 7.0) for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(secret, private, {"format": "pt"}) if suffix == ".safetensors" else torch.save(secret, private)
    place = place.format(private=private).replace(".safetensors", suffix)
    edit(sharded(base) / INDEX, lambda index: index["weight_map"].update(dict.fromkeys(index["weight_map"], place)))
    with pytest.raises(BaseError, match="none of the base's own safetensors") as refused:
        offer(base, store)
    assert str(tmp_path) not in refused.value.public
    assert not kept(store)
    with pytest.raises(BaseError, match="none of the base's own safetensors"):  # nor where it lies there already
        load(base)


def test_the_same_is_said_whether_a_file_exists_or_not(base: Path, tmp_path: Path, store: Store) -> None:
    (tmp_path / "there.safetensors").write_bytes(b"")
    said = []
    for name in ("there", "not-there"):
        other = sharded(language_base(tmp_path / name))
        place = str(tmp_path / f"{name}.safetensors")
        edit(other / INDEX, lambda index, p=place: index["weight_map"].update(dict.fromkeys(index["weight_map"], p)))
        with pytest.raises(BaseError) as refused:
            offer(other, store)
        said.append(refused.value.public)
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.pop("weight_map"),
        lambda index: index.update(weight_map={}),
        lambda index: index.update(weight_map=["a"]),
        lambda index: index["weight_map"].update({"lm_head.weight": 3}),
        lambda index: index["weight_map"].update({"nowhere": "model-00001-of-00002.safetensors"}),
        lambda index: index["weight_map"].update({"lm_head.weight": "model-00003-of-00003.safetensors"}),
    ],
)
def test_an_index_that_is_none_is_refused(base: Path, store: Store, change: Callable[[Any], object]) -> None:
    edit(sharded(base) / INDEX, change)
    with pytest.raises(BaseError, match=INDEX):
        offer(base, store)
    assert not kept(store)


# ---------------------------------------------------------------------- links and odd files


def test_a_snapshot_of_the_hub_links_to_its_own_blobs(base: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(base.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert server_base(Model(name=str(snapshot)), server_store()).folder == snapshot
    assert load(snapshot)


def test_a_link_out_of_the_folder_is_refused(base: Path, tmp_path: Path) -> None:
    (base / "model.safetensors").rename(tmp_path / "elsewhere")
    (base / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BaseError, match=r"model\.safetensors: it links to a place outside the base") as refused:
        load(base)
    assert str(tmp_path) not in refused.value.public


def test_a_pipe_a_socket_and_a_device_are_refused_and_not_waited_for(base: Path) -> None:
    path = base / "generation_config.json"
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(BaseError, match=r"generation_config\.json: it is not a regular file"):
        load(base)
    with pytest.raises(BaseError, match="not a regular file"):
        tokenizer_in(base)
    with pytest.raises(BaseError, match="not a regular file"):
        fingerprint(base, server_store())


def test_what_is_no_part_of_a_base_is_not_seen(base: Path, tmp_path: Path) -> None:
    """An adapter in the folder would lead to another model."""
    before = set(files(base))
    (base / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "private")}))
    (base / "modeling_evil.py").write_text("raise SystemExit('ran')")
    os.mkfifo(base / "README.txt")
    assert set(files(base)) == before
    assert load(base)
    assert tokenizer_in(base)


# ---------------------------------------------------------------------- sizes


def test_a_model_far_larger_than_its_weights_is_refused_before_it_has_memory(base: Path) -> None:
    for key, value in {"hidden_size": 10**9, "intermediate_size": 10**8, "vocab_size": 10**9}.items():
        path = base / "config.json"
        whole = path.read_text()
        edit(path, lambda config, key=key, value=value: config.update({key: value}))
        with pytest.raises(BaseError, match="far larger than its weights"):
            load(base)
        path.write_text(whole)


@pytest.mark.parametrize(
    ("key", "value"), [("num_hidden_layers", 10**9), ("num_labels", 10**9), ("num_hidden_layers", 60_000)]
)
def test_layers_without_end_are_refused(base: Path, key: str, value: int) -> None:
    edit(base / "config.json", lambda config: config.update({key: value}))
    with pytest.raises(BaseError, match=r"nothing is built|far larger than its weights|modules"):
        load(base)


def test_tables_in_each_other_are_refused(base: Path) -> None:
    for depth in (100, 100_000):
        (base / "generation_config.json").write_text('{"a":' * depth + "1" + "}" * depth)
        with pytest.raises(BaseError, match=r"generation_config\.json: tables nested deeper than 64"):
            load(base)


def test_a_file_has_a_size_limit_by_its_name(base: Path, store: Store) -> None:
    (base / "generation_config.json").write_bytes(b" " * 2**20 + b"{}")
    with pytest.raises(BaseError, match=r"generation_config\.json: it may have 1048576 bytes, and has 1048578"):
        load(base)
    with pytest.raises(BaseError, match="it may have 1048576"):
        offer(base, store)
    assert not kept(store)


def test_an_offer_without_room_is_refused_before_it_is_written(base: Path, store: Store) -> None:
    with pytest.raises(BaseError, match="too little room"):
        offer(base, Store(store.root, limit=2000))
    assert not kept(store)
    offer(base, Store(store.root, limit=10**6))


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"policy.offers": False}, "refused by the node's policy: offers"),
        ({"policy.max-base-bytes": 1000}, "refused by the node's policy: size"),
        ({"policy.max-store-bytes": 1000}, "this node's store has no room for the offered base"),
    ],
)
def test_a_nodes_policy_decides_over_offers(base: Path, store: Store, policy: dict[str, Any], said: str) -> None:
    contents = {path.name: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in base.iterdir()}
    order = settings(base_fingerprint=fingerprint(base, server_store()))
    node = context(store_path=str(store.root), **policy)
    assert refusal("query.base", {**wire.pack(State(contents)), "instructions": order}, node) == said
    assert not kept(store)
    assert asked(
        "query.base", {**wire.pack(State(contents)), "instructions": order}, context(store_path=str(store.root))
    )
    assert kept(store)


@pytest.mark.parametrize(
    ("key", "value"),
    [("image_size", 10**6), ("image_size", -1), ("image_size", [8, "8"]), ("num_channels", [1]), ("num_channels", 4)],
)
def test_images_of_no_sensible_size_are_refused(tmp_path: Path, key: str, value: object) -> None:
    folder = vision_base(tmp_path / "vision")
    edit(folder / "config.json", lambda config: config.update({key: value}))
    with pytest.raises(DataError):
        ImageEncoder.of(folder, "image")


@pytest.mark.parametrize(
    "processor",
    [{"image_std": [0.0]}, {"image_mean": ["a"]}, {"resample": 99}, {"rescale_factor": None}, {"image_mean": [1, 2]}],
)
def test_pixels_that_become_no_numbers_are_refused(tmp_path: Path, processor: dict[str, Any]) -> None:
    folder = vision_base(tmp_path / "vision")
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(DataError, match=r"preprocessor_config\.json"):
        ImageEncoder.of(folder, "image")


def test_rules_that_double_a_text_forty_times_are_refused(base: Path, store: Store) -> None:
    doubling = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    edit(
        base / "tokenizer.json",
        lambda found: found.update(normalizer={"type": "Sequence", "normalizers": [doubling] * 40}),
    )
    with pytest.raises(BaseError, match=r"tokenizer\.json: its rules may lengthen a text more than 1024 times"):
        offer(base, store)
    assert not kept(store)
