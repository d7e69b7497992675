"""TensorBoard: `tensorboard --logdir outputs` shows all runs in a folder of outputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server_app.callbacks.tracker import Log, Tracker
from task.schema import Flat


@dataclass(frozen=True)
class TensorBoard(Tracker):
    """Writes event files to `tensorboard/` in the results folder."""

    package = "tensorboard"

    @contextmanager
    def opened(self, folder: Path, settings: Flat) -> Iterator[Log]:
        """Write to the results folder."""
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(folder / "tensorboard") as writer:
            rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
            writer.add_text("settings", f"| key | value |\n|---|---|\n{rows}")

            def log(row: dict[str, float]) -> None:
                for name, value in row.items():
                    writer.add_scalar(name, value, int(row["round"]))
                writer.flush()

            yield log
