"""Parameters that SA-FedLoRA does not send: against full FedAvg, by the runs' own ledgers, counted in three ways.

The hand-over is what nodes download once when adapters take over: the weights that full training has arrived at. It
is in the download of the first annealed round, whose other numbers go both ways and are as many up as down.
"""

from dataclasses import dataclass

from benchmarks.derived import Content
from benchmarks.figures import Outcome

INITIATING = "sa-fedlora.initiating-rounds"


@dataclass(frozen=True)
class Savings:
    """Shares of the reference's parameters, up and down together, that were saved."""

    annealed: float  # rounds after the initiating stage, against the same rounds; without the hand-over
    whole: float  # all rounds, without the hand-over
    counted: float  # all that crossed
    handover: int  # parameters, all nodes together


def savings(outcome: Outcome, reference: Outcome) -> Savings:
    """Of the first seed: sizes do not depend on the seed, except by the rounds that nodes drop out of."""
    run, full = outcome.runs[0], reference.runs[0]
    skipped = int(run["options"][INITIATING])
    moved, whole = parameters(run), parameters(full)
    handover = _handover(run, skipped)
    return Savings(
        annealed=1 - (sum(moved[skipped:]) - handover) / sum(whole[skipped:]),
        whole=1 - (sum(moved) - handover) / sum(whole),
        counted=1 - sum(moved) / sum(whole),
        handover=handover,
    )


def parameters(run: Content) -> list[int]:
    """Up and down together, by round."""
    measured = run["measured"]
    return [up + down for up, down in zip(measured["parameters_up"][1:], measured["parameters_down"][1:], strict=True)]


def _handover(run: Content, skipped: int) -> int:
    measured, first = run["measured"], skipped + 1
    return int(measured["parameters_down"][first] - measured["parameters_up"][first]) if skipped else 0
