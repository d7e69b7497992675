"""What a simulation leaves behind when it is killed: processes that work in its folder, and the folder.

A live one holds a lock on its folder, which the system gives back when it dies, however that comes about. So whoever
starts the next one can tell which folders nobody needs.
"""

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

import psutil

PREFIX = "ts-"  # of folders; those of versions that held no lock were called otherwise, and are nobody's leftovers
WORK = "work"  # in a folder that is held: made once the lock is taken, so that nobody sweeps what has just begun
ATTEMPTS = 5
GRACE = 3.0  # seconds between asking a process to end and ending it


def hold(folder: Path) -> int:
    """Lock a folder and make its `work`; the lock lasts as long as this process, or until the descriptor is closed."""
    handle = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a file system without locks: then nobody else can take this for a leftover
        fcntl.flock(handle, fcntl.LOCK_EX)
    (folder / WORK).mkdir()
    return handle


def sweep(root: Path) -> list[Path]:
    """End what killed runs of this user have left below `root`, remove their folders, and return these."""
    found = []
    for folder in sorted(root.glob(f"{PREFIX}*")):
        if _is_ours(folder) and (handle := _taken(folder)) is not None:
            end_processes_in(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)
            found.append(folder)
    return found


def _is_ours(folder: Path) -> bool:
    """Is it a folder of this user's, and no link to one, in which a simulation has worked?"""
    try:
        return not folder.is_symlink() and folder.lstat().st_uid == os.getuid() and (folder / WORK).is_dir()
    except OSError:
        return False


def _taken(folder: Path) -> int | None:
    """The lock, where nobody holds it; None where somebody does, or where that cannot be known."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def end_processes_in(folder: Path) -> None:
    """End every process that works in a folder or below it."""
    for _ in range(ATTEMPTS):  # what ends may have started something just before
        ours = processes_in(folder)
        for process in ours:
            _signal(process, "terminate")
        for process in psutil.wait_procs(ours, timeout=GRACE)[1]:
            _signal(process, "kill")
        if not ours:
            break


def processes_in(folder: Path) -> list[psutil.Process]:
    """Every process that works in a folder or below it; sessions, parents and environments do not tell, as Flower
    detaches its processes and Ray renames its own."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # somebody else's, or gone
    return found


def _signal(process: psutil.Process, action: str) -> None:
    try:
        getattr(process, action)()
    except psutil.NoSuchProcess:
        return
