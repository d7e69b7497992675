"""What is reported is what was spent, whatever happens to a run: by dp-accounting, of what really left the nodes."""

from pathlib import Path
from typing import Any

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from fragile import OPENING
from in_process import InProcessGrid, federate, left, resumed
from witness import Killed, Left, Witness, epsilon, largest

import client_app
import strategies
from strategies.algebra.accountant import Release, epsilon_of, written
from strategies.exchange.privacy import Plan
from strategies.exchange.types import Profile, RunFailed
from strategies.protocol import checkpoint

pytestmark = pytest.mark.usefixtures("dead_servers_write_no_summary")

SAME: dict[str, Any] = {"data.partitioner": "iid", "tuning": "bias", "evaluate-every": 100}
ROWS = SAME | {"wrappers": "example-privacy"}
UPDATES = SAME | {"wrappers": "local-privacy"}
BATCH, DELTA = 8, 1e-5


def about(value: float) -> Any:
    """Reported at least what was spent, and not one percent more."""
    return pytest.approx(value * 1.004, rel=6e-3)


@pytest.mark.slow
def test_a_budget_that_is_spent_is_not_spent_again_by_more_rounds(tmp_path: Path) -> None:
    """Two rounds at epsilon 8, then resumed to 10, to 30: that was reported as 8 and came to more than 12."""
    journal: list[Left] = []
    outcome = federate(tmp_path, ROWS | {"num-server-rounds": 2}, Witness(journal))
    assert outcome.summary["epsilon"] == about(largest(journal, DELTA, BATCH))
    assert 7.9 < outcome.summary["epsilon"] <= 8
    for more in (10, 30):
        with pytest.raises(RunFailed, match=r"example-privacy\.epsilon = 8 is spent on every connected node"):
            resumed(outcome.folder, {"num-server-rounds": more}, Witness(journal))
    assert len(journal) == 6
    assert largest(journal, DELTA, BATCH) <= 8


@pytest.mark.slow
@pytest.mark.parametrize(("options", "batch"), [(ROWS, BATCH), (UPDATES, 0)])
def test_what_is_left_is_what_later_rounds_are_noised_for(options: dict[str, Any], batch: int, tmp_path: Path) -> None:
    """Stopped after 2 of 6 rounds, and resumed to 9: noise is larger from then on, and all of it is counted."""
    journal: list[Left] = []
    with pytest.raises(Killed):
        federate(tmp_path, options | {"num-server-rounds": 6}, Witness(journal, looks=OPENING + 2))
    before = {one.noise for one in journal}
    outcome = resumed((tmp_path / "latest").resolve(), {"num-server-rounds": 9}, Witness(journal))
    assert {one.round for one in journal} == set(range(1, 10))
    assert min(one.noise for one in journal if one.round > 2) > max(before)
    assert outcome.summary["epsilon"] == about(largest(journal, DELTA, batch))
    assert 7.9 < outcome.summary["epsilon"] <= 8
    assert outcome.summary["accountant"] == "PLD"


@pytest.mark.slow
@pytest.mark.parametrize(("options", "batch"), [(ROWS, BATCH), (UPDATES, 0)])
def test_updates_of_a_round_that_was_cut_off_are_counted(options: dict[str, Any], batch: int, tmp_path: Path) -> None:
    """Killed in round 2 after all had sent, and again after it was repeated: four updates of a node, four counted."""
    journal: list[Left] = []
    run = options | {"num-server-rounds": 3}
    with pytest.raises(Killed):
        federate(tmp_path, run, Witness(journal, trained=6))
    folder = (tmp_path / "latest").resolve()
    with pytest.raises(Killed):
        resumed(folder, None, Witness(journal, trained=3))
    lines = resumed(folder, None, Witness(journal)).rounds
    spent = [[one for one in journal if one.node == 0][:count] for count in (1, 4, 5)]
    for line, own in zip(lines[1:], spent, strict=False):
        assert line["epsilon"] >= epsilon([o.descent(batch) if batch else o.update() for o in own], DELTA) * 0.998
        assert line["epsilon"] <= 8
    assert lines[-1]["epsilon"] == about(largest(journal, DELTA, batch))


