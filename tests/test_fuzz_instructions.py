"""Thousands of damaged messages to a deployed node: each is refused by class and key, or obeyed within the policy.

The messages are those of real runs, to the real ClientApp through Flower's own encoding. `make fuzz` asks for 5,000.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from fuzzing import GONE, Tried, many
from hypothesis import strategies as st
from in_process import InProcessGrid, federate
from instruction_mutations import Change, changes
from samples import write_table
from tuned import samples

import client_app
from client_app.public_errors import NodeFailed
from strategies.algebra.tensors import raw
from strategies.exchange.types import Refused
from strategies.protocol import instructions, wire
from strategies.protocol.replies import INSTALLED
from thistledown.simulation.grid import through_wire

ALL = int(os.environ.get("FUZZ_INSTRUCTIONS", "400"))
STEPS, RANK, SECONDS = 8, 8, 8.0  # that the node's policy allows at most
SLOWEST, LARGEST = 2 * SECONDS, 400  # seconds of a core for one message; MiB that the process may grow by
TRIED = Tried("messages")
RUNS: dict[str, dict[str, Any]] = {
    "fedavg": {"strategy": "fedavg", "evaluate": "both", "data.holdout": 0.4, "wrappers": "quantize"},
    "rbla": {"strategy": "rbla", "lora.ranks": "auto", "lora.auto-ranks": "2,4"},
    "flora": {"strategy": "flora", "num-server-rounds": 2},  # with an entry of the journal
    "ferret": {"strategy": "ferret", "tuning": "bias", "ferret.coordinates": 64, "ferret.block": 256},
    # Without a budget, which would end with the first message that is sent again.
    "private": {"wrappers": "local-privacy", "local-privacy.epsilon": 0.0, "local-privacy.noise": 1.0},
}


@dataclass(frozen=True)
class Question:
    """A message that a node was sent in a run, and what it said that it installed."""

    kind: str
    content: RecordDict
    node: Context
    installed: object
    tensors: object


@dataclass(frozen=True)
class Answer:
    """What came back: records, or the error that leaves the node."""

    content: RecordDict | None
    error: str


@pytest.fixture(scope="module")
def secrets() -> list[list[str]]:
    """Values of the nodes' rows: letters that are not in hex digests, which have any six digits now and then."""
    numbers = [[(7919 * (n + 1) * (k + 3)) % 10**8 for k in range(24)] for n in range(2)]
    return [[f"Qz{n}{k}-{spelled(number)}-Wv" for k, number in enumerate(own)] for n, own in enumerate(numbers)]


def spelled(number: int) -> str:
    """Return eight letters for a number."""
    return "".join("ghjkmnpqrs"[int(digit)] for digit in f"{number:08d}")


@pytest.fixture(scope="module")
def questions(
    tmp_path_factory: pytest.TempPathFactory, words: Path, secrets: list[list[str]]
) -> dict[str, list[Question]]:
    """Of every run, the last message of each kind to the first node."""
    folder = tmp_path_factory.mktemp("orders")
    sample, found = samples(folder, words)["bert"], dict[str, list[Question]]()
    for name, options in RUNS.items():
        own = {}
        for node, cells in enumerate(secrets):
            table = {"text": [f"a {'good' if k % 2 else 'bad'} film {c}" for k, c in enumerate(cells)]}
            table |= {"label": ["good" if k % 2 else "bad" for k in range(len(cells))], "ssn": cells}  # type: ignore[dict-item]
            path = write_table(folder / f"Pt{node}Kx-ward" / "Rows-Lm.csv", table)
            limits = {"policy.max-steps": STEPS, "policy.max-rank": RANK, "policy.max-seconds": SECONDS}
            own[node] = {
                "data-path": str(path),
                "name": f"site-{node}",
                "store-path": str(folder / name / f"St{node}Vk-store"),
            }
            own[node] |= limits
        grid = InProcessGrid(client_app.app, 2, own, deployed=True)
        settings_ = {"num-server-rounds": 1, "simulation.num-supernodes": 2, "data.partitioner": "none"}
        federate(folder / name, sample.flat | {"local-steps": 2, "batch-size": 8} | settings_ | options, grid)
        last = {exchange.kind: exchange for exchange in grid.exchanges if exchange.partition == 0}
        context = next(c for node, c in grid.contexts.items() if grid.partitions[node] == 0)
        found[name] = []
        for exchange in last.values():
            reply = exchange.reply
            assert reply is not None
            metrics = reply.metric_records.get("metrics", {})
            found[name].append(
                Question(exchange.kind, exchange.request, context, metrics.get(INSTALLED), _state(exchange.request))
            )
    return found


