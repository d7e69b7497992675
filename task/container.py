"""What a container leaves of its machine: the memory and processor time of its control groups, of version 1 or 2.

A process belongs to a group and, through it, to all groups above. `/proc/self/cgroup` names the group, and
`/proc/self/mountinfo` the folder where its limits are; each limit above counts too.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

PROC = Path("/proc/self")
# Files of a group in version 2 and 1: its limit, its use, and what stands before names in memory.stat.
MEMORY = (("memory.max", "memory.current", ""), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))
UNLIMITED = 2**60  # bytes; version 1 says a larger number where there is no limit
_limits: tuple[int, int] | None = None  # those of the process on its data, while `bounded` sets others


def memory_left(proc: Path = PROC) -> int | None:
    """Return the bytes that the process may still take before its control groups are full; None without a limit.

    Pages of files count as free, as the system drops them first.
    """
    return min((left for folder in _groups("memory", proc) for left in _left(folder)), default=None)


def cores_allowed(proc: Path = PROC) -> float | None:
    """Return the processor time that the control groups allow, in cores; None without a limit."""
    return min((cores for folder in _groups("cpu", proc) for cores in _quota(folder)), default=None)


@contextmanager
def bounded() -> Iterator[None]:
    """Let allocations in this block fail once the process's control groups are full.

    Without it the system kills a process of the container instead. Another process of the container can take the same
    memory at the same time; that is not seen. Nothing changes without a limit.
    """
    global _limits
    if _limits is not None or memory_left() is None:
        yield
        return
    import resource  # not on Windows, which has no control groups

    _limits = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        _bound(0)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, _limits)
        _limits = None


@contextmanager
def mapping(size: int) -> Iterator[None]:
    """Let files of `size` bytes be mapped within `bounded`. The system can drop their pages, but RLIMIT_DATA counts
    them, as torch maps files so that it could write to the pages."""
    if _limits is None:
        yield
        return
    _bound(size)
    try:
        yield
    finally:
        _bound(0)  # counts what is still mapped


def _bound(files: int) -> None:
    """Set the limit to what the process has now, with what its control groups leave and `files` bytes to be mapped."""
    import resource

    assert _limits is not None
    soft, hard = _limits
    finite = [limit for limit in _limits if limit != resource.RLIM_INFINITY]
    most = [_data() + left + files for left in [memory_left()] if left is not None]
    resource.setrlimit(resource.RLIMIT_DATA, (min([*most, *finite], default=soft), hard))


def _data(proc: Path = PROC) -> int:
    """Return the bytes that RLIMIT_DATA counts of this process: private memory that it may write to."""
    lines = (proc / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))


def _groups(controller: str, proc: Path) -> tuple[Path, ...]:
    """Return the folders of the process's own group and of those above, as far as the container sees them."""
    groups = proc / "cgroup"
    return _folders(controller, proc, groups.read_text()) if groups.exists() else ()  # not Linux


@lru_cache(maxsize=16)  # mounts stay, and every node of a simulation asks
def _folders(controller: str, proc: Path, groups: str) -> tuple[Path, ...]:
    """Return these folders for the content of `/proc/self/cgroup`."""
    own = {name: path for name, path in _memberships(groups) if name in ("", controller)}
    found = []
    for line in (proc / "mountinfo").read_text().splitlines():
        place, kind = (part.split() for part in line.split(" - ", 1))
        root, mount = place[3], Path(place[4])
        version2 = kind[0] == "cgroup2"
        name = "" if version2 else controller
        if name in own and (version2 or (kind[0] == "cgroup" and controller in kind[2].split(","))):
            folder = mount / _inside(own[name], root)
            found += [group for group in (folder, *folder.parents) if group.is_relative_to(mount)]
    return tuple(found)


def _memberships(groups: str) -> Iterator[tuple[str, str]]:
    """Yield controllers with the path of the process's group; version 2 has the controller `''`."""
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        yield from ((controller, path) for controller in controllers.split(","))


def _inside(path: str, root: str) -> str:
    """Return the path of a group below the mounted group `root`. A container may see only its own group, mounted."""
    beyond = os.path.relpath(path, root)
    return "." if beyond.startswith("..") else beyond


def _left(folder: Path) -> Iterator[int]:
    for limit, used, prefix in MEMORY:
        most = _words(folder / limit)
        if most and most[0] != "max" and int(most[0]) < UNLIMITED:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            files = sum(int(stat[f"{prefix}{state}_file"]) for state in ("inactive", "active"))
            yield max(0, int(most[0]) - int(_words(folder / used)[0]) + files)


def _quota(folder: Path) -> Iterator[float]:
    version1 = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
    for quota in (_words(folder / "cpu.max"), version1):
        if quota and quota[0] not in ("max", "-1"):
            yield int(quota[0]) / int(quota[1])


def _words(file: Path) -> list[str]:
    """Return the words of a file; none if the group does not have it."""
    return file.read_text().split() if file.exists() else []
