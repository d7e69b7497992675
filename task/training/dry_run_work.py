"""An estimate of whether a dry run of a model ends within minutes on its device."""

from task.config import TaskConfig
from task.device import kind
from task.kinds import registry as kinds
from task.models.model import TunedModel

MOST = 10**13  # the most operations on a CPU: about a minute on eight cores
WORK = 14  # operations of a dry run per parameter and token


def too_large(model: TunedModel, config: TaskConfig) -> str:
    """Return why a dry run is skipped on this device, if it would take minutes; else an empty text."""
    numbers = sum(parameter.numel() for parameter in model.module.parameters())
    length = 1 if kinds.of(config).images else config.data.max_length
    if kind(model.device) != "cpu" or WORK * numbers * length <= MOST:
        return ""
    return (
        f"the model was not run once before the run: its {numbers:,} parameters and rows of up to {length:,} tokens "
        "take minutes without an accelerator; whether they fit the settings shows in the first round"
    )
