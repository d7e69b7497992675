"""Nodes that connect while a run goes on: they hold nobody up, and cost no more than once."""

import time
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from in_process import Exchange, InProcessGrid, federate

import client_app

TIMEOUT = 30.0
OPTIONS: dict[str, Any] = {"num-server-rounds": 4, "tuning": "head", "round-timeout": TIMEOUT}


class Silent(InProcessGrid):
    """In every round another id is there of which nothing is ever heard; `instead` of one that is: node 0."""

    instead = False

    def __init__(self) -> None:
        super().__init__(client_app.app, 3)
        self.looks, self.mute = 0, set[int]()

    def get_node_ids(self) -> list[int]:
        self.looks += 1
        if self.looks > 2:
            self.mute.add(10**9 + self.looks)
        return [*super().get_node_ids(), *self.mute]

    def push_messages(self, messages: Any) -> list[str]:
        messages = list(messages)
        if messages[0].metadata.dst_node_id in self.mute:
            return [f"mute-{self.looks}"]
        return super().push_messages(messages)


@pytest.mark.judged
@pytest.mark.slow
def test_silent_ids_do_not_hold_up_a_round(tmp_path: Path) -> None:
    rounds = federate(tmp_path, OPTIONS, Silent()).rounds
    assert all(entry["seconds"] < TIMEOUT for entry in rounds)  # none waited for its deadline
    assert [len(entry["nodes"]) for entry in rounds] == [0, 3, 3, 3, 3]


@pytest.mark.slow
def test_an_id_that_stays_silent_is_left_out_when_its_time_is_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    federate(tmp_path, OPTIONS | {"round-timeout": 0.5, "num-server-rounds": 12}, Silent())
    assert "left out node 1000000003: no reply before the deadline" in caplog.text


class Late(InProcessGrid):
    """Node 0 restarts after the first round, and its answer to who it is takes until the next."""

    def __init__(self) -> None:
        super().__init__(client_app.app, 3)
        self.looks, self.slow = 0, dict[str, Message | None]()

    def get_node_ids(self) -> list[int]:
        self.looks += 1
        if self.looks == 4:
            self.restart(0)
        if self.looks == 5:
            self.waiting |= self.slow
        return super().get_node_ids()

    def push_messages(self, messages: Any) -> list[str]:
        ids = super().push_messages(messages)
        if self.looks == 4 and self.exchanges[-1].kind == "query.profile":
            self.slow |= {name: self.waiting.pop(name) for name in ids}
        return ids


@pytest.mark.slow
def test_an_answer_is_taken_when_it_is_there(tmp_path: Path) -> None:
    rounds = federate(tmp_path, OPTIONS, Late()).rounds
    assert [[line["node"] for line in entry["nodes"]] for entry in rounds[1:]] == [
        ["0", "1", "2"], ["1", "2"], ["0", "1", "2"], ["0", "1", "2"],
    ]  # fmt: skip


@pytest.mark.slow
def test_it_is_waited_for_where_nobody_else_could_train(tmp_path: Path) -> None:
    class Waiting(Late):
        def pull_messages(self, message_ids: Any) -> list[Message]:
            if self.looks == 4 and self.slow:
                self.pulls = getattr(self, "pulls", 0) + 1
                if self.pulls == 3:
                    self.waiting |= self.slow
            return super().pull_messages(message_ids)

    rounds = federate(tmp_path, OPTIONS | {"min-train-nodes": 3}, Waiting()).rounds
    assert [len(entry["nodes"]) for entry in rounds[1:]] == [3, 3, 3, 3]
    assert not any(entry["failed"] for entry in rounds)


@pytest.mark.slow
def test_a_node_that_grows_and_invents_stores_is_sent_the_base_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(partition: int, kind: str, answer: Message) -> Message:
        if (partition, kind) == (1, "query.profile"):
            said = answer.content.config_records["profile"]
            said["num-examples"], said["bases"] = 1, []
            said["store"] = f"store {time.monotonic_ns()}"
        return answer

    outcome = federate(tmp_path, OPTIONS, spoil=spoil)
    offers: list[Exchange] = [exchange for exchange in outcome.grid.of("query.base") if exchange.partition == 1]
    assert len(offers) == 1
    assert outcome.grid.log.count((1, "query.profile")) > 2
    assert caplog.text.count("it was sent the base and still lacks it") == 1
    assert [len(entry["nodes"]) for entry in outcome.rounds[1:]] == [3, 2, 2, 2]


@pytest.mark.slow
def test_a_store_is_sent_the_base_once_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks: the ids are new, the store is the same, and it lacks the base each time."""
    hours = [0.0]
    clock = time.time
    monkeypatch.setattr("strategies.rounds.run_state.time.time", lambda: clock() + hours[0] * 3600)

    class Restarting(InProcessGrid):
        looks = 0

        def get_node_ids(self) -> list[int]:
            self.looks += 1
            if self.looks > 3:
                self.restart(1)
                hours[0] += 0.4
            return super().get_node_ids()

    def spoil(partition: int, kind: str, answer: Message) -> Message:
        if (partition, kind) == (1, "query.profile"):
            answer.content.config_records["profile"]["store"] = "one of its own"
            answer.content.config_records["profile"]["bases"] = []
        return answer

    grid = Restarting(client_app.app, 3, spoil=spoil)
    outcome = federate(tmp_path, OPTIONS | {"num-server-rounds": 6}, grid)
    assert [exchange.partition for exchange in outcome.grid.of("query.base")].count(1) == 2
    assert [len(entry["nodes"]) for entry in outcome.rounds[1:]] == [3, 2, 2, 3, 2, 2]
