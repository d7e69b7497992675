"""Memory given back: the pages of a mapped file go and its numbers stay; memory of one's own is left alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from task.process_memory import drop_file_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems are not asked to give memory back")
MILLION = 1_000_000
ROOT = Path(__file__).parents[1]


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


HEAP = """
import ctypes, threading
from pathlib import Path
from task.process_memory import trim_heaps

def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private"))

def fragment(blocks):
    for _ in range(900):
        large, small = ctypes.create_string_buffer(10**5), ctypes.create_string_buffer(1000)
        blocks.append((large, small))

kept = []
thread = threading.Thread(target=fragment, args=(kept,))
thread.start()
thread.join()
kept = [small for _, small in kept]
before = private()
trim_heaps()
print(before - private())
"""


def test_the_heap_of_a_thread_gives_back_what_is_free() -> None:
    """In a process of its own, where nothing else has been on the heap."""
    found = subprocess.run([sys.executable, "-c", HEAP], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(found.stdout) > 60 * MILLION
