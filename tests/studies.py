"""A small study for the tests of studies, and numbers as if it had been run."""

from collections.abc import Callable
from typing import Any

from benchmarks.study import Measured, Method, Run, Setting, Study

OURS = Method("ours", {"strategy": "fedavg", "tuning": "lora"})
HEAD = Method("head", {"strategy": "fedavg", "tuning": "head"})
TINY = Setting(
    "tiny",
    "Two nodes, one step.",
    {"num-server-rounds": 1, "local-steps": 1, "simulation.num-supernodes": 2},
    (OURS, HEAD),
    {"lora": (0.001, 0.01), "head": (0.01,)},
    target=0.5,
)
HERE = "2 cores of some kind"
STUDY = Study("some", "A study", ("About it.",), ("Somebody said so.",), (TINY,), "ours", extensions=0)


def measured(accuracy: float = 0.5, *, chosen_by: float | None = None, error: str = "", rounds: int = 2) -> Measured:
    """A run of two rounds whose accuracy grows to `accuracy`."""
    by_round = [0.1, *(accuracy * n / rounds for n in range(1, rounds + 1))]
    numbers: dict[str, list[Any]] = {name: [0, *[1000] * rounds] for name in ("bytes_up", "bytes_down")}
    numbers |= {name: [0, *[100] * rounds] for name in ("parameters_up", "parameters_down")}
    chosen = by_round if chosen_by is None else [chosen_by] * len(by_round)
    aggregation_error = [None, *[0.25] * rounds]
    quality = {
        "accuracy": by_round,
        "chosen-by": chosen,
        "loss": [1.0] * len(by_round),
        "aggregation-error": aggregation_error,
    }
    return {"error": error, "seconds": 3.0, "on": HERE, **quality, **numbers}


def completed(study: Study, result: Callable[[Run], Measured]) -> dict[str, Measured]:
    """All runs that a study comes to, with what `result` says of each."""
    done: dict[str, Measured] = {}
    while pending := [run for run in study.runs(done) if run.key not in done]:
        done |= {run.key: result(run) for run in pending}
    return done
