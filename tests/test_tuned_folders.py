"""The folder of a tuned model: it loads by the lines that people write, and has all that goes along with a base."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import Outcome, federate
from test_tunings import moved
from tuned import FITTING, Sample, federation, samples

from server_app.results.measure import measure_of
from task.config import TaskConfig
from task.models.model import TunedModel
from task.models.naming import by_peft
from task.models.saving import restored, save, save_base, saved_as
from task.models.usage import usage
from task.tunings.base import OWN, PEFT
from thistledown.summary import summary_lines

PIPELINES = {"vit": "image-classification", "bert": "text-classification", "llama": "text-generation"}
REPLAY_STATE = {"vit": {"preprocessor_config.json"}, "bert": {"tokenizer.json", "tokenizer_config.json"}}
REPLAY_STATE["llama"] = {*REPLAY_STATE["bert"], "generation_config.json"}
OTHER = {"data.labels": "worse|better"}  # as many classes as the base's own head has, and other names


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, words: Path) -> dict[str, Sample]:
    return samples(tmp_path_factory.mktemp("folders"), words)


def saved(model: TunedModel, place: Path) -> Path:
    """The model after some training, as a run leaves it."""
    model.write(moved(model))
    save(model, place / "best", save_base(model, place / "base"))
    return place / "best"


def auto(kind: str, folder: Path, adapter: bool) -> Any:
    """By the one-liner for this kind of task."""
    import peft
    import transformers

    source: Any = peft if adapter else transformers
    names = {
        "vit": ("AutoModelForImageClassification", "AutoPeftModel"),
        "bert": ("AutoModelForSequenceClassification", "AutoPeftModelForSequenceClassification"),
        "llama": ("AutoModelForCausalLM", "AutoPeftModelForCausalLM"),
    }
    return getattr(source, names[kind][adapter]).from_pretrained(str(folder))


def transformers_reads(config: TaskConfig) -> bool:
    """Return whether transformers loads the folder by itself."""
    return saved_as(config) != OWN and config.tuning.transformers_loads


@pytest.mark.each_value
@pytest.mark.parametrize(("kind", "tuning"), FITTING)
def test_a_folder_loads_by_one_line(kinds: dict[str, Sample], kind: str, tuning: str, tmp_path: Path) -> None:
    """By transformers, where it can; by peft, where peft made the adapter; else by ours. Same logits and labels.

    The lines that the end of a run prints are such ones, and run as they are.
    """
    model = kinds[kind].build(tuning, **(OTHER if kind == "bert" else {}))
    folder = saved(model, tmp_path)
    expected = kinds[kind].logits(model.module)
    loaded = [auto(kind, folder, adapter=True)] if by_peft(model.module) else []
    own = str(model.base.folder) if model.base.name != "embedded" else ""
    loaded += [restored(folder, own)] if saved_as(model.config) == OWN else []
    loaded += [auto(kind, folder, adapter=False)] if transformers_reads(model.config) else []
    assert loaded
    for found in loaded:
        torch.testing.assert_close(kinds[kind].logits(found), expected, rtol=1e-5, atol=1e-5)
        if kind != "llama":
            assert found.config.id2label == dict(enumerate(model.config.data.labels))
            assert found.config.num_labels == len(model.config.data.labels)
    assert {path.name for path in folder.iterdir()} >= REPLAY_STATE[kind]
    lines = usage(model.config, model.base, folder, own)
    assert len(lines) == 3
    exec("\n".join(lines), {})


@pytest.mark.parametrize("tuning", ["full", "lora", "dora", "head", "ssf"])
def test_labels_of_another_number_load(kinds: dict[str, Sample], tuning: str, tmp_path: Path) -> None:
    """The base's own head has two classes."""
    model = kinds["bert"].build(tuning, **{"data.labels": "a|b|c|d"})
    folder = saved(model, tmp_path)
    found = auto("bert", folder, adapter=saved_as(model.config) == PEFT)
    assert found.config.label2id == {"a": 0, "b": 1, "c": 2, "d": 3}
    torch.testing.assert_close(kinds["bert"].logits(found), kinds["bert"].logits(model.module), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tuning", ["full", "lora", "norm", "ia3", "dora"])
def test_a_pipeline_takes_the_folder(kinds: dict[str, Sample], tuning: str, tmp_path: Path) -> None:
    from transformers import pipeline

    for kind in ("bert", "llama"):
        folder = saved(kinds[kind].build(tuning, **(OTHER if kind == "bert" else {})), tmp_path / kind)
        [said] = pipeline(PIPELINES[kind], model=str(folder))("a good film")
        assert kind == "llama" or said["label"] in ("worse", "better")


def test_a_base_that_its_name_leads_to_is_not_copied(kinds: dict[str, Sample], tmp_path: Path) -> None:
    """A causal model has no labels; a classifier whose labels differ needs a base that says so."""
    for kind, tuning, copied in (("llama", "lora", False), ("bert", "lora", True), ("bert", "full", False)):
        model = kinds[kind].build(tuning)
        place = tmp_path / kind / tuning
        saved(model, place)
        assert (place / "base").is_dir() == copied


# ------------------------------------------------------------------------------- what a run leaves
RUNS = [("vit", "lora"), ("bert", "lora"), ("bert", "bias"), ("llama", "lora")]


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def outcome(
    kinds: dict[str, Sample], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    kind, tuning = request.param
    return federate(tmp_path_factory.mktemp("run"), federation(kinds[kind], tuning) | {"num-server-rounds": 2})


@pytest.mark.slow
def test_the_end_of_a_run_prints_lines_that_run_elsewhere(outcome: Outcome, tmp_path: Path) -> None:
    """In another process, in another folder, after a copy to where people paste things."""
    said = summary_lines(outcome.summary)
    place = said.index("the tuned model, in Python:")
    lines = said[place + 1 : place + 4]
    assert str(outcome.folder / "model" / "best") in lines[1]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.first(1)
def test_a_card_has_facts_and_no_place_or_name_of_a_node(outcome: Outcome) -> None:
    from huggingface_hub import ModelCard

    text = (outcome.folder / "model" / "best" / "README.md").read_text()
    card = ModelCard(text)
    adapter = saved_as(outcome.run.task) == PEFT
    assert card.data.library_name == ("peft" if adapter else "transformers")
    assert {"thistledown", "federated-learning", "fedavg", outcome.run.task.tuning.name} <= set(card.data.tags)
    assert card.data.pipeline_tag in PIPELINES.values()
    assert card.data.base_model is None  # it is a folder of this machine
    for fact in ("| strategy | fedavg |", "| nodes | 2 |", "| privacy | no differential privacy |"):
        assert fact in text
    best = next(line for line in outcome.rounds if line["round"] == outcome.summary["best-round"])
    told = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert told == {name: best[name] for name in measure_of(outcome.run.task).titles if best[name] is not None}
    assert f"Source: metrics.jsonl, round {best['round']}: the test part, scored by the server." in text
    assert "`learning-rate = " in text
    assert "/" not in text.replace("</", "").replace("https://", "").partition("## Use")[0].replace("text/", "")
    assert str(outcome.folder) not in text


@pytest.mark.first(1)
def test_every_file_has_the_folders_mode(outcome: Outcome) -> None:
    """A colleague who may read the folder may read what is in it: safetensors writes files for the owner alone."""
    for path in outcome.folder.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o777 == path.parent.stat().st_mode & 0o666, path


# ------------------------------------------------------------------------------- the next run
@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["full", "bias", "head", "ssf", "norm", "lora"])
@pytest.mark.parametrize("kind", ["vit", "bert", "llama"])
def test_the_next_run_begins_where_this_one_ended(
    kinds: dict[str, Sample], kind: str, tuning: str, tmp_path: Path
) -> None:
    if (kind, tuning) not in FITTING:
        pytest.skip("the model has nothing of that kind")
    options = federation(kinds[kind], tuning)
    first = federate(tmp_path / "first", options)
    last = str(first.folder / "model" / "last")
    second = federate(tmp_path / "second", options | {"model.name": last})
    for metric in ("accuracy", "loss"):
        assert second.rounds[0][metric] == pytest.approx(first.rounds[-1][metric], abs=1e-5)


@pytest.mark.slow
def test_another_tuning_of_the_next_run_loads_too(kinds: dict[str, Sample], tmp_path: Path) -> None:
    first = federate(tmp_path / "first", federation(kinds["bert"], "full"))
    second = federate(
        tmp_path / "second",
        federation(kinds["bert"], "lora") | {"model.name": str(first.folder / "model" / "best")},
    )
    found = auto("bert", second.folder / "model" / "best", adapter=True)
    assert found.config.id2label == {0: "good", 1: "bad"}
    base = json.loads((second.folder / "model" / "best" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(first.folder / "model" / "best")  # its labels are those of the run already
    assert not (second.folder / "model" / "base").exists()


def test_what_is_exported_has_its_card_and_lines(
    outcome: Outcome, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from thistledown.main import DONE, WRONG, main

    assert main(["export", str(outcome.folder), "--to", str(tmp_path / "new")]) == DONE
    said = capsys.readouterr().out.splitlines()
    place = next(number for number, line in enumerate(said) if line.endswith("in Python:"))
    exec("\n".join(said[place + 1 : place + 4]), {})
    assert "| rounds | " in (tmp_path / "new" / "best" / "README.md").read_text()
    assert main(["export", str(outcome.folder), "--to", "/proc/nope"]) == WRONG
    assert "--to /proc/nope cannot be written: " in capsys.readouterr().err


def test_a_moved_folder_names_its_base_still(kinds: dict[str, Sample], tmp_path: Path) -> None:
    """Of ours, the base lies beside; peft reads the place that was written."""
    model = kinds["vit"].build("adapter")
    saved(model, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    found = restored(tmp_path / "there" / "best", str(tmp_path / "there" / "base"))
    torch.testing.assert_close(kinds["vit"].logits(found), kinds["vit"].logits(model.module))


def test_the_card_tells_what_was_spent_and_the_base_that_nodes_agreed_on(outcome: Outcome) -> None:
    """A server without weights knows the fingerprint from the nodes alone."""
    from server_app.results.card import card
    from server_app.results.recorded import Recorded

    spent = {"epsilon": 1.25, "delta": 1e-5, "accountant": "rdp"}
    lines = [*outcome.rounds[:-1], outcome.rounds[-1] | spent]
    bare = replace(outcome.base, fingerprint="")
    text = card(outcome.run, outcome.task, bare, 2, Recorded(lines, "f" * 32))
    assert f"| base fingerprint | `{'f' * 32}` |" in text
    assert "| privacy spent | epsilon 1.25 at delta 1e-05 (by rdp), metrics.jsonl, round 2 |" in text
    assert "base fingerprint" not in card(outcome.run, outcome.task, bare, 2, Recorded())


def test_a_hub_id_is_named_in_the_card(outcome: Outcome) -> None:
    from server_app.results.card import card
    from server_app.results.recorded import Recorded

    base = replace(outcome.base, name="owner/some-model")
    text = card(outcome.run, outcome.task, base, 3, Recorded())
    assert "base_model: owner/some-model\n" in text
    assert "| rounds | 3 |" in text
