"""Federated fine-tuning of pretrained models where almost nothing crosses the wire.

    import thistledown
    outcome = thistledown.simulate("rbla", num_server_rounds=5)

`simulate` and `Outcome` are imported on first use: the import takes seconds, and `--help` does not need them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thistledown.outcome import Outcome
    from thistledown.simulation.simulate import simulate

PLACES = {"Outcome": "thistledown.outcome", "simulate": "thistledown.simulation.simulate"}
__all__ = ["Outcome", "simulate"]


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'thistledown' has no attribute '{name}'")
    value = getattr(import_module(PLACES[name]), name)
    globals()[name] = value
    return value
