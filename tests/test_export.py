"""`thistledown export`: the tuned model again from a results folder, by the journal of a run or by its tensors."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from in_process import Outcome, federate
from safetensors.torch import load_file
from tuned import federation, samples

from strategies.algebra.tensors import raw
from task.models.model import kept_model
from task.models.usage import ready
from thistledown.main import DONE, WRONG, main

FERRET = {"strategy": "ferret", "tuning": "full", "ferret.coordinates": 256, "learning-rate": 0.002}
KINDS: list[dict[str, Any]] = [FERRET, FERRET | {"ferret.momentum": 0.5}, {"strategy": "rbla", "lora.ranks": "2,4"}]


@pytest.fixture(scope="module", params=KINDS, ids=["journal", "momentum", "adapters"])
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return federate(tmp_path_factory.mktemp("export"), request.param | {"num-server-rounds": 2})


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.first(1)
@pytest.mark.parametrize("which", ["last", "best"])
def test_the_model_is_rebuilt_bit_for_bit(outcome: Outcome, which: str, tmp_path: Path) -> None:
    kept_model.cache_clear()  # as in a process that has done nothing
    assert main(["export", str(outcome.folder), "--state", which, "--to", str(tmp_path)]) == DONE
    assert weights(tmp_path / which) == weights(outcome.folder / "model" / which) != {}


@pytest.mark.slow
def test_a_checkpoint_of_a_fully_tuned_model_is_small(outcome: Outcome) -> None:
    if not outcome.state().journal:
        pytest.skip("it keeps no journal")
    weighs = (outcome.folder / "model" / "last" / "model.safetensors").stat().st_size
    assert sum(len(raw(t)) for entry in outcome.state().journal for t in entry.tensors.values()) < weighs / 50
    assert (outcome.folder / "checkpoints" / "last.safetensors").stat().st_size < weighs / 20


def test_the_configuration_that_is_left_names_the_labels(outcome: Outcome) -> None:
    tables = tomllib.loads((outcome.folder / "config.toml").read_text())
    assert tables["data"]["labels"] == "|".join(outcome.task.data.labels) != ""


def test_what_is_no_results_folder_is_refused(
    outcome: Outcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path / "nowhere")]) == WRONG
    assert "nowhere is not a results folder" in capsys.readouterr().err
    (tmp_path / "config.toml").write_bytes((outcome.folder / "config.toml").read_bytes())
    assert main(["export", str(tmp_path)]) == WRONG
    assert "cannot read the checkpoint" in capsys.readouterr().err
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.safetensors").write_bytes(b"no such thing")
    assert main(["export", str(tmp_path)]) == WRONG
    assert "cannot read the checkpoint" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "llama"])
def test_a_merged_model_is_plain_and_has_the_logits_of_the_adapter(
    kind: str, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to rounding in float32; the adapter of a language model has its linear layers alone, as vLLM reads it."""
    sample = samples(tmp_path, words)[kind]
    outcome = federate(tmp_path / "run", federation(sample, "lora") | {"num-server-rounds": 1, "learning-rate": 0.02})
    assert main(["export", str(outcome.folder), "--state", "last", "--merge", "--to", str(tmp_path / "to")]) == DONE
    folder, adapter = tmp_path / "to" / "last-merged", outcome.folder / "model" / "last"
    assert not (folder / "adapter_config.json").exists()
    assert {path.name for path in adapter.iterdir()} - {path.name for path in folder.iterdir()} <= {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "lora, merged into the base" in card
    assert "library_name: transformers" in card
    auto = {"vit": transformers.AutoModelForImageClassification, "llama": transformers.AutoModelForCausalLM}[kind]
    ours = sample.logits(auto.from_pretrained(folder))
    theirs = sample.logits(ready(outcome.task, sample.base, adapter))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    untuned = sample.logits(auto.from_pretrained(sample.base.folder)) if kind == "llama" else None
    assert untuned is None or not torch.allclose(ours, untuned, rtol=1e-3, atol=1e-3)
    if kind == "llama":
        names = load_file(adapter / "adapter_model.safetensors")
        assert json.loads((adapter / "adapter_config.json").read_text())["modules_to_save"] is None
        assert all(name.endswith(("lora_A.weight", "lora_B.weight")) for name in names)
