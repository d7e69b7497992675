"""Memory of a projection: a few groups of elements, however long the vector is."""

import subprocess
import sys
from pathlib import Path

import pytest

from strategies.algebra.layout import GROUP

ROOT = Path(__file__).parents[1]
NUMBERS = 25_000_000  # 100 MB as float32
ALLOWED = 20 * 4 * GROUP  # bytes: twenty groups, less than the vector
PROGRAM = """
import sys, torch
from strategies.algebra.layout import Layout
from strategies.algebra.philox import Seeds
from strategies.algebra.projection import Projection

def peak():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

torch.set_num_threads(1)
basis, numbers, block, total = sys.argv[1], *map(int, sys.argv[2:])
large = {name: torch.ones(numbers // 2) for name in "ab"}
seeds = Seeds(1, 2)

def work(tensors):
    of = Projection(Layout.of(tensors, block), basis, total)
    given = of.project(tensors, {name: tensor[:1].expand(tensor.shape) for name, tensor in tensors.items()}, seeds)
    for blocks in of.layout.groups():
        of.layout.write(tensors, blocks, of.rebuilt([given], [seeds], blocks, torch.device("cpu")))

work({name: torch.ones(5000) for name in "ab"})  # whatever a first call loads
before = peak()
work(large)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not say how much memory was used")
@pytest.mark.parametrize(("basis", "block", "total"), [("hadamard", 65536, 4096), ("truncated-normal", 65536, 400)])
def test_a_long_vector_takes_no_more_than_a_few_groups(basis: str, block: int, total: int) -> None:
    command = [sys.executable, "-c", PROGRAM, basis, str(NUMBERS), str(block), str(total)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < ALLOWED < 4 * NUMBERS
