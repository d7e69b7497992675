"""Callbacks: what they hear, in which order, and what becomes of a run where one fails or says that it is enough."""

from pathlib import Path
from typing import Any

import pytest
from in_process import QV, InProcessGrid, federate, resumed

import client_app
import server_app.main
import strategies
from server_app.callbacks.early_stopping import EarlyStopping, EarlyStoppingOptions
from server_app.config import RunConfig
from strategies.exchange.callback import Callback, RoundReport, RunFacts
from strategies.exchange.federation import Federation
from strategies.exchange.types import State
from strategies.protocol import checkpoint
from task.config import TaskConfig
from task.schema import ConfigError

HOOKS = ("on_start", "on_scores", "on_round", "on_checkpoint", "on_end")


class Listener(Callback):
    """Writes down what it hears; raises `error` in the hook `place`."""

    def __init__(self, place: str = "", error: BaseException | None = None) -> None:
        self.heard: list[tuple[str, Any]] = []
        self._place, self._error = place, error

    def on_start(self, facts: RunFacts) -> None:
        self._hear("on_start", facts)

    def on_scores(self, report: RoundReport, state: State) -> None:
        self._hear("on_scores", report.number)

    def on_round(self, report: RoundReport, state: State) -> None:
        self._hear("on_round", report.number)

    def on_checkpoint(self, report: RoundReport, state: State) -> None:
        self._hear("on_checkpoint", report.number)

    def on_end(self, error: BaseException | None) -> None:
        self._hear("on_end", error)

    def _hear(self, hook: str, what: Any) -> None:
        self.heard.append((hook, what))
        if hook == self._place and self._error is not None:
            raise self._error


class Essential(Listener):
    essential = True


def run(folder: Path, *callbacks: Callback, **options: Any) -> Path:
    values = {key.replace("_", "-"): value for key, value in options.items()}
    config = RunConfig.read({**SMALLEST, **values, "output-dir": str(folder)})
    return server_app.main.federate(InProcessGrid(client_app.app, 2), config, callbacks)


SMALLEST: dict[str, Any] = {
    **QV,
    "num-server-rounds": 1,
    "simulation.num-supernodes": 2,
    "data.train-rows": 40,
    "data.validation-rows": 20,
    "data.test-rows": 20,
    "local-steps": 1,
    "batch-size": 8,
}


# ------------------------------------------------------------------------------- what they hear
def test_what_a_callback_hears_of_a_run(tmp_path: Path) -> None:
    listener = Listener()
    run(tmp_path, listener, strategy="rbla", num_server_rounds=2)
    (_, facts), *rest = listener.heard
    rounds = [(hook, number) for number in range(3) for hook in ("on_scores", "on_round", "on_checkpoint")]
    assert rest == [*rounds, ("on_end", None)]
    assert (facts.strategy, facts.first, facts.rounds, facts.nodes) == ("rbla", 0, 2, ("0", "1"))
    assert facts.config.data.labels == tuple("0123456789")
    assert facts.settings["batch-size"] == 8
    assert facts.settings["strategy"] == "rbla"


def test_the_state_is_on_disk_at_the_checkpoint_and_not_before(tmp_path: Path) -> None:
    class Looking(Callback):
        seen: tuple[list[int], list[int]] = ([], [])

        def on_round(self, report: RoundReport, state: State) -> None:
            self.seen[0].append(kept())

        def on_checkpoint(self, report: RoundReport, state: State) -> None:
            self.seen[1].append(kept())

    def kept() -> int:
        path = tmp_path / "latest" / "checkpoints" / checkpoint.LAST
        return int(checkpoint.about(path)["round"]) if path.exists() else -1

    run(tmp_path, looking := Looking())
    assert looking.seen == ([-1, 0], [0, 1])


def test_they_may_be_given_to_any_server_app() -> None:
    listener = Listener()
    strategies.load("fedavg").start(
        InProcessGrid(client_app.app, 2),
        num_rounds=1,
        train_config={key: value for key, value in SMALLEST.items() if key not in SERVER},  # type: ignore[arg-type]
        federation=Federation(callbacks=(listener,)),
    )
    assert [hook for hook, _ in listener.heard] == [
        "on_start",
        *["on_scores", "on_round", "on_checkpoint"] * 2,
        "on_end",
    ]


SERVER = ("num-server-rounds", "simulation.num-supernodes")


def test_what_is_no_callback_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"callbacks\[1\] = .* must be a Callback"):
        Federation(callbacks=(Listener(), print))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- one that fails
@pytest.mark.first(2)
@pytest.mark.parametrize("hook", HOOKS)
def test_one_that_raises_is_named_and_the_run_continues(
    hook: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken, other = Listener(hook, ValueError("no luck")), Listener()
    folder = run(tmp_path, broken, other)
    assert '"status": "completed"' in (folder / "summary.json").read_text()
    assert broken.heard[1:] == other.heard[1:]
    assert f"callback Listener failed in {hook}" in caplog.text
    assert "and the run continues: ValueError: no luck" in caplog.text


@pytest.mark.parametrize("hook", HOOKS[:3])
def test_an_essential_one_that_raises_ends_the_run(hook: str, tmp_path: Path) -> None:
    other = Listener()
    with pytest.raises(ValueError, match="no luck") as raised:
        run(tmp_path, Essential(hook, ValueError("no luck")), other)
    assert other.heard[-1] == ("on_end", raised.value)
    summary = (tmp_path / "latest" / "summary.json").read_text()
    assert '"status": "failed"' in summary
    assert "no luck" in summary


def test_ctrl_c_is_no_failure_of_a_callback(tmp_path: Path) -> None:
    other = Listener()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, other, Listener("on_round", KeyboardInterrupt()))
    assert isinstance(other.heard[-1][1], KeyboardInterrupt)
    assert '"status": "interrupted"' in (tmp_path / "latest" / "summary.json").read_text()


