"""`evaluate-every`: which rounds are measured, what is made of those that are not, and that training goes on alike."""

from pathlib import Path

import pytest
from in_process import equal, federate, resumed

ROUNDS = 5


def scored(rounds: list[dict[str, object]], name: str = "accuracy") -> list[object]:
    return [line["round"] for line in rounds if name in line]


@pytest.mark.slow
@pytest.mark.parametrize(("every", "which"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4, 5]), (9, [0, 5])])
@pytest.mark.parametrize("who", ["server", "nodes", "both"])
def test_the_first_the_last_and_every_so_many(tmp_path: Path, every: int, which: list[int], who: str) -> None:
    options = {"num-server-rounds": ROUNDS, "evaluate-every": every, "evaluate": who, "tuning": "head"}
    outcome = federate(tmp_path, options)
    assert scored(outcome.rounds) == which
    assert scored(outcome.rounds, "server-test-accuracy") == ([] if who == "nodes" else which)
    assert scored(outcome.rounds, "nodes-accuracy") == ([] if who == "server" else which)
    assert len(outcome.grid.of("evaluate")) == (0 if who == "server" else 3 * len(which))
    assert outcome.summary["best-round"] in which
    assert outcome.summary["final"] == outcome.rounds[-1]["accuracy"]
    table = (outcome.folder / "report.html").read_text().split("<h2>Rounds</h2>")[1].split("</table>")[0]
    assert table.count('<tr><th scope="row">') == ROUNDS + 1  # rounds that were not measured too


@pytest.mark.slow
def test_training_is_the_same(tmp_path: Path) -> None:
    often, seldom = (
        federate(tmp_path / str(every), {"num-server-rounds": 3, "evaluate-every": every}) for every in (1, 3)
    )
    assert equal(often.state().tensors, seldom.state().tensors)
    assert often.rounds[-1]["accuracy"] == seldom.rounds[-1]["accuracy"]


@pytest.mark.slow
def test_a_run_that_its_budget_ends_is_measured_at_its_end(tmp_path: Path) -> None:
    private = {"wrappers": "central-privacy", "central-privacy.sampling": "fixed", "central-privacy.clip": 0.5}
    spent = {"central-privacy.delta": 1e-5, "central-privacy.noise": 1.0, "central-privacy.epsilon": 20.0}
    outcome = federate(tmp_path, {**private, **spent, "num-server-rounds": 9, "evaluate-every": 9})
    assert outcome.summary["stopped"]
    assert scored(outcome.rounds) == [0, outcome.summary["rounds"]]


@pytest.mark.slow
def test_it_may_change_when_a_run_is_resumed(tmp_path: Path) -> None:
    first = federate(tmp_path, {"num-server-rounds": 2, "evaluate-every": 2})
    more = resumed(first.folder, {"num-server-rounds": 4, "evaluate-every": 1})
    assert scored(more.rounds) == [0, 2, 3, 4]
