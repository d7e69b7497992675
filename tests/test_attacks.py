"""Two hostile nodes of ten with the defaults, in seconds: heads alone. `benchmarks/attacks.py` has the table."""

from pathlib import Path
from typing import Any

import pytest
from attacks import ATTACKS, attack
from in_process import Outcome, federate

LIARS, ROUNDS = (1, 4), 8
TEN: dict[str, Any] = {
    "simulation.num-supernodes": 10,
    "tuning": "head",
    "num-server-rounds": ROUNDS,
    "data.train-rows": 300,
    "data.validation-rows": 60,
    "data.test-rows": 150,
    "local-steps": 8,
    "learning-rate": 0.02,
}
TRIED = [kind for kind in ATTACKS if kind not in ("scale 20", "flip 10")]  # refused as "scale 1e6" is, by their length
SLOWED = ("rows", "flip 1")  # of plausible length: who does harm is found after rounds of it


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return federate(tmp_path_factory.mktemp("honest"), TEN)


def gained(outcome: Outcome, honest: Outcome) -> float:
    """The share of what the run without an attack learned."""
    base = honest.summary["base"]
    return float((outcome.summary["final"] - base) / (honest.summary["final"] - base))


@pytest.mark.judged
@pytest.mark.slow
@pytest.mark.parametrize("kind", TRIED)
def test_two_liars_of_ten_do_not_take_the_run(tmp_path: Path, honest: Outcome, kind: str) -> None:
    options = TEN | ({"evaluate": "both"} if kind == "scores" else {})
    outcome = federate(tmp_path, options, spoil=attack(kind, "fedavg", LIARS, ROUNDS))
    assert gained(outcome, honest) > (0.7 if kind in SLOWED else 0.8)
    refused = {line["node"] for entry in outcome.rounds for line in entry["nodes"] if line["refused"]}
    assert refused <= {str(node) for node in LIARS}
    if kind == "scores":
        assert all(0 <= entry["nodes-accuracy"] <= 1 for entry in outcome.rounds)


@pytest.mark.judged
@pytest.mark.slow
def test_without_rows_of_the_servers_colluders_take_a_mean_and_no_trimmed_one(tmp_path: Path, honest: Outcome) -> None:
    """What docs/threats.md says is not covered, and by what it is."""
    spoil = attack("collude", "fedavg", LIARS, ROUNDS)
    alone = TEN | {"examine-rows": 0}
    plain = federate(tmp_path / "mean", alone, spoil=spoil)
    trimmed = federate(
        tmp_path / "trimmed", alone | {"wrappers": "trimmed-mean", "trimmed-mean.trim": 0.2}, spoil=spoil
    )
    assert gained(trimmed, honest) > gained(plain, honest) + 0.3