def asked(question: Question, alterations: list[Change]) -> tuple[RecordDict, Answer]:
    """What the node makes of a damaged message. Raises nothing but what no message may do."""
    content = RecordDict(dict(question.content))
    for change in alterations:
        with suppress(
            *GONE, ZeroDivisionError
        ):  # what there is not in this kind of message, or an earlier change has destroyed
            change(content)
    message = Message(content, dst_node_id=question.node.node_id, message_type=question.kind)
    message.metadata.__dict__["_message_id"] = "question"
    try:
        reply = client_app.app(through_wire(message), question.node)
        return content, Answer(through_wire(reply).content, "")
    except NodeFailed as error:
        return content, Answer(None, f"{type(error)}:<{str(error)!r}>")


def assert_lawful(question: Question, content: RecordDict, answer: Answer) -> None:
    """Obeyed was an order that can be read, within the policy; and of a state what was sent, which the server sees."""
    assert answer.content is not None
    said = content.config_records["instructions"]
    config = instructions.task_of(said)
    assert not config.model.trust_remote_code
    metrics = answer.content.metric_records.get("metrics", {})
    assert metrics.get("steps", 0) <= STEPS
    if question.kind in ("train", "evaluate"):
        instructions.strategy_of(said)
        assignment = instructions.read_assignment(content.config_records["assignment"])
        assert assignment.rank <= RANK
        if _state(content) != question.tensors:
            assert metrics.get(INSTALLED) != question.installed


def _state(content: RecordDict) -> object:
    """The numbers of a state, in whatever dtype they come, and its journal; None where it cannot be read."""
    try:
        state = wire.unpack(content)
    except Refused:
        return None
    tensors = [(name, tuple(t.shape), bytes(raw(t.to(torch.complex128)))) for name, t in state.tensors.items()]
    return sorted(tensors), state.positions


def assert_untold(answer: Answer, hidden: list[str]) -> None:
    """Nothing that left has as much as six characters of a cell, or of a path of the node, in a row."""
    told = answer.error.encode()
    if answer.content is not None:
        parts = get_all_nested_objects(answer.content).values()
        told = b"".join(part.deflate() for part in parts)
    for text in hidden:
        for start in range(len(text) - 5):
            assert text[start : start + 6].encode() not in told, (text, told[:300])


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_damaged_message_is_refused_or_obeyed_within_the_policy(
    name: str, questions: dict[str, list[Question]], secrets: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    seen = TRIED.case()
    hidden = [*secrets[0], *secrets[1], "Pt0Kx-ward", "Rows-Lm", "St0Vk-store"]
    sound = [question for question in questions[name] if question.kind != "query.base"]
    for question in sound:
        assert asked(question, [])[1].content is not None

    drawn = st.sampled_from(questions[name]), st.lists(changes(), min_size=1, max_size=2)

    @many(-(-ALL // len(RUNS)), len(name) + sum(map(ord, name)), *drawn)
    def damage(question: Question, alterations: list[Change]) -> None:
        began = time.process_time()
        content, answer = asked(question, alterations)
        seen.saw("obeyed" if answer.content is not None else "refused", time.process_time() - began)
        assert_untold(answer, hidden)
        if answer.content is not None:
            assert_lawful(question, content, answer)
        else:
            assert len(answer.error) < 10_000 + len(str(content.config_records.get("instructions", "")))

    for question in sound:  # whatever it was asked in between, the node answers as before
        again = asked(question, [])[1].content
        assert again is not None
        assert again.metric_records.get("metrics", {}).get(INSTALLED) == question.installed
    seen.close(SLOWEST, LARGEST)


@pytest.mark.slow
def test_so_many_were_tried() -> None:
    """Last: the count, over all runs."""
    TRIED.assert_all(len(RUNS), ALL)
