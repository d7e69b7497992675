"""A deployed node's account: of its data, over runs, names, tokens and restarts; paid before anything leaves."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deployed_node import asked, context, refusal
from flwr.app import ConfigRecord, Context
from fragile import Killed
from in_process import Exchange, InProcessGrid, Outcome, federate, local, resumed, suiting
from witness import Left, epsilon, largest

import client_app
from client_app.account import Account, AccountError, total
from client_app.policy import Privacy
from client_app.public_errors import NodeFailed
from client_app.store import KEPT_FOR, SWEPT, ClientStore
from strategies.algebra.accountant import BudgetSpent, Release, epsilon_of, read
from strategies.exchange.privacy import Payment
from strategies.exchange.types import RunFailed
from thistledown.main import main

pytestmark = pytest.mark.usefixtures("dead_servers_write_no_summary")

DELTA = 1e-5
ONE = Payment("local-privacy", Release(2.0), 1, 0.0, DELTA)
NO_LIMIT = Privacy()
SAME: dict[str, Any] = {
    "data.partitioner": "iid",
    "tuning": "bias",
    "evaluate-every": 100,
    "num-server-rounds": 2,
    "simulation.num-supernodes": 2,
    "wrappers": "local-privacy",
    "local-privacy.epsilon": 3.0,
}


def nodes(folder: Path, **own: Any) -> dict[int, dict[str, Any]]:
    """Node configs of two nodes, each with a store of its own."""
    keys = {name.replace("__", ".").replace("_", "-"): value for name, value in own.items()}
    return {number: {"store-path": str(folder / f"store-{number}"), **keys} for number in range(2)}


def deployed(folder: Path, **own: Any) -> InProcessGrid:
    return InProcessGrid(client_app.app, 2, nodes(folder, **own), deployed=True)


def accounts(folder: Path, node: int = 0) -> list[Path]:
    return sorted((folder / f"store-{node}" / "accounts").glob("*.jsonl"))


def paid(folder: Path, node: int = 0) -> float:
    """What a node's own account comes to."""
    (path,) = accounts(folder, node)
    return epsilon_of(total(Account(path, "").entries()), DELTA)


def again(outcome: Outcome, number: int = 0, **order: Any) -> tuple[dict[str, Any], Context]:
    """A message of training that was sent to node 0, with another order, and that node."""
    exchange: Exchange = [one for one in outcome.grid.of("train") if one.partition == 0][number]
    content = dict(exchange.request)
    said = dict(content["instructions"]) | {name.replace("__", ".").replace("_", "-"): v for name, v in order.items()}
    content["instructions"] = ConfigRecord({key: value for key, value in said.items() if value is not None})
    node = next(c for i, c in outcome.grid.contexts.items() if outcome.grid.partitions[i] == 0)
    return content, context(**{k.replace("-", "_"): v for k, v in node.node_config.items()})


# ---------------------------------------------------------------------- the file


def test_payments_add_up_and_stay(tmp_path: Path) -> None:
    account = Account.at(tmp_path, "/data/scans")
    assert account.entries() == []
    for number in range(3):
        account.pay([ONE], "run", "clinic", number, NO_LIMIT)
    again = Account.at(tmp_path, "/data/scans")
    assert total(again.entries()) == {Release(2.0): 3}
    assert [line["round"] for line in again.entries()] == [0, 1, 2]
    assert Account.at(tmp_path, "/data/others").entries() == []
    assert oct(account.path.stat().st_mode & 0o777) == "0o600"


