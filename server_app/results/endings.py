"""How a run ended, as its folder tells: completed, failed, interrupted; or running, while a process holds the folder.

Who is killed writes nothing more. So whoever looks next, the command that started the run or a later one, sees that
nobody holds the folder, and writes what is true: that it was interrupted, and a report of what there is.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server_app.results.lines import written_json
from server_app.results.measure import measure_named
from server_app.results.report import write_report
from strategies.protocol import checkpoint
from task.modes import as_the_folder

LOG = logging.getLogger("flwr")
RUNNING, COMPLETED, FAILED, INTERRUPTED = "running", "completed", "failed", "interrupted"
METRICS, SUMMARY, REPORT = "metrics.jsonl", "summary.json", "report.html"


def summary_of(folder: Path) -> dict[str, Any]:
    """Return the newest summary of a run; empty where there is none. Raises ValueError for something else."""
    path = folder / SUMMARY
    said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds no summary")
    return said


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write the summary, whole or not at all."""
    draft = folder / f".{SUMMARY}"
    draft.write_text(written_json(summary, indent=2) + "\n", encoding="utf-8")
    as_the_folder(draft)
    draft.replace(folder / SUMMARY)


def interrupt(folder: Path) -> bool:
    """Write that a run was interrupted, with a report, where it says that it goes on and nobody is at work in its
    folder; return whether that is so."""
    if summary_of(folder).get("status") != RUNNING or held(folder):
        return False
    summary = summary_of(folder) | {"status": INTERRUPTED}
    write_summary(folder, summary)
    write_report(folder / REPORT, summary, _lines(folder), measure_named(summary["metric"]).titles)
    return True


def interrupted_in(outputs: Path) -> Iterator[Path]:
    """Return the runs among these results that were interrupted and did not say so yet, now that they do."""
    for path in sorted(outputs.glob(f"*/{SUMMARY}")):
        folder = path.parent
        try:
            if not folder.is_symlink() and interrupt(folder):
                yield folder
        except (OSError, ValueError, KeyError) as error:  # another user's, or damaged: no matter of the run that looks
            LOG.warning("%s cannot be looked at: %s", folder, error)


def held(folder: Path) -> bool:
    """Return whether a process is at work in a results folder: it holds a lock."""
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
    """Return what to say where somebody else holds a results folder."""
    return f"another process is at work in {folder}: is the run to resume still going?"


def can_resume(folder: Path) -> bool:
    """Return whether there is a state to go on from."""
    return (folder / "checkpoints" / checkpoint.LAST).exists()


def hint(folder: Path) -> str:
    """Return how to go on with a run, empty where nothing was kept of it."""
    if not can_resume(folder):
        return ""
    latest = folder.parent / "latest"
    which = "latest" if latest.exists() and latest.resolve() == folder.resolve() else str(folder)
    return f"""go on with it: thistledown run -c "resume='{which}'\""""


def _lines(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; a kill may have left half of one."""
    path = folder / METRICS
    texts = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(text) for text in texts if text.endswith("\n")]
