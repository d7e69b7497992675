"""Whether features of rows are computed once, where a classifier's head alone trains, and how large they are."""

from collections.abc import Iterator

from server_app.results.amounts import human
from task.config import TaskConfig
from task.features.cut import cut_of
from task.features.once import head_alone, why_not
from task.models.model import TunedModel

NUMBER = 4  # bytes


def features(model: TunedModel, config: TaskConfig, rows: int) -> Iterator[str]:
    """Yield a line on the features of the largest node, which has so many `rows` (0: unknown), if there are rounds in
    which the head alone trains."""
    if model.base.bare or not (head_alone(model) or config.rounds_of_head):
        return
    cut = cut_of(model, config)
    if reason := why_not(cut, config, rows, training=True):
        yield f"features  computed in every step: {reason}"
        return
    assert not isinstance(cut, str)
    size = NUMBER * cut.numbers
    whole = f", {human(rows * size)} for the {rows} rows of the largest node" if rows else ""
    yield f"features  computed once a run and kept in the node's store: {human(size)} a row{whole}"
