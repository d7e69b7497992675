"""Trackio: a dashboard on this machine (`trackio show`), or on a Space of the Hugging Face Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server_app.callbacks.tracker import ARTIFACTS, Log, Tracker, artifacts
from task.schema import Flat, option


@dataclass(frozen=True)
class Trackio(Tracker):
    """Logs to a project."""

    package = "trackio"
    project: str = option("thistledown", doc="project that the run is logged to")
    space_id: str = option("", doc="Space of the Hub that shows the dashboard, as owner/name; empty: this machine")
    artifacts: bool = option(False, doc=ARTIFACTS)

    @contextmanager
    def opened(self, folder: Path, settings: Flat) -> Iterator[Log]:
        """Log to a new run, named after the results folder."""
        import trackio

        run = trackio.init(self.project, name=folder.name, space_id=self.space_id or None, config=dict(settings))
        try:
            yield lambda row: run.log(row, step=int(row["round"]))
            for path in artifacts(folder) if self.artifacts else ():
                run.log_artifact(path, name=f"{folder.name}-{path.stem}", type="model" if path.is_dir() else "run")
        finally:
            run.finish()