@pytest.mark.slow
def test_a_given_noise_ends_the_run_where_the_account_of_what_was_sent_does(tmp_path: Path) -> None:
    journal: list[Left] = []
    options = UPDATES | {"num-server-rounds": 9, "local-privacy.noise": 4.0, "local-privacy.epsilon": 4.5}
    with pytest.raises(Killed):
        federate(tmp_path, options, Witness(journal, given=4.0, trained=5))
    outcome = resumed((tmp_path / "latest").resolve(), None, Witness(journal, given=4.0))
    assert "is spent" in outcome.summary["stopped"]
    assert outcome.summary["epsilon"] == about(largest(journal, DELTA))
    more = [*journal, Left(0, 9, 4.0, 30, 1)]
    assert largest(journal, DELTA) <= 4.5 < largest(more, DELTA)


CENTRAL = SAME | {"wrappers": "central-privacy", "central-privacy.delta": 1e-3, "fraction-train": 0.5}


@pytest.mark.slow
def test_rounds_of_central_privacy_are_counted_where_their_scores_were_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that ends in a round has released nothing; one that ends after the round's line has."""
    options = CENTRAL | {"num-server-rounds": 4, "central-privacy.noise": 2.0}
    event, save = PoissonSampledDpEvent(0.5, GaussianDpEvent(2.0)), checkpoint.save

    def dying(path: Path, state: Any, said: dict[str, Any]) -> None:
        if (path.name, said.get("round")) == (checkpoint.LAST, 2):
            raise Killed
        save(path, state, said)

    with pytest.raises(Killed):
        federate(tmp_path, options, Witness([], looks=OPENING + 1))
    folder = (tmp_path / "latest").resolve()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", dying)
        with pytest.raises(Killed):
            resumed(folder)
    lines = resumed(folder).rounds
    assert [line["epsilon"] for line in lines[1:]] == [about(epsilon([(event, n)], 1e-3)) for n in (1, 3, 4, 5)]