def test_a_budget_is_of_a_run_and_a_limit_of_all(tmp_path: Path) -> None:
    account, cost = Account.at(tmp_path, "data"), epsilon_of({Release(2.0): 2}, DELTA)
    tight = Payment("local-privacy", Release(2.0), 1, cost + 0.01, DELTA)
    for number in range(2):
        account.pay([tight], "a", "clinic", number, NO_LIMIT)
    with pytest.raises(BudgetSpent, match=r"its budget of epsilon .* is spent: this message would make it"):
        account.pay([tight], "a", "clinic", 3, NO_LIMIT)
    account.pay([tight], "b", "clinic", 1, NO_LIMIT)
    with pytest.raises(BudgetSpent, match=r"privacy\.epsilon = .* of the policy is spent") as spent:
        account.pay([tight], "c", "clinic", 1, Privacy(epsilon=cost))
    assert spent.value.public == "the privacy that its owner allows is spent"
    assert len(account.entries()) == 3


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a digit": lambda content: content.replace(b"2.0", b"9.0", 1),
    "a bit": lambda content: content[:100] + bytes([content[100] ^ 4]) + content[101:],
    "a line that is gone": lambda content: b"".join(
        content.splitlines(keepends=True)[:1] + content.splitlines(True)[2:]
    ),
    "half a line": lambda content: content[:-20],
    "nothing left": lambda content: b"",
    "something else": lambda content: b"\x00\xff garbage\n",
    "a list": lambda content: b"[]\n" + content,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_account_is_refused_and_never_starts_at_zero(kind: str, tmp_path: Path) -> None:
    account = Account.at(tmp_path, "data")
    for number in range(3):
        account.pay([ONE], "run", "clinic", number, NO_LIMIT)
    damaged = DAMAGE[kind](account.path.read_bytes())
    account.path.write_bytes(damaged)
    for use in (lambda: account.check([ONE], "run", NO_LIMIT), lambda: account.pay([ONE], "run", "c", 1, NO_LIMIT)):
        with pytest.raises(AccountError) as refused:
            use()
        assert str(account.path) in str(refused.value)
        assert str(tmp_path) not in refused.value.public
    assert account.path.read_bytes() == damaged


def test_a_disk_that_is_full_leaves_the_account_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = Account.at(tmp_path, "data")
    account.pay([ONE], "run", "clinic", 1, NO_LIMIT)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, content: write(handle, content[:10]))
        with pytest.raises(AccountError, match="No space left"):
            account.pay([ONE], "run", "clinic", 2, NO_LIMIT)
    account.pay([ONE], "run", "clinic", 2, NO_LIMIT)
    assert len(account.entries()) == 2


def _pay_often(folder: Path) -> None:
    for number in range(20):
        Account.at(folder, "data").pay([ONE], "run", "clinic", number, NO_LIMIT)


