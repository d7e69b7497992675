"""Weights & Biases: one run of a project, online or on this disk with WANDB_MODE=offline."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server_app.callbacks.tracker import ARTIFACTS, Log, Tracker, artifacts
from task.schema import Flat, option


@dataclass(frozen=True)
class WandB(Tracker):
    """Logs to a project; login and host come from wandb's own configuration."""

    package = "wandb"
    project: str = option("thistledown", doc="project that the run is logged to")
    artifacts: bool = option(False, doc=ARTIFACTS)

    @contextmanager
    def opened(self, folder: Path, settings: Flat) -> Iterator[Log]:
        """Log to a new run, named after the results folder."""
        import wandb

        with wandb.init(project=self.project, name=folder.name, dir=folder, config=dict(settings)) as run:
            yield lambda row: run.log(row, step=int(row["round"]))
            for path in artifacts(folder) if self.artifacts else ():
                kind = "model" if path.is_dir() else "run"
                run.log_artifact(str(path), name=f"{folder.name}-{path.stem}", type=kind)