@pytest.mark.slow
def test_noise_of_central_privacy_is_found_for_what_is_left(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        federate(tmp_path, CENTRAL | {"num-server-rounds": 6}, Witness([], looks=OPENING + 3))
    folder = (tmp_path / "latest").resolve()
    before = _central_noise(folder)
    outcome = resumed(folder, {"num-server-rounds": 12})
    after = _central_noise(folder)
    parts = [(PoissonSampledDpEvent(0.5, GaussianDpEvent(noise)), n) for noise, n in ((before, 3), (after, 9))]
    assert after > before
    assert outcome.summary["epsilon"] == about(epsilon(parts, 1e-3))
    assert 7.9 < outcome.summary["epsilon"] <= 8


def _central_noise(folder: Path) -> float:
    said = checkpoint.load(folder / "checkpoints" / checkpoint.LAST)[1]
    return float(said["session"]["privacy"]["noise"])


# ---------------------------------------------------------------------- what nodes claim, and older checkpoints


def test_what_a_node_claims_of_its_privacy_is_not_believed(tmp_path: Path) -> None:
    def boasting(partition: int, kind: str, reply: Any) -> Any:
        if kind == "train":
            reply.content["metrics"]["epsilon"] = 1e99 if partition else 0.0
            reply.content["metrics"]["rounds-left"] = 0
        return reply

    outcome = federate(tmp_path, ROWS | {"num-server-rounds": 2}, InProcessGrid(client_app.app, 3, spoil=boasting))
    assert 7.9 < outcome.summary["epsilon"] <= 8
    assert outcome.summary["rounds"] == 2


NODES = [Profile(i, str(i), 8, 30, "store") for i in range(3)]


@pytest.mark.slow
def test_checkpoints_of_versions_that_counted_go_on_at_the_noise_of_then() -> None:
    plan = Plan(10, 3, 0.125, done=4)
    central = strategies.load_wrapper("central-privacy").mechanism(plan)
    central.restore({"clip": 1.0, "noise": 1.5, "expected": 0.4, "draws": [[0.125, 0, 0, 4]]})
    assert central.spent()["epsilon"] == epsilon_of({Release(1.5, 0.125): 4}, 1e-5)
    fixed = strategies.load_wrapper("central-privacy", sampling="fixed").mechanism(plan)
    fixed.restore({"clip": 1.0, "noise": 9.0, "expected": 1.0, "draws": [[0.0, 3, 1, 4]]})
    assert fixed.spent() | {"clip": 1.0} == fixed.spent()
    assert (fixed.spent()["epsilon"], fixed.spent()["accountant"]) == (
        epsilon_of({Release(4.5, nodes=3, size=1): 4}, 1e-5),
        "RDP",
    )
    local = strategies.load_wrapper("local-privacy").mechanism(plan)
    local.restore({"noise": 6.0, "asked": {"0": 4, "1": 2}})
    assert local.spent()["epsilon"] == epsilon_of({Release(3.0): 4}, 1e-5)
    assert [profile.name for profile in local.able(NODES, 5)] == ["0", "1", "2"]
    given = strategies.load_wrapper("example-privacy", noise=1.0).mechanism(plan)
    given.restore({"epsilon": 0.1})
    given.able(NODES, 5)
    release, steps = given.options.release(plan.config, 30, 1.0)
    assert given.spent()["epsilon"] == epsilon_of({release: 4 * steps}, 1e-5)


def test_an_account_of_rows_that_nobody_kept_counts_as_spent() -> None:
    unknown = strategies.load_wrapper("example-privacy").mechanism(Plan(10, 3, 1.0, done=4))
    unknown.restore({"epsilon": 3.0})
    assert unknown.spent()["epsilon"] == 8.0
    assert "did not keep the noise" in unknown.exhausted()


def test_the_memory_of_an_account_is_whole() -> None:
    plan = Plan(10, 3, 1.0)
    first, second = (strategies.load_wrapper("local-privacy").mechanism(plan) for _ in range(2))
    for number in (1, 2):
        first.spend(NODES, first.able(NODES, number)[:number], number)
    second.restore(first.memory())
    assert second.memory() == first.memory()
    assert second.spent() == first.spent()
    assert written(second.accounts["0"].spent) == written({first.accounts["0"].release: 2})


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_process_does_not_undo_what_was_spent_since(tmp_path: Path) -> None:
    """What is spent is kept beside the checkpoint before anything is sent; a damaged file is said."""
    journal: list[Left] = []
    with pytest.raises(Killed):
        federate(tmp_path, UPDATES | {"num-server-rounds": 3}, Witness(journal, trained=4))
    folder = (tmp_path / "latest").resolve()
    kept = folder / "checkpoints" / "privacy.safetensors"
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    with pytest.raises(RunFailed, match=r"cannot resume: .*privacy\.safetensors"):
        resumed(folder)
    assert left(tmp_path)[0]["status"] == "failed"


def test_nodes_whose_budget_does_not_do_for_a_message_are_not_asked() -> None:
    """With a given noise a node of few rows spends more in a round: the others train without it."""
    plan = Plan(3, 2, 1.0)
    account = strategies.load_wrapper("example-privacy", noise=1.0, epsilon=4.0).mechanism(plan)
    small, large = Profile(0, "small", 8, 16, "store"), Profile(1, "large", 8, 3000, "store")
    assert account.able([small, large], 1) == [large]
    account.spend([large], [large], 1)
    assert 0 < account.spent()["epsilon"] <= 4.0
    assert not account.exhausted()
