"""A hostile server: every key of an order and of a ticket with every hostile value, in every kind of message, to a
deployed node with secrets in its file, beside it and in its environment. Nothing of them is in any reply."""

import itertools
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from deployed_node import asked, context
from flwr.app import ConfigRecord, Context, RecordDict
from samples import TEXTS, write_table
from tuned import samples

import strategies
from client_app.public_errors import NodeFailed
from strategies.exchange.types import Assignment, State
from strategies.protocol import instructions, wire
from task.config import TaskConfig
from task.models.base import Base, files
from task.models.model import build
from task.schema import schema
from task.tunings import registry

VALUE, REPLAY_STATE, ENVIRONMENT, PLACE = "Ada-Lovelace-1815", "Grace-Hopper-1906", "Mary-Somerville-1780", "ward-seven"
SECRETS = (VALUE, REPLAY_STATE, ENVIRONMENT, PLACE)
EVERY = int(os.environ.get("FUZZ_HOSTILE", "37"))  # of so many orders one is tried; `make fuzz` tries all
KINDS = ("query.profile", "query.base", "query.rehearsal", "query.trial", "train", "evaluate")
ASSIGNMENT = {"server-round": 1, "rounds": 2, "seed": 3, "rank": 0, "cohort": 3, "noise": 0.0}
SEEDED: dict[str, dict[str, Any]] = {
    "ferret": {"coordinates": 64, "block": 256},
    "fedkseed": {"directions": 64, "block": 4096},
}
NOISY = ("local-privacy", "example-privacy")
LONGEST = 10.0  # seconds of a message, of which the policy allows 2 to its work
ROWS = 36


@dataclass(frozen=True)
class Scene:
    """A node, and what a server of its run sends."""

    folder: Path
    base: Base
    node: Context
    flat: dict[str, Any]
    honest: dict[tuple[str, str], RecordDict] = field(default_factory=dict)

    def message(self, kind: str, owner: str, key: str = "", value: Any = None) -> RecordDict:
        """What is sent in a run with the strategy, wrapper or tuning `owner`, one key changed."""
        if (kind, owner) not in self.honest:
            self.honest[kind, owner] = self._written(kind, owner)
        content = RecordDict({**self.honest[kind, owner]})
        record = "assignment" if key in ASSIGNMENT else "instructions"
        if key and record in content:
            content[record] = ConfigRecord({**content.config_records[record], key: value})
        return content

    def _written(self, kind: str, owner: str) -> RecordDict:
        wrappers = [strategies.load_wrapper(owner)] if owner in strategies.wrapper_names() else []
        strategy = strategies.load(
            owner if owner in strategies.names() else "fedavg", wrappers, **SEEDED.get(owner, {})
        )
        options = {"tuning": owner} if owner in registry.names() else {"tuning": "bias"} if owner in SEEDED else {}
        options |= {"evaluate": "server"} if owner in NOISY else {}
        config = TaskConfig.read({**self.flat, **options})
        assignment = Assignment(1, 2, 3, 2 if config.tuning.has_ranks else 0, noise=8.0 if owner in NOISY else 0.0)
        record = instructions.write(config, strategy, self.base.fingerprint, assignment.rank, "ab" * 16)
        content = RecordDict({"instructions": record})
        if kind == "query.base":
            every = files(self.base.folder).items()
            sent = {name: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for name, path in every}
            content.update(wire.pack(State(sent)))
        if kind in ("train", "evaluate"):
            content["assignment"] = instructions.write_assignment(assignment, prove=True, cohort=3)
            state = strategy.initial(build(self.base, config, assignment.rank, "cpu"))
            content.update(wire.pack(strategy.start_of(state, assignment)))
        return content


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Iterator[Scene]:
    sample = samples(tmp_path_factory.mktemp("server"), words)["bert"]
    folder = tmp_path_factory.mktemp("node") / PLACE
    texts = (TEXTS * 3)[:ROWS]
    columns: dict[str, list[object]] = {
        "text": [text for text, _ in texts], "label": [label for _, label in texts],
        "ssn": [f"{VALUE}-{row}" for row in range(ROWS)],
    }  # fmt: skip
    data = write_table(folder / "patients.csv", columns)
    write_table(folder / "neighbour.csv", {"text": [REPLAY_STATE] * 30, "label": [REPLAY_STATE, "x"] * 15})
    (folder / "secrets.txt").write_text(REPLAY_STATE)
    node = context(data_path=str(data), store_path=str(folder / "store"), device="cpu")
    flat = {key: value for key, value in sample.flat.items() if key not in ("data.name", "model.name")}
    flat |= {"model.name": "bert", "data.name": "texts", "data.partitioner": "none", "tuning": "lora", "local-steps": 2,
             "lora.targets": "query,value", "data.holdout": 0.3, "evaluate": "both"}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLINIC_TOKEN", ENVIRONMENT)
        patch.setenv("HF_TOKEN", ENVIRONMENT)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        patch.chdir(folder)
        patch.setattr(logging.getLogger("flwr"), "level", logging.CRITICAL)  # else a line an order
        scene = Scene(folder, sample.base, node, flat)
        everything(node, "query.base", scene.message("query.base", "fedavg"))
        yield scene
    assert not list(folder.rglob("*passwd*"))