# ------------------------------------------------------------------------------- early stopping


def report(number: int, accuracy: float | None) -> RoundReport:
    scores = {f"{part}-{name}": value for part in ("validation", "test") for name, value in
              (("accuracy", accuracy), ("loss", 1.0))}  # fmt: skip
    return RoundReport(number, evaluated_by_server=scores if accuracy is not None else {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scores", "patience", "min_delta", "stops"),
    [
        ([0.1, 0.2, 0.2, 0.2], 2, 0.0, 3),
        ([0.1, 0.2, 0.1, 0.3, 0.3], 2, 0.0, None),
        ([0.1, None, None, 0.1, None, 0.1], 2, 0.0, 5),  # what is not measured does not count
        ([0.1, 0.14, 0.18, 0.3], 1, 0.05, 1),
        ([0.1, 0.2, 0.26, 0.32], 1, 0.05, None),
    ],
)
def test_a_run_stops_where_its_score_does_not_improve(
    scores: list[float | None], patience: int, min_delta: float, stops: int | None
) -> None:
    assert stopped(EarlyStoppingOptions(patience, min_delta), [report(*one) for one in enumerate(scores)]) == stops


def stopped(options: EarlyStoppingOptions, reports: list[RoundReport]) -> int | None:
    """The first round that these options would end a run with."""
    stopping = EarlyStopping(options)
    stopping.on_start(RunFacts("fedavg", TaskConfig(), (), len(reports), 0, {}))
    for one in reports:
        stopping.on_scores(one, State({}))
    return next((one.number for one in reports if one.stopped), None)


@pytest.mark.parametrize(
    ("metric", "target", "stops"),
    [("", 0.3, 2), ("", 0.31, 3), ("", 0.9, None), ("accuracy", 0.3, 2), ("loss", 1.5, 3), ("loss", 1.4, None)],
)
def test_a_run_stops_where_a_metric_reaches_its_target(metric: str, target: float, stops: int | None) -> None:
    """An accuracy from below, a loss from above; the rows are those that choose the best round."""
    accuracies, losses = [0.1, 0.2, 0.3, 0.4], [2.0, 1.9, 1.6, 1.5]
    reports = [
        RoundReport(
            number,
            evaluated_by_server={
                "validation-accuracy": accuracy, "validation-loss": loss, "test-accuracy": 1.0, "test-loss": 0.0,
            },
        )
        for number, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True))
    ]  # fmt: skip
    assert stopped(EarlyStoppingOptions(target=target, metric=metric), reports) == stops
    by_nodes = [RoundReport(n, evaluated_by_nodes={"accuracy": accuracies[n], "loss": losses[n]}) for n in range(4)]
    assert stopped(EarlyStoppingOptions(target=target, metric=metric), by_nodes) == stops


def test_a_metric_that_is_not_measured_and_a_target_out_of_reach_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'f1' is not measured: task.kind = 'image-classification' has accuracy"):
        RunConfig.read({"early-stopping.metric": "f1"})
    with pytest.raises(ConfigError, match=r"early-stopping.target = 95 can never be reached: accuracy is from 0 to 1"):
        RunConfig.read({"early-stopping.target": 95.0})


@pytest.mark.slow
def test_a_private_run_that_stops_early_has_spent_what_its_rounds_took(tmp_path: Path) -> None:
    private = {"wrappers": "central-privacy", "central-privacy.noise": 2.0, "central-privacy.epsilon": 50.0}
    options = {**private, "central-privacy.sampling": "fixed", "num-server-rounds": 3}
    whole = federate(tmp_path / "whole", options)
    short = federate(tmp_path / "short", {**options, "early-stopping.patience": 1, "early-stopping.min-delta": 1.0})
    assert [line["round"] for line in short.rounds] == [0, 1]
    assert short.summary["epsilon"] == whole.rounds[1]["epsilon"] < whole.summary["epsilon"]
    more = resumed(short.folder, {"early-stopping.patience": 0})
    assert [line["epsilon"] for line in more.rounds[1:]] == [line["epsilon"] for line in whole.rounds[1:]]


@pytest.mark.slow
def test_a_stopped_run_is_complete_says_why_and_can_be_resumed(tmp_path: Path) -> None:
    options = {"num-server-rounds": 5, "learning-rate": 1e-9, "early-stopping.patience": 2}
    outcome = federate(tmp_path, options)
    assert [line["round"] for line in outcome.rounds] == [0, 1, 2]
    assert outcome.summary["status"] == "completed"
    assert "2 evaluations without a better accuracy" in outcome.summary["stopped"]
    again = resumed(outcome.folder)  # it takes up the scores of the rounds before
    assert [line["round"] for line in again.rounds] == [0, 1, 2, 3]
    whole = resumed(outcome.folder, {"early-stopping.patience": 0})
    assert whole.rounds[-1]["round"] == 5
