"""A server without the base: the same bits as with it, no weights read, nodes with another base told apart."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, data, made, settings
from flwr.app import Context, Message
from in_process import InProcessGrid, equal, federate, resumed
from safetensors.torch import load_file
from samples import language_base, write_table
from test_causal import ROWS, based, flat

import client_app
import strategies
from strategies.exchange.bare_base import found_base
from strategies.exchange.types import RunFailed
from strategies.rounds.context import RunContext
from task.config import Model, TaskConfig
from task.models.bare import is_absent
from task.models.base import Base, BaseError
from task.models.finding import server_base
from task.models.model import build
from task.storage.store import Store
from task.tunings import registry

WEIGHTS = "model.safetensors"
# Heads of more than one layer: the one for other classes is drawn anew, and the others are weights of the base.
WITH_A_BODY = {
    "roberta", "distilbert", "deberta-v2", "mpnet", "longformer", "bart", "t5", "xlnet", "electra", "modernbert"
}  # fmt: skip
READING = {"dora", "ssf", "head", "norm", "full", "lora-sb"}  # on a Llama, they need its weights on the server


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return based(language_base(tmp_path_factory.mktemp("tiny")))


def config(base: Base, **options: object) -> TaskConfig:
    named = {name.replace("__", ".").replace("_", "-"): value for name, value in options.items()}
    return TaskConfig.read(flat(Path("given")) | {"model.name": str(base.folder), "evaluate": "nodes"} | named)


def same_start(real: Base, config: TaskConfig, *bares: Base) -> None:
    """Adapters of a model without weights are those of the model with weights, and its weights take no memory."""
    whole = build(real, config, 2, "cpu")
    for bare in bares:
        model = build(bare, config, 2, "cpu")
        assert equal(model.trained, whole.trained)
        assert model.frozen.keys() == whole.frozen.keys()
        assert all(is_absent(tensor) for tensor in model.frozen.values())
        assert model.notices == whole.notices


def without_weights(base: Base, folder: Path) -> Base:
    """The same base without its weights, in `folder`."""
    for path in base.folder.iterdir():
        if path.is_file() and path.name != WEIGHTS:
            shutil.copyfile(path, folder / path.name)
    return Base(base.name, folder, "", bare=True)


# ------------------------------------------------------------------------------------------- the same bits
@pytest.mark.parametrize(
    ("tuning", "bits"),
    [(tuning, "none") for tuning in ("lora", "ia3", "prompt", "prefix", "adapter")]
    + [
        ("lora", "4bit"),
        ("prefix", "4bit"),
        ("adapter", "4bit"),
        ("lora", "8bit"),
        ("ia3", "8bit"),
        ("prompt", "8bit"),
    ],
)
def test_what_a_tuning_adds_has_the_bits_that_it_has_with_weights(
    base: Base, tuning: str, bits: str, tmp_path: Path
) -> None:
    if bits != "none":
        pytest.importorskip("bitsandbytes")
    options = {"tuning": tuning, "model__quantization": bits, "model__dtype": "bfloat16"}
    same_start(base, config(base, **options), replace(base, bare=True), without_weights(base, tmp_path))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "bert" else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_a_new_head_has_the_bits_that_it_has_with_weights(name: str, tmp_path: Path) -> None:
    made(name, tmp_path)
    real = server_base(Model(name=str(tmp_path)), Store(tmp_path / "store"))
    kind, more = ARCHITECTURES[name].kind, {"lora.targets": "all"}
    labels = {} if kind == "causal-lm" else {"data.labels": "one|two|three|four"}
    task = settings(name, tmp_path, data(tmp_path)[kind], "lora", **more, **labels)
    found, why = found_base(strategies.load("fedavg"), replace(task, evaluate="nodes"), Store(tmp_path / "store"))
    assert found.bare == (name not in WITH_A_BODY)
    if found.bare:
        same_start(real, task, found)
    else:
        assert why.startswith("tuning = 'lora' starts '")


# ------------------------------------------------------------------------------------------- when weights are read
@pytest.mark.parametrize("tuning", sorted(set(registry.names()) - {"bias"}))
def test_the_server_reads_weights_only_where_a_run_starts_from_them(base: Base, tuning: str, tmp_path: Path) -> None:
    found, why = found_base(strategies.load("fedavg"), config(base, tuning=tuning), Store(tmp_path))
    assert found.bare == (tuning not in READING)
    assert found.bare == (not why)


@pytest.mark.parametrize(
    ("strategy", "options", "why"),
    [
        ("fedavg", {"evaluate": "server"}, "evaluate = 'server' scores on the server"),
        ("flora", {}, "strategy = 'flora' changes the base"),
        ("fedavg", {"lora__init": "pissa"}, "tuning = 'lora' with these options starts from"),
        ("fedavg", {"tuning": "dora"}, "tuning = 'dora' starts '.*' from them"),
    ],
)
def test_weights_that_are_not_there_are_missed_with_the_reason(
    base: Base, strategy: str, options: dict[str, Any], why: str, tmp_path: Path
) -> None:
    less = without_weights(base, tmp_path)
    with pytest.raises(BaseError, match="no safetensors" if "evaluate" in options else f"needs .*weights: {why}"):
        found_base(strategies.load(strategy), config(less, **options), Store(tmp_path / "store"))


# ------------------------------------------------------------------------------------------- a run
class Apart(InProcessGrid):
    """Nodes that have the base's weights, and a server that has none: they are there only while a node works. `other`
    are the weights of some nodes, by partition."""

    def __init__(
        self, folder: Path, weights: Path, nodes: int, other: dict[int, Path] | None = None, **more: Any
    ) -> None:
        super().__init__(client_app.app, nodes, **more)
        self.folder, self.weights, self.other = folder, weights, other or {}

    def answer(self, message: Message, context: Context) -> Message | None:
        place = self.folder / WEIGHTS
        place.hardlink_to(self.other.get(self.partitions[context.node_id], self.weights))
        try:
            return super().answer(message, context)
        finally:
            place.unlink()


def options_of(base: Base, tmp_path: Path) -> dict[str, Any]:
    rows = write_table(tmp_path / "rows.jsonl", ROWS)
    own = {"model.name": str(base.folder), "evaluate": "nodes", "tuning": "lora", "simulation.num-supernodes": 3}
    return flat(rows) | own | {"lora.ranks": "2", "local-steps": 1, "num-server-rounds": 2}


@pytest.fixture
def apart(base: Base, tmp_path: Path) -> Base:
    (folder := tmp_path / "server").mkdir()
    return replace(without_weights(base, folder), name=str(folder))


def test_a_run_without_weights_on_the_server_ends_with_the_same_bits(
    base: Base, apart: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Apart(apart.folder, base.folder / WEIGHTS, 3)
    outcome = federate(tmp_path / "apart", options_of(apart, tmp_path), grid)
    adapter = load_file(outcome.folder / "model" / "last" / "adapter_model.safetensors")
    assert grid.log.count((0, "query.rehearsal")) == 1, "a node runs the model once in place of the server"
    assert not [partition for partition, kind in grid.log if kind == "query.rehearsal" and partition]
    card = (outcome.folder / "model" / "last" / "README.md").read_text()
    assert f"| base fingerprint | `{base.fingerprint}` |" in card
    monkeypatch.setattr(RunContext, "_found", property(lambda context: base))
    whole = federate(tmp_path / "whole", options_of(base, tmp_path))
    assert equal(outcome.state().tensors, whole.state().tensors)
    assert equal(adapter, load_file(whole.folder / "model" / "last" / "adapter_model.safetensors"))


@pytest.mark.slow
def test_a_node_with_another_base_is_left_out_and_still_is_after_a_resume(
    base: Base, apart: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    other = tmp_path / "other.safetensors"
    other.write_bytes((base.folder / WEIGHTS).read_bytes()[:-2] + b"\0\0")
    options, grid = options_of(apart, tmp_path), Apart(apart.folder, base.folder / WEIGHTS, 3, {1: other})
    with caplog.at_level(logging.WARNING, "flwr"):
        outcome = federate(tmp_path / "runs", options, grid)
    assert f"({base.fingerprint}) and the server has no weights of it to offer" in caplog.text
    assert sorted(node["node"] for node in outcome.rounds[-1]["nodes"]) == ["0", "2"]
    with pytest.raises(RunFailed, match="0 of 2 nodes"):
        resumed(outcome.folder, {"num-server-rounds": 3}, Apart(apart.folder, other, 2))


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "asked"), [(1, 2), (5, 3)])
def test_another_node_runs_the_model_where_the_first_cannot(
    base: Base, apart: Base, tmp_path: Path, broken: int, asked: int
) -> None:
    """One node cannot keep all others out; if three cannot run it, nobody waits for the others to try."""

    def spoil(partition: int, kind: str, answer: Message) -> Message:
        if kind == "query.rehearsal" and partition < broken:
            del answer.content["metrics"]
        return answer

    grid = Apart(apart.folder, base.folder / WEIGHTS, 5, spoil=spoil)
    options = options_of(apart, tmp_path) | {"simulation.num-supernodes": 5, "num-server-rounds": 1}
    if broken == 5:
        with pytest.raises(RunFailed, match=r"0 of 5 nodes .* node 4: node 2 could not run the model: .* no metrics"):
            federate(tmp_path / "runs", options, grid)
    else:
        outcome = federate(tmp_path / "runs", options, grid)
        assert sorted(node["node"] for node in outcome.rounds[-1]["nodes"]) == ["1", "2", "3", "4"]
    assert [partition for partition, kind in grid.log if kind == "query.rehearsal"] == list(range(asked))


@pytest.mark.slow
def test_nodes_that_do_not_agree_on_a_base_fail_the_run(base: Base, apart: Base, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes((base.folder / WEIGHTS).read_bytes()[:-2] + b"\0\0")
    options, grid = options_of(apart, tmp_path), Apart(apart.folder, base.folder / WEIGHTS, 2, {1: other})
    with pytest.raises(RunFailed, match=f"nodes have different bases, {base.fingerprint} .node 0. and .* .node 1."):
        federate(tmp_path / "runs", options, grid)
