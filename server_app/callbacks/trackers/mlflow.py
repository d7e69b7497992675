"""MLflow: one run of an experiment, on a tracking server or in a local database."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server_app.callbacks.tracker import ARTIFACTS, Log, Tracker, artifacts
from task.schema import Flat, option


@dataclass(frozen=True)
class MLflow(Tracker):
    """Logs to an experiment on the server named by `tracking_uri`, or else by MLFLOW_TRACKING_URI."""

    package = "mlflow"
    experiment: str = option("thistledown", doc="experiment that the run is logged to")
    tracking_uri: str = option("", doc="address of the server, or a database file; empty: MLFLOW_TRACKING_URI")
    artifacts: bool = option(False, doc=ARTIFACTS)

    @contextmanager
    def opened(self, folder: Path, settings: Flat) -> Iterator[Log]:
        """Log to a new run, named after the results folder."""
        import mlflow

        if self.tracking_uri:
            mlflow.set_tracking_uri(self.tracking_uri)
        mlflow.set_experiment(self.experiment)
        with mlflow.start_run(run_name=folder.name):
            mlflow.log_params(settings)
            yield lambda row: mlflow.log_metrics(row, step=int(row["round"]))
            for path in artifacts(folder) if self.artifacts else ():
                if path.is_dir():
                    mlflow.log_artifacts(str(path), path.relative_to(folder).as_posix())
                else:
                    mlflow.log_artifact(str(path))
