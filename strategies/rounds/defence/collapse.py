"""Return a run that has lost what it had learned to its last good state, without the nodes that caused it.

A run has collapsed if its loss is not finite, or if it scores, in two evaluations in a row or in its last one, less
than `factor` of its usual score: the worst of its last `USUAL` good evaluations. Accuracy counts from the score of
guessing, and only once a run has learned something; a loss is too high above the usual over `factor`. Honest runs on
skewed rows, with few nodes a round, swing widely, and so does their usual score.

The nodes that dominated the rounds since then (`pulls`) are left out until the run is resumed; if they cannot be
identified, all nodes that sent an update in these rounds. A second collapse ends the run.
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
PULL = 1.5  # times the average pull of a node
MOST = 1  # collapses that a run, or a resumed one, recovers from


def watched(run: Run, report: RoundReport, state: State) -> State:
    """Return the state to continue with: this one, or the last good one if the run has collapsed.

    Then the report gives the reason, and the scores of the state that the run went back to.
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
        LOG.warning("round %d: %s is %.4g; if it stays so, the run is rolled back", report.number, _metric(run), value)
        return state
    return _gone_back(run, report, state, value)


def score(config: TaskConfig, report: RoundReport) -> float | None:
    """Return the score that a run is judged by; None if nothing was measured.

    For nodes' scores it is the better of mean and median, so that one node cannot cause a collapse.
    """
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
    """Store a good state besides the newest one."""
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
    """Remove good states that are no longer needed. Call it after the newest state, which lists the others, is on the
    disk."""
    if (folder := run.context.federation.checkpoint) is not None:
        names = {checkpoint.kept(good["round"]) for good in run.context.run_state.good}
        for path in folder.glob(checkpoint.kept("*")):
            if path.name not in names:
                path.unlink()


def hopeless(run: Run) -> str:
    """Return why a run that has collapsed cannot continue; empty if it can."""
    run_state, left = run.context.run_state, len(run.registry.present)
    if run_state.collapses > MOST:
        return f"it collapsed {run_state.collapses} times"
    if not run_state.good:
        return "no good state was kept to go back to (keep-checkpoints)"
    steady = run.mechanism.steadfast and run.mechanism.poisson  # nobody may learn from the end of a run who takes part
    if left < max(1, run.context.federation.min_train_nodes) and not steady:
        return f"{left} nodes are left, min-train-nodes is {run.context.federation.min_train_nodes}"
    return ""


def bad(value: float, usual: Sequence[float], factor: float, guessing: float | None) -> bool:
    """Return whether a score is far worse than the usual: a loss, or, if guessing scores `guessing`, a score of at most
    1, such as an accuracy."""
    if not math.isfinite(value):
        return True
    if len(usual) < USUAL:
        return False
    if guessing is None:
        return value > max(usual[-USUAL:]) / factor
    gained = min(usual[-USUAL:]) - guessing
    return gained >= LEARNED * (1 - guessing) and value - guessing < factor * gained


def _gone_back(run: Run, report: RoundReport, state: State, value: float) -> State:
    """Return the last good state, and leave the suspects out."""
    run_state = run.context.run_state
    run_state.sinking, run_state.usual = 0, []
    run_state.collapses += 1
    suspects, how = _suspects(run_state.senders)
    usual = f"{_metric(run)} fell to {value:.4g}"
    if not run.mechanism.hides_metrics:  # which nodes were drawn or count must not depend on what they sent
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
    """Return the nodes to leave out among those that sent updates since the last good state, and the reason."""
    means = {node: fmean(own) for node, seen in senders.items() if (own := [x for x in seen if x is not None])}
    behind = {node for node, pull in means.items() if pull > PULL}
    if len(means) == len(senders) and 0 < len(behind) < len(senders) / 2:
        return behind, "who dominated the updates since then"
    return set(senders), "all that sent updates since then, as it is unknown who"


def _metric(run: Run) -> str:
    return kinds.of(run.context.config).chosen_by


def _guessing(config: TaskConfig) -> float | None:
    """Return the score of guessing; None if the lowest score is the best."""
    kind = kinds.of(config)
    metric = kind.metrics[kind.chosen_by]
    return None if metric.lowest else kind.guessing(config.data.labels).get(kind.chosen_by, metric.low)
