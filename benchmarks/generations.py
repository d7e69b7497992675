"""What models wrote before and after: a table of loss and ratings by state, mean and spread over seeds."""

from benchmarks.cells import spread, table
from benchmarks.figures import Outcome
from task.prediction.ratings import RATINGS

STATES = {"before": "before", "last": "after the last round", "best": "after the best round"}


def generations(ran: list[Outcome]) -> str:
    """Return the ratings of generated answers as a table; empty if nothing was generated."""
    rows = []
    for outcome in ran:
        found = [run["measured"]["generations"] for run in outcome.runs if "generations" in run["measured"]]
        for state, when in STATES.items():
            own = [one[state] for one in found if state in one]
            if own:
                ratings = [spread([one[name] for one in own]) for name in RATINGS]
                rows.append([outcome.method, when, _metric(outcome, state), *ratings])
    heads = ["generated answers", "state", ran[0].metric, *(metric.title for metric in RATINGS.values())]
    return table(heads, rows) if rows else ""


def _metric(outcome: Outcome, state: str) -> str:
    """Return the metric of a state on the same part; nothing for the best, whose round is not kept."""
    if state == "before":
        return spread([run["measured"][outcome.metric][0] for run in outcome.runs])
    return spread(outcome.values("final")) if state == "last" else ""