def hostile(folder: Path) -> list[object]:
    """Values of every kind; one list, whatever a key is for."""
    return [
        "ssn", "text,ssn", "patients", f"{VALUE}-3", "|".join(f"{VALUE}-{row}" for row in range(ROWS)), "x|y",
        "../", "../neighbour.csv", "neighbour.csv", "../../etc/passwd", "/etc/passwd", "/proc/self/environ", "~", "/",
        str(folder), str(folder / "secrets.txt"), "file:///etc/passwd", "http://127.0.0.1:9/", "csv", "$CLINIC_TOKEN",
        "", "\0", "x" * 100_000, "{{ 7 * 7 }}", "auto", "none", "full", "nodes", "sgd",
        -1, 0, 1, 2**31, 2**62, -(2**62), 0.5, 1e-300, 1e308, -1e308, float("inf"), float("nan"), True, False,
        b"\xff", ["ssn"], [1, 2],
    ]  # fmt: skip


def keys() -> list[str]:
    added = [instructions.BASE, instructions.RANK, instructions.RUN]
    return [
        *schema(TaskConfig),
        *instructions.CHOICE,
        *strategies.option_keys(),
        *added,
        *ASSIGNMENT,
        "basis",
        "prove",
        "no-such",
    ]


def everything(node: Context, kind: str, content: RecordDict) -> tuple[str, bytes]:
    """What a node answers: as text, and as bytes of tensors."""
    try:
        reply = asked(kind, dict(content), node).content
    except NodeFailed as error:
        return f"error {error}", b""
    arrays = b"".join(array.data for record in reply.array_records.values() for array in record.values())
    texts = [str(dict(record)) for record in (*reply.config_records.values(), *reply.metric_records.values())]
    return " ".join(texts), arrays


@pytest.mark.slow
def test_an_honest_server_is_answered(scene: Scene) -> None:
    """Else the test below would show nothing."""
    for kind in ("query.base", *KINDS):
        for owner in (*strategies.names(), *strategies.wrapper_names(), *registry.names()):
            if (kind, owner) in [("evaluate", name) for name in NOISY]:
                continue  # scores would have no noise
            text, arrays = everything(scene.node, kind, scene.message(kind, owner))
            assert not text.startswith("error"), (kind, owner, text)
            assert bool(arrays) == (kind == "train")


@pytest.mark.judged
@pytest.mark.first(1)
@pytest.mark.parametrize("kind", KINDS)
def test_no_instructions_reveal_a_secret(scene: Scene, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    node = context(**{name.replace("-", "_"): value for name, value in scene.node.node_config.items()})
    node.node_config["policy.max-seconds"] = 2.0
    count = answered = 0
    slowest, began = 0.0, time.monotonic()
    pairs = list(itertools.product(keys(), hostile(scene.folder)))
    for number, (key, value) in enumerate(pairs, start=KINDS.index(kind)):
        if number % EVERY == 0:
            content = scene.message(kind, key.split(".")[0], key, value)
            asked_at = time.process_time()  # of a core, which other work on the machine does not change
            text, arrays = everything(node, kind, content)
            seconds = time.process_time() - asked_at
            slowest, count, answered = max(slowest, seconds), count + 1, answered + (not text.startswith("error"))
            for secret in SECRETS:
                if secret not in str(value):  # else the server has said it itself
                    assert secret not in text, (key, value, text[:2000])
                assert secret.encode() not in arrays, (key, value)
            assert seconds < LONGEST, (key, value, seconds)
    with capsys.disabled():
        whole = time.monotonic() - began
        print(f"\n{kind}: {count} hostile orders, {answered} answered, slowest {slowest:.1f} s, {whole:.0f} s in all")
    assert len(pairs) > 5000
    assert count >= len(pairs) // EVERY
    assert os.environ["CLINIC_TOKEN"] == ENVIRONMENT
