"""Bases: the embedded one, the fingerprint of a folder, what a store takes and what is refused."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.embedded_base import module_text, trained_weights
from task.config import Model
from task.data.sources.digits import digits_part
from task.models.base import Base, BaseError, files, fingerprint
from task.models.embedded import embedded_base
from task.models.embedded import weights as embedded_weights
from task.models.embedded.weights import DIGEST, WEIGHTS
from task.models.finding import accept_offer, node_base, server_base
from task.storage.store import Store, server_store


@pytest.fixture(scope="module")
def base() -> Base:
    return server_base(Model(), server_store())


def plain(base: Base) -> Any:
    from transformers import AutoModelForImageClassification

    return AutoModelForImageClassification.from_pretrained(base.folder)


# ------------------------------------------------------------------------------- the embedded base
def test_the_embedded_base_has_136_138_parameters(base: Base) -> None:
    assert sum(parameter.numel() for parameter in plain(base).parameters()) == 136_138


def test_it_is_written_once(base: Base) -> None:
    path = base.folder / "model.safetensors"
    before = path.stat().st_mtime_ns
    assert embedded_base(server_store()) == base.folder
    assert path.stat().st_mtime_ns == before


def test_its_bytes_are_the_same_in_every_store(base: Base, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert fingerprint(embedded_base(store), store) == base.fingerprint


def test_its_weights_are_those_that_the_digest_is_of() -> None:
    weights = base64.b85decode("".join(WEIGHTS))
    assert hashlib.blake2b(weights, digest_size=16).hexdigest() == DIGEST
    assert module_text(weights) == Path(embedded_weights.__file__).read_text()


@pytest.mark.slow
def test_its_recipe_gives_a_base_as_good(base: Base) -> None:
    """Other processors may round otherwise, so the bits may differ; what the base knows may not."""
    from safetensors.torch import load

    images, labels = digits_part("public")
    pixels = torch.from_numpy(images).float().div_(16.0).sub_(0.5).div_(0.5)
    shipped = plain(base)
    again = plain(base)
    again.load_state_dict({name: tensor.float() for name, tensor in load(trained_weights()).items()})
    with torch.no_grad():
        right = [
            (model(pixels).logits.argmax(1) == torch.from_numpy(labels)).float().mean() for model in (shipped, again)
        ]
    assert min(right) > 0.995


def test_its_fingerprint_is_that_of_its_bytes(base: Base, tmp_path: Path) -> None:
    assert server_base(Model(), server_store()).fingerprint == base.fingerprint
    for path in files(base.folder).values():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    store = Store(tmp_path / "store")
    assert fingerprint(tmp_path, store) == base.fingerprint
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + "\n")
    assert fingerprint(tmp_path, store) != base.fingerprint


# ------------------------------------------------------------------------------- what is refused
def test_weights_that_could_run_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BaseError, match="no safetensors; other weight formats can run code"):
        server_base(Model(name=str(tmp_path)), server_store())


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match=r"is not a model: it has no config\.json"):
        server_base(Model(name=str(tmp_path)), server_store())


def test_quantised_weights_are_refused(base: Base, tmp_path: Path) -> None:
    for path in files(base.folder).values():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(BaseError, match="its weights are quantised, and cannot be trained"):
        server_base(Model(name=str(tmp_path)), server_store())


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (["config.json", "tuning.json", "tuning.safetensors"], "name the base that its tuning.json names"),
        (["0_Transformer/config.json", "modules.json"], "There is one in 0_Transformer: name that folder"),
        (["best/config.json", "last/config.json"], "There is one in best, last: name that folder"),
        (["config.json", "pytorch_model.bin"], r"save it again with save_pretrained\(\)"),
    ],
)
def test_what_to_name_instead_is_said(there: list[str], said: str, tmp_path: Path) -> None:
    for name in there:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(BaseError, match=said):
        server_base(Model(name=str(tmp_path)), server_store())


@pytest.mark.parametrize("name", ["/no/such/folder", "../elsewhere", "a/b/c", "has space"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(BaseError, match="there is no such folder, and it is not a hub id"):
        server_base(Model(name=name), server_store())


def contents(base: Base) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files(base.folder).items()}


def test_an_offer_is_kept_as_it_was(base: Base, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(BaseError, match=f"has the base {base.fingerprint}"):
        node_base(Model(), base.fingerprint, store)
    accept_offer(contents(base), base.fingerprint, store)
    kept = node_base(Model(), base.fingerprint, store)
    assert contents(kept) == contents(base)
    assert fingerprint(kept.folder, store) == base.fingerprint


@pytest.mark.parametrize("name", ["../config.json", "a/b.json", "model.bin", "x.py", "config.json\n", ".json", ""])
def test_an_offered_file_of_a_bad_name_is_refused(base: Base, tmp_path: Path, name: str) -> None:
    from task.models.base import content_hash

    offered = contents(base) | {name: b"{}"}
    announced = content_hash({file: (len(data), [data]) for file, data in offered.items()})
    with pytest.raises(BaseError, match="bad file names"):
        accept_offer(offered, announced, Store(tmp_path / "store"))
    assert not list(tmp_path.rglob("*.json"))


def test_an_offer_that_is_not_what_was_announced_is_refused(base: Base, tmp_path: Path) -> None:
    offered = contents(base)
    offered["model.safetensors"] = offered["model.safetensors"][:-1] + b"\x01"
    with pytest.raises(BaseError, match=f"the offered base is not {base.fingerprint}"):
        accept_offer(offered, base.fingerprint, Store(tmp_path))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_fingerprint_cannot_name_a_path(base: Base, tmp_path: Path) -> None:
    """It comes in a message, and nothing in a message can name a path."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for name, data in contents(base).items():
        (outside / name).write_bytes(data)
    store = Store(tmp_path / "store")
    (store.root / "bases").mkdir(parents=True)
    with pytest.raises(BaseError):
        node_base(Model(), "../../outside", store)