def test_processes_pay_one_after_another(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_pay_often, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(Account.at(tmp_path, "data").entries()) == 60


# ---------------------------------------------------------------------- a node


@pytest.mark.slow
def test_the_same_round_asked_again_is_paid_again_and_another_name_or_budget_changes_nothing(tmp_path: Path) -> None:
    """It was answered each time with fresh noise; the budget is of one round here."""
    outcome = federate(tmp_path / "out", SAME | {"num-server-rounds": 1}, deployed(tmp_path))
    content, node = again(outcome)
    spent = "its budget of epsilon 3 is spent"
    assert spent in refusal("train", content, node)
    node.node_config["name"] = "somebody else"
    assert spent in refusal("train", content, node)
    lower, _ = again(outcome, local_privacy__epsilon=2.0)
    assert "is spent" in refusal("train", lower, node)
    assert paid(tmp_path) <= 3.0


def counted_before(folder: Path, rounds: int) -> Outcome:
    """A run whose first round was answered by a version without accounts: it kept a number of rounds. The account of
    its second round is gone, so that this can be asked again."""
    unlimited = {"local-privacy.epsilon": 0.0, "local-privacy.noise": 4.0}
    outcome = federate(folder / "out", SAME | unlimited, deployed(folder))
    (path,) = accounts(folder)
    path.unlink()
    memory = ClientStore(local(outcome.grid, outcome.grid.of("train")[0]), 1)
    memory.keep({"wrapper-local-privacy": {"rounds": torch.tensor(rounds)}})
    return outcome


@pytest.mark.slow
def test_what_an_earlier_version_counted_is_paid_once(tmp_path: Path) -> None:
    outcome = counted_before(tmp_path, rounds=3)
    content, node = again(outcome, number=-1)
    asked("train", content, node)
    (path,) = accounts(tmp_path)
    entries = Account(path, "").entries()
    assert [(line["round"], sum(read(line["paid"]).values())) for line in entries] == [(1, 3), (2, 1)]
    assert total(entries) == {Release(2.0): 4}
    asked("train", content, node)
    assert total(Account(path, "").entries()) == {Release(2.0): 5}


@pytest.mark.slow
def test_what_an_earlier_version_counted_is_within_the_budget_too(tmp_path: Path) -> None:
    outcome = counted_before(tmp_path, rounds=500)
    content, node = again(outcome, number=-1, local_privacy__epsilon=8.0)
    assert "its budget of epsilon 8 is spent" in refusal("train", content, node)
    assert not accounts(tmp_path)


def test_another_token_does_not_reset_the_spent_budget(tmp_path: Path) -> None:
    grid = deployed(tmp_path, policy__privacy__epsilon=4.0)
    outcome = federate(tmp_path / "out", SAME, grid)
    content, node = again(outcome, run_token="0" * 32, local_privacy__epsilon=4.0)
    with pytest.raises(NodeFailed, match="the privacy that its owner allows is spent"):
        [asked("train", content, node) for _ in range(5)]
    assert 3.0 < paid(tmp_path) <= 4.0


BY_POLICY = "refused by the node's policy: privacy"
UNCOVERED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no wrapper": ("train", {"wrappers": "", "local_privacy__epsilon": None}, BY_POLICY),
    "no noise": ("train", {"local_privacy__epsilon": 0.0, "local_privacy__noise": 0.0}, BY_POLICY),
    "a huge budget": ("train", {"local_privacy__epsilon": 1e9}, BY_POLICY),
    "the server's noise": ("train", {"wrappers": "central-privacy", "local_privacy__epsilon": None}, BY_POLICY),
    "a code before the noise": ("train", {"wrappers": "half,local-privacy"}, "put it first"),
    "a trial": ("query.trial", {}, BY_POLICY),
    "scores": ("evaluate", {}, BY_POLICY),
}


@pytest.mark.first(1)
@pytest.mark.parametrize("kind", UNCOVERED)
def test_under_a_limit_nothing_uncovered_leaves(kind: str, tmp_path: Path) -> None:
    outcome = federate(
        tmp_path / "out", SAME | {"num-server-rounds": 1}, deployed(tmp_path, policy__privacy__epsilon=50.0)
    )
    before = paid(tmp_path)
    message, order, reason = UNCOVERED[kind]
    content, node = again(outcome, **order)
    said = refusal(message, content, node)
    assert reason in said
    assert "50" not in said
    assert paid(tmp_path) == before


def test_instructions_with_gradients_outside_dp_sgd_are_refused(tmp_path: Path) -> None:
    """A hostile order may pair wrapper and strategy as no server would; its steps would not be private."""
    plain = SAME | suiting("fedkseed") | {"strategy": "fedkseed", "wrappers": "", "num-server-rounds": 1}
    outcome = federate(tmp_path / "out", plain, deployed(tmp_path))
    content, node = again(outcome, wrappers="example-privacy", example_privacy__noise=1.0)
    assert "learns without gradients" in refusal("train", content, node)


def test_a_damaged_account_stops_a_node(tmp_path: Path) -> None:
    outcome = federate(tmp_path / "out", SAME, deployed(tmp_path))
    (path,) = accounts(tmp_path)
    path.write_text("")
    content, node = again(outcome)
    said = refusal("train", content, node)
    assert "privacy account cannot be used" in said
    assert str(tmp_path) not in said


@pytest.mark.slow
def test_it_outlives_what_is_forgotten_with_time(tmp_path: Path) -> None:
    outcome = federate(tmp_path / "out", SAME, deployed(tmp_path))
    (path,) = accounts(tmp_path)
    long_ago = path.stat().st_mtime - 100 * KEPT_FOR
    for place in (path, path.parent):
        os.utime(place, (long_ago, long_ago))
    (tmp_path / "store-0" / SWEPT).unlink(missing_ok=True)
    ClientStore(local(outcome.grid, outcome.grid.of("train")[0]), 1)._forget_old()
    assert path.exists()


