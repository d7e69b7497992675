"""Nodes that were away, are late or lost their disk end with the server's bits: by entries, or sent the weights."""

import shutil

import pytest
from cold import Run
from in_process import equal

from strategies.protocol import journal
from strategies.protocol.journal import REPLAY_STATE
from strategies.rounds.validation import PROOF

BACK = 5  # the round that all are there again
CASES = {  # coordinates and momentum: how the three nodes catch up
    "entries": (128, 0.0),
    "entries, momentum": (128, 0.9),
    "weights": (1024, 0.0),
    "weights, momentum": (2048, 0.9),
}


pytestmark = pytest.mark.slow


def come_and_go(run: Run) -> None:
    """Node 1 misses three rounds, node 2 joins late, node 3 restarts with an empty disk; all are there in round 5."""
    run.grid.away = {2}

    def heard(number: int) -> None:
        if number == 1:
            run.grid.away = {1, 2}
        if number == BACK - 1:
            run.grid.away = set()
            shutil.rmtree(run.store(3))
            run.grid.restart(3)

    run.heard = heard


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    found = Run(tmp_path_factory.mktemp("run"), *request.param)
    with pytest.MonkeyPatch.context() as patch:
        come_and_go(found)
        found.go(patch, BACK + 1)
    return found


# ---------------------------------------------------------------------- three nodes catch up


def test_they_are_sent_what_is_smaller(run: Run) -> None:
    by_weights = run.coordinates > 128
    assert {node: line.journal for node, line in run.lines(BACK).items()} == {
        "0": 1, "1": -1 if by_weights else 4, "2": -1 if by_weights else 4, "3": -1 if by_weights else 4,
    }  # fmt: skip
    assert [line.journal for line in run.lines(BACK + 1).values()] == [1] * 4
    sizes = {node: line.bytes_down for node, line in run.lines(BACK).items()}
    assert sizes["1"] == sizes["2"] == sizes["3"] > sizes["0"]
    if by_weights:
        assert sizes["1"] < 4 * 3082 * (2 if run.momentum else 1) + 4000


def test_nobody_is_refused(run: Run) -> None:
    assert [len(report.nodes) for report, _ in run.seen] == [0, 3, 2, 2, 2, 4, 4]
    assert not any(line.refused for report, _ in run.seen for line in report.nodes)


def test_their_fingerprints_are_the_servers(run: Run) -> None:
    """Those who catch up say it, the others do not."""
    answers = [e for e in run.grid.of("train") if e.reply is not None and PROOF in e.reply]
    assert sorted(exchange.partition for exchange in answers) == [1, 2, 3]
    said = {str(e.reply[PROOF]["fingerprint"]) for e in answers if e.reply}  # type: ignore[index,arg-type,call-overload]
    assert said == {journal.fingerprint(run.server(BACK))}


def test_all_stand_on_the_servers_bits_and_go_on_with_entries(run: Run) -> None:
    expected = journal.base_weights_of(run.server(BACK + 1))
    stood = run.last_stood()
    assert len(stood) == 4
    assert all(equal(weights, expected) for weights in stood.values())
    assert any(name.startswith(REPLAY_STATE) for name in expected) == bool(run.momentum)
    assert not equal(expected, journal.base_weights_of(run.server(BACK)))


def test_weights_are_stored_under_their_journal_position(run: Run) -> None:
    for node in range(4):
        kept = [path.name for path in run.store(node).glob("grounds/*")]
        sent = node > 0 and run.coordinates > 128
        assert kept == ([run.seen[BACK - 1][1].positions[-1]] if sent else [])
        entries = {path.name for path in run.store(node).glob("journals/*")}
        assert len(entries) == (1 if sent else 5)
