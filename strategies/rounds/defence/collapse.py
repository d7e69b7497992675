"""Has a run lost what it had learned? Then it goes back to its last good state, without those who led it astray.

A run has collapsed where its loss is no number, or where it scores, in two evaluations in a row or in its last one,
less than `factor` of what was usual: the worst of its last `USUAL` good evaluations. Accuracy counts from guessing, and
only once a run has learned something; of a loss, more than the usual over `factor` is too much. Honest runs on skewed
rows, with few nodes a round, swing widely, and so is what is usual for them.

Left out, until somebody resumes the run, are the nodes that dominated the rounds since then (`pulls`); where that
cannot be told, all that sent an update in them. A second collapse ends the run.
"""

import logging
import math
from collections.abc import Sequence
from statistics import fmean

from strategies.exchange.callback import RoundReport
from strategies.exchange.types import State
from strategies.protocol import checkpoint
from strategies.rounds.run import Run
from task.config import TaskConfig
from task.kinds import registry as kinds

LOG = logging.getLogger("flwr")
USUAL = 4  # good evaluations
LEARNED = 0.3  # of the way from guessing to being always right
PATIENCE = 2  # bad evaluations in a row
PULL = 1.5  # times what a node is behind on average
MOST = 1  # collapses that a run, or a resumed one, goes back from


def watched(run: Run, report: RoundReport, state: State) -> State:
    """Return the state to go on with: this one, or the last good one where the run has collapsed.

    Then the report says why, and has the scores of the state that it went back to.
    """
    run_state = run.context.run_state
    value = score(run.context.config, report)
    if report.failed or value is None or not run.context.federation.collapse_factor:
        return state
    if not bad(value, run_state.usual, run.context.federation.collapse_factor, _guessing(run.context.config)):
        run_state.sinking = 0
        if math.isfinite(value):
            run_state.usual = [*run_state.usual, value][-USUAL:]
            keep(run, report, state)
        return state
    run_state.sinking += 1
    last = report.number == run.context.rounds or bool(report.stopped)
    if math.isfinite(value) and run_state.sinking < PATIENCE and not last:
        LOG.warning("round %d: %s is %.4g; should it stay so, the run goes back", report.number, _metric(run), value)
        return state
    return _gone_back(run, report, state, value)


def score(config: TaskConfig, report: RoundReport) -> float | None:
    """Return what a run is judged by; None where nothing was measured. Of nodes it is the better of mean and median, so
    that one of them cannot make a collapse."""
    metric = kinds.of(config).chosen_by
    better = min if kinds.of(config).metrics[metric].lowest else max
    server, nodes = report.evaluated_by_server, report.evaluated_by_nodes
    if f"validation-{metric}" in server:
        losses = [value for name, value in server.items() if name.endswith("loss")]
        broken = not all(map(math.isfinite, losses))
        return math.nan if broken else float(server[f"validation-{metric}"])
    if metric in nodes:
        return float(better(nodes[metric], report.medians_of_nodes[metric]))
    return None


def keep(run: Run, report: RoundReport, state: State) -> None:
    """Keep a good state beside the newest one."""
    run_state, folder, count = (
        run.context.run_state,
        run.context.federation.checkpoint,
        run.context.federation.keep_checkpoints,
    )
    run_state.senders.clear()
    if folder is None or not count:
        return
    checkpoint.save(folder / checkpoint.kept(report.number), state, {"round": report.number})
    scores = {"server": report.evaluated_by_server, "nodes": report.evaluated_by_nodes}
    run_state.good = [*run_state.good, {"round": report.number, **scores}][-count:]


def swept(run: Run) -> None:
    """Remove the states that are no longer kept; after the newest one, which says which are, is on the disk."""
    if (folder := run.context.federation.checkpoint) is not None:
        names = {checkpoint.kept(good["round"]) for good in run.context.run_state.good}
        for path in folder.glob(checkpoint.kept("*")):
            if path.name not in names:
                path.unlink()


def hopeless(run: Run) -> str:
    """Return why a run that has collapsed cannot go on, "" where it can."""
    run_state, left = run.context.run_state, len(run.registry.present)
    if run_state.collapses > MOST:
        return f"it collapsed {run_state.collapses} times"
    if not run_state.good:
        return "no good state was kept to go back to (keep-checkpoints)"
    steady = run.mechanism.steadfast and run.mechanism.poisson  # nobody may tell from the end of a run who is there
    if left < max(1, run.context.federation.min_train_nodes) and not steady:
        return f"{left} nodes are left, min-train-nodes is {run.context.federation.min_train_nodes}"
    return ""


def bad(value: float, usual: Sequence[float], factor: float, guessing: float | None) -> bool:
    """Return whether a score is far worse than the usual: a loss, or, where who guesses has `guessing`, a score of at
    most 1, such as an accuracy."""
    if not math.isfinite(value):
        return True
    if len(usual) < USUAL:
        return False
    if guessing is None:
        return value > max(usual[-USUAL:]) / factor
    gained = min(usual[-USUAL:]) - guessing
    return gained >= LEARNED * (1 - guessing) and value - guessing < factor * gained


def _gone_back(run: Run, report: RoundReport, state: State, value: float) -> State:
    """Return the last good state, with the suspects left out."""
    run_state = run.context.run_state
    run_state.sinking, run_state.usual = 0, []
    run_state.collapses += 1
    suspects, how = _suspects(run_state.senders)
    usual = f"{_metric(run)} fell to {value:.4g}"
    if not run.mechanism.hides_metrics:  # which nodes count, or were drawn at all, must not follow from what they sent
        run.registry.leave_out(dict.fromkeys(suspects, f"left out after the collapse of round {report.number}"))
    names = "nobody" if run.mechanism.hides_metrics or not suspects else ", ".join(sorted(suspects))
    if run_state.good and run.context.federation.checkpoint is not None:
        good = run_state.good[-1]
        state, _ = checkpoint.load(run.context.federation.checkpoint / checkpoint.kept(good["round"]))
        report.evaluated_by_server, report.evaluated_by_nodes = good["server"], good["nodes"]
        report.rolled_back = f"{usual}: back to the state of round {good['round']}, without {names} ({how})"
    else:
        report.rolled_back = f"{usual}: collapsed, without a good state to go back to"
    run_state.senders.clear()
    LOG.error("[ROUND %d] %s", report.number, report.rolled_back)
    return state


def _suspects(senders: dict[str, list[float | None]]) -> tuple[set[str], str]:
    """Return who is to be left out of those that sent updates since the last good state, and why these."""
    told = {node: fmean(own) for node, seen in senders.items() if (own := [x for x in seen if x is not None])}
    behind = {node for node, pull in told.items() if pull > PULL}
    if len(told) == len(senders) and 0 < len(behind) < len(senders) / 2:
        return behind, "who dominated the updates since then"
    return set(senders), "all that sent updates since then, as it cannot be told who"


def _metric(run: Run) -> str:
    return kinds.of(run.context.config).chosen_by


def _guessing(config: TaskConfig) -> float | None:
    """What who guesses scores; None where the lowest score is the best."""
    kind = kinds.of(config)
    metric = kind.metrics[kind.chosen_by]
    return None if metric.lowest else kind.guessing(config.data.labels).get(kind.chosen_by, metric.low)