def test_instructions_without_privacy_cost_nothing(tmp_path: Path) -> None:
    federate(tmp_path / "out", SAME | {"wrappers": ""}, deployed(tmp_path))
    assert not (tmp_path / "store-0" / "accounts").exists()


@pytest.mark.slow
def test_simulated_nodes_start_anew_with_every_run(tmp_path: Path) -> None:
    own = nodes(tmp_path)
    for _ in range(2):
        outcome = federate(tmp_path / "out", SAME, InProcessGrid(client_app.app, 2, own))
        assert not any(node["refused"] for line in outcome.rounds for node in line["nodes"])
    assert not accounts(tmp_path)


# ---------------------------------------------------------------------- a lifetime


@pytest.mark.slow
def test_a_lifetime_budget_over_three_runs_with_kills(tmp_path: Path) -> None:
    """Runs of epsilon 3 each, killed in a round and resumed, node and server: the limit of 5 holds, and an account that
    dp-accounting keeps of what left the nodes agrees."""
    journal: list[Any] = []
    limit = 5.0

    class Watched(InProcessGrid):
        """A deployed Witness."""

        def __init__(self, name: str, trained: int = -1) -> None:
            own = nodes(tmp_path, policy__privacy__epsilon=limit)
            named = {number: {**config, "name": f"{name}-{number}"} for number, config in own.items()}
            super().__init__(client_app.app, 2, named, deployed=True, ids=len(journal))
            self.left = trained
            self.spoil = self._spoil
            self.asked: Any = None

        def delivered(self, message: Any) -> Any:
            self.asked = message
            return super().delivered(message)

        def _spoil(self, partition: int, kind: str, reply: Any) -> Any:
            if kind == "train":
                assignment = self.asked.content["assignment"]
                journal.append(Left(partition, assignment["server-round"], assignment["noise"], 1, 1))
                self.left -= 1
                if self.left == 0:
                    raise Killed
            return reply

    refused: list[str] = []
    for run in range(3):
        folder = tmp_path / f"run-{run}"
        with pytest.raises(Killed):
            federate(folder, SAME | {"num-server-rounds": 3, "max-failed-rounds": 9}, Watched(f"run-{run}", trained=3))
        try:
            outcome = resumed((folder / "latest").resolve(), None, Watched(f"again-{run}"))
        except RunFailed as error:
            refused.append(str(error))
        else:
            refused += [node["refused"] for line in outcome.rounds for node in line["nodes"] if node["refused"]]
        for node in range(2):
            own = [one for one in journal if one.node == node]
            mine = paid(tmp_path, node)
            assert epsilon([one.update() for one in own], DELTA) * 0.998 <= mine <= limit
    assert any("the privacy that its owner allows is spent" in reason for reason in refused)
    assert largest(journal, DELTA) > 3.0
    lines = [json.loads(line) for line in accounts(tmp_path)[0].read_text().splitlines()[1:]]
    assert len({line["run"] for line in lines}) >= 2
    assert len(lines) == sum(one.node == 0 for one in journal)


def test_an_owner_sees_what_has_been_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "accounts"
    for run, times in (("a", 3), ("b", 1)):
        for number in range(times):
            Account.at(folder, "/data/scans").pay([ONE], run, "clinic-1", number, NO_LIMIT)
    assert main(["account", str(tmp_path), "--delta", "1e-6"]) == 0
    said = capsys.readouterr().out
    assert "/data/scans" in said
    assert "3 messages, local-privacy" in said
    spent = epsilon_of({Release(2.0): 4}, 1e-6)
    assert f"in all: epsilon {spent:.2f} at delta 1e-06 (by PLD), 4 messages" in said
    Account.at(folder, "/data/scans").path.write_bytes(b"torn")
    assert main(["account", str(folder)]) == 3
    assert "is cut off" in capsys.readouterr().err
    (tmp_path / "new").mkdir()
    assert main(["account", str(tmp_path / "new")]) == 0
    assert "no account in" in capsys.readouterr().out
