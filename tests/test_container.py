"""Limits of containers: read from control groups of both versions, and kept within by a node in a real group."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from task.container import UNLIMITED, bounded, cores_allowed, mapping, memory_left
from task.device import cores, ran_out

APP = Path(__file__).parent.parent
LIMIT = 900 * 10**6  # bytes: the libraries, and a fraction of what the node is asked for


def proc(folder: Path, group: str, *mounts: str) -> Path:
    """Return a made-up /proc/self: lines of `cgroup`, and mounts as `root mount-point type options`."""
    folder.mkdir()
    (folder / "cgroup").write_text(group)
    lines = (
        f"{n} 1 0:{n} {' '.join(m.split()[:2])} rw - {m.split()[2]} none rw,{m.split()[3]}"
        for n, m in enumerate(mounts)
    )
    (folder / "mountinfo").write_text("\n".join(lines) + "\n")
    return folder


def group(folder: Path, **files: object) -> None:
    """Write a group's files; `__` in a name is a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_version_2_counts_every_group_above(tmp_path: Path) -> None:
    mount = tmp_path / "fs"
    stat = "anon 50\ninactive_file 20\nactive_file 10"
    group(mount / "pod", memory__max=900, memory__current=500, memory__stat=stat, cpu__max="150000 100000")
    group(mount / "pod/node", memory__max="max", memory__current=100, memory__stat=stat, cpu__max="max 100000")
    made = proc(tmp_path / "proc", "0::/pod/node\n", f"/ {mount} cgroup2 nsdelegate")
    assert memory_left(made) == 900 - 500 + 30
    assert cores_allowed(made) == 1.5


def test_version_1_has_a_folder_for_each_controller(tmp_path: Path) -> None:
    memory, cpu = tmp_path / "memory", tmp_path / "cpu,cpuacct"
    stat = "inactive_file 1\ntotal_inactive_file 30\ntotal_active_file 5"
    group(memory, memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=10**9, memory__stat=stat)
    group(memory / "a", memory__limit_in_bytes=700, memory__usage_in_bytes=600, memory__stat=stat)
    group(cpu / "b", cpu__cfs_quota_us=50000, cpu__cfs_period_us=100000)
    group(cpu, cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    mounts = (f"/ {memory} cgroup memory", f"/ {cpu} cgroup cpu,cpuacct")
    made = proc(tmp_path / "proc", "4:memory:/a\n3:cpu,cpuacct:/b\n0::/\n", *mounts)
    assert memory_left(made) == 700 - 600 + 35
    assert cores_allowed(made) == 0.5


def test_a_container_may_see_its_own_group_as_the_root(tmp_path: Path) -> None:
    mount = tmp_path / "memory"
    group(
        mount,
        memory__limit_in_bytes=700,
        memory__usage_in_bytes=600,
        memory__stat="total_inactive_file 0\ntotal_active_file 0",
    )
    for number, root in enumerate(("/docker/1a", "/elsewhere")):
        made = proc(tmp_path / f"proc{number}", "4:memory:/docker/1a\n", f"{root} {mount} cgroup memory")
        assert memory_left(made) == 100


def test_a_full_group_has_nothing_left(tmp_path: Path) -> None:
    mount = tmp_path / "fs"
    group(mount, memory__max=500, memory__current=540, memory__stat="inactive_file 5\nactive_file 5")
    assert memory_left(proc(tmp_path / "proc", "0::/\n", f"/ {mount} cgroup2 rw")) == 0


def test_without_limits_there_is_nothing_to_say(tmp_path: Path) -> None:
    mount = tmp_path / "fs"
    group(mount / "a")
    made = proc(tmp_path / "proc", "0::/a\n", f"/ {mount} cgroup2 rw", f"/ {tmp_path} tmpfs rw")
    assert memory_left(made) is None
    assert cores_allowed(made) is None
    assert memory_left(tmp_path / "not Linux") is None


def test_a_quota_bounds_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for quota, expected in ((0.2, 1), (1.0, 1), (UNLIMITED, cores())):
        monkeypatch.setattr("task.device.cores_allowed", lambda quota=quota: quota)
        assert cores() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="this system has no control groups")
def test_the_bound_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr("task.container.memory_left", lambda: 2**26)
    with pytest.raises(MemoryError), bounded():
        bytearray(2**28)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert len(bytearray(2**28)) == 2**28


@pytest.mark.skipif(sys.platform != "linux", reason="this system has no control groups")
def test_mapped_files_take_no_memory_and_other_things_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base is mapped, and may be larger than what is left."""
    file, size = str(tmp_path / "base"), 2**28
    with open(file, "wb") as made:
        made.truncate(size)
    monkeypatch.setattr("task.container.memory_left", lambda: 2**26)
    with bounded():
        with pytest.raises(RuntimeError) as refused:
            torch.UntypedStorage.from_file(file, False, size)
        assert ran_out(refused.value)
        with mapping(size):
            base = torch.UntypedStorage.from_file(file, False, size)
        assert len(bytearray(2**25)) == 2**25
        with pytest.raises(MemoryError):
            bytearray(2**27)
        del base
    with mapping(size):
        assert len(bytearray(size)) == size


# ---------------------------------------------------------------------- in a real group

NODE = """
import torch
from client_app.device import free_memory, with_fewer_rows

layer, tried, free = torch.nn.Linear(1024, 1024), [], free_memory("cpu")

def step(rows):
    tried.append(rows)
    hidden = torch.randn(1024 * rows, 1024)
    for _ in range(4):
        hidden = torch.relu(layer(hidden))
    hidden.sum().backward()

with_fewer_rows("cpu", "node", 256, step)
print(free, *tried)
"""


@pytest.fixture
def limited() -> Iterator[Path]:
    """A group of this test's own with LIMIT, as root of the machine may make one."""
    version1, version2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    mount, limit = (version1, "memory.limit_in_bytes") if version1.exists() else (version2, "memory.max")
    folder = mount / f"thistledown-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error.strerror}): run as root, outside of a container")
    try:
        if not (folder / limit).exists():
            pytest.skip(f"{mount} has no memory controller for groups below it")
        (folder / limit).write_text(str(LIMIT))
        yield folder
    finally:
        folder.rmdir()


@pytest.mark.slow
def test_a_node_in_a_full_container_takes_fewer_rows_instead_of_being_killed(limited: Path) -> None:
    enter = f'echo $$ > {limited}/cgroup.procs && exec "$0" -c "$1"'
    node = subprocess.run(
        ["sh", "-c", enter, sys.executable, NODE], cwd=APP, capture_output=True, text=True, timeout=540, check=False
    )
    assert node.returncode == 0, node.stderr
    free, *tried = map(int, node.stdout.split())
    assert 0 < free < LIMIT
    assert tried[0] == 256
    assert 1 <= tried[-1] <= 32
    assert "memory ran out" in node.stderr
