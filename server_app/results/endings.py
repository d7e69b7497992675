"""Status of a run in its results folder: completed, failed, interrupted, or running while a process locks the folder.

A killed process cannot update the status. The next command that looks at the folder finds it unlocked and marks the
run as interrupted, with a report of its rounds so far.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server_app.results.lines import written_json
from server_app.results.report import RUNNING, write_report
from strategies.protocol import checkpoint
from task.modes import as_the_folder

LOG = logging.getLogger("flwr")
COMPLETED, FAILED, INTERRUPTED = "completed", "failed", "interrupted"  # and RUNNING
METRICS, SUMMARY = "metrics.jsonl", "summary.json"


def summary_of(folder: Path) -> dict[str, Any]:
    """Return the newest summary of a run, empty if there is none. Raises ValueError for an invalid file."""
    path = folder / SUMMARY
    said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not isinstance(said, dict):
        raise ValueError(f"{path} is not a summary")
    return said


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write the summary atomically."""
    draft = folder / f".{SUMMARY}"
    draft.write_text(written_json(summary, indent=2) + "\n", encoding="utf-8")
    as_the_folder(draft)
    draft.replace(folder / SUMMARY)


def interrupt(folder: Path) -> bool:
    """Mark a run as interrupted and write its report, if its status is running but no process locks its folder.

    Returns whether the run was marked.
    """
    if summary_of(folder).get("status") != RUNNING or locked(folder):
        return False
    summary = summary_of(folder) | {"status": INTERRUPTED}
    write_summary(folder, summary)
    write_report(folder, summary, lines_in(folder))
    return True


def interrupted_in(outputs: Path) -> Iterator[Path]:
    """Mark the interrupted runs in `outputs` and return their folders."""
    for path in sorted(outputs.glob(f"*/{SUMMARY}")):
        folder = path.parent
        try:
            if not folder.is_symlink() and interrupt(folder):
                yield folder
        except (OSError, ValueError, KeyError) as error:  # another user's or damaged; it does not affect this run
            LOG.warning("%s cannot be read: %s", folder, error)


def locked(folder: Path) -> bool:
    """Return whether a process locks a results folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks
    finally:
        os.close(handle)
    return False


def at_work(folder: Path) -> str:
    """Return the error message for a results folder that another process locks."""
    return f"another process is at work in {folder}; wait until the run to resume has ended"


def can_resume(folder: Path) -> bool:
    """Return whether there is a checkpoint to resume from."""
    return (folder / "checkpoints" / checkpoint.LAST).exists()


def hint(folder: Path) -> str:
    """Return how to resume a run, or "" if it has no checkpoint."""
    if not can_resume(folder):
        return ""
    latest = folder.parent / "latest"
    which = "latest" if latest.exists() and latest.resolve() == folder.resolve() else str(folder)
    return f"""resume it: thistledown run -c "resume='{which}'\""""


def lines_in(folder: Path) -> list[dict[str, Any]]:
    """Return the complete lines of metrics.jsonl; a killed process may have left half a line."""
    path = folder / METRICS
    texts = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(text) for text in texts if text.endswith("\n")]
