"""Memory given back: the pages of a mapped file go and its numbers stay; memory of one's own is left alone."""

import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from task.process_memory import drop_file_pages, give_back_large_blocks, trim_heaps

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems are not asked to give memory back")
MILLION = 1_000_000


def resident(tensor: torch.Tensor) -> int:
    """Return the resident bytes of the mapping that a tensor lies in."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            low, high = (int(address, 16) for address in first.split("-"))
            found = low <= tensor.data_ptr() < high
        elif found and first == "Rss:":
            return 1024 * int(line.split()[1])
    raise AssertionError("no mapping has the tensor")


def test_pages_of_a_mapped_weight_go_and_its_numbers_stay(tmp_path: Path) -> None:
    written = torch.arange(4 * MILLION, dtype=torch.float32)
    save_file({"weight": written, "other": torch.ones(3)}, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:  # as transformers reads it
        weight, other = file.get_tensor("weight"), file.get_tensor("other")
    total = weight.sum().item()  # reads every page
    before = resident(weight)
    drop_file_pages(weight)
    assert resident(weight) < before - 15 * MILLION
    assert weight.sum().item() == total
    assert other.sum().item() == 3


def test_memory_of_its_own_is_left_alone() -> None:
    own = torch.arange(4 * MILLION, dtype=torch.float32)
    drop_file_pages(own)
    assert torch.equal(own, torch.arange(4 * MILLION, dtype=torch.float32))
    drop_file_pages(torch.empty(0))


def test_the_heap_of_a_thread_gives_back_what_is_free() -> None:
    give_back_large_blocks()  # the limit above which a block is not on the heap, whatever was freed before
    kept: list[torch.Tensor] = []

    def fragment() -> None:
        for _ in range(60):
            large = torch.ones(250_000)  # 1 MB, on the heap
            kept.append(torch.ones(10))
            kept.append(large)

    thread = threading.Thread(target=fragment)
    thread.start()
    thread.join()
    del kept[1::2]
    before = private()
    trim_heaps()
    assert all(part.sum().item() == 10 for part in kept)
    assert private() < before - 40 * MILLION


def private() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private"))
