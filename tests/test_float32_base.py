"""A base of 16 bits in float32, once in the store of a node: the same bits, mapped by every process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import equal
from safetensors.torch import load_file, save_file
from samples import language_base
from test_causal import based, flat

from client_app.float32_base import KIND, widened
from task.config import TaskConfig
from task.models.base import Base
from task.models.model import build
from task.storage.store import Store


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = language_base(tmp_path_factory.mktemp("narrow"))
    path = folder / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    return based(folder)


def config(**options: object) -> TaskConfig:
    return TaskConfig.read(flat(Path("given")) | {"tuning": "lora", **options})


def mapped(tensor: torch.Tensor, file: Path) -> bool:
    """Whether a tensor's bytes are those of a mapped file."""
    places = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    bounds = [[int(end, 16) for end in place[0].split("-")] for place in places]
    return any(low <= tensor.data_ptr() < high for low, high in bounds)


def test_it_has_the_same_bits_and_is_mapped(base: Base, tmp_path: Path) -> None:
    store = Store(tmp_path)
    wide = widened(base, config(), store)
    assert wide == widened(base, config(), store)
    assert (wide.folder, wide.fingerprint) == (store.path(KIND, base.fingerprint), base.fingerprint)
    before, after = build(base, config(), 2, "cpu"), build(wide, config(), 2, "cpu")
    assert equal(before.frozen | before.trained, after.frozen | after.trained)
    file = wide.folder / "model.safetensors"
    assert all(mapped(tensor, file) for tensor in after.frozen.values())
    assert not any(mapped(tensor, base.folder / file.name) for tensor in before.frozen.values())


@pytest.mark.parametrize(("options", "limit"), [({"tuning": "full"}, 0), ({"model.dtype": "bfloat16"}, 0), ({}, 1000)])
def test_nothing_is_written_that_processes_would_not_share_or_that_has_no_room(
    base: Base, options: dict[str, Any], limit: int, tmp_path: Path
) -> None:
    store = Store(tmp_path, limit)
    assert widened(base, config(**options), store) == base
    assert not store.path(KIND, base.fingerprint).exists()


def test_a_base_in_float32_is_mapped_as_it_is(tmp_path: Path) -> None:
    wide = based(language_base(tmp_path))
    store = Store(tmp_path / "node")
    assert widened(wide, config(), store) == wide
    model = build(replace(wide), config(), 2, "cpu")
    assert all(mapped(tensor, wide.folder / "model.safetensors") for tensor in model.frozen.values())
