"""Leftovers of killed simulations: their folders, and the processes that work in them.

A running simulation locks its folder, and the system releases the lock when the process dies for any reason. So the
next simulation finds the folders that are no longer in use.
"""

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

import psutil

PREFIX = "ts-"  # of folders; versions without a lock used another prefix, and their folders are not swept
WORK = "work"  # created in a folder once it is locked, so that a folder without it is not swept
ATTEMPTS = 5
GRACE = 3.0  # seconds between asking a process to end and ending it


def lock(folder: Path) -> int:
    """Lock a folder, create `work` in it and return the descriptor. Closing it, or the end of the process, unlocks."""
    handle = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # on a file system without locks no folder counts as a leftover
        fcntl.flock(handle, fcntl.LOCK_EX)
    (folder / WORK).mkdir()
    return handle


def sweep(root: Path) -> list[Path]:
    """End the processes of this user's killed runs below `root`, remove their folders and return them."""
    found = []
    for folder in sorted(root.glob(f"{PREFIX}*")):
        if _is_ours(folder) and (handle := _taken(folder)) is not None:
            end_processes_in(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)
            found.append(folder)
    return found


def _is_ours(folder: Path) -> bool:
    """Return whether a folder belongs to this user, is not a link, and a simulation has worked in it."""
    try:
        return not folder.is_symlink() and folder.lstat().st_uid == os.getuid() and (folder / WORK).is_dir()
    except OSError:
        return False


def _taken(folder: Path) -> int | None:
    """Take the lock of a folder and return its descriptor; None if it is locked, or if that cannot be known."""
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
    for _ in range(ATTEMPTS):  # a process may have started another one just before it ended
        ours = processes_in(folder)
        for process in ours:
            _signal(process, "terminate")
        for process in psutil.wait_procs(ours, timeout=GRACE)[1]:
            _signal(process, "kill")
        if not ours:
            break


def processes_in(folder: Path) -> list[psutil.Process]:
    """Return every process that works in a folder or below it.

    Sessions, parents and environments do not identify them: Flower detaches its processes and Ray renames its own.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if _works_in(process, folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # another user's, or ended
    return found


def _works_in(process: psutil.Process, folder: Path) -> bool:
    """Return whether a process works in a folder or below it. Flower's SuperExec hides its directory from everybody but
    root; it is known by a path in the folder among its arguments. Raises psutil.Error."""
    try:
        return Path(process.cwd()).is_relative_to(folder)
    except psutil.AccessDenied:
        own = process.uids().real == os.getuid()
        return own and any(Path(argument).is_relative_to(folder) for argument in process.cmdline())


def _signal(process: psutil.Process, action: str) -> None:
    try:
        getattr(process, action)()
    except psutil.NoSuchProcess:
        return
