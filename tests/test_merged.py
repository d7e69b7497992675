"""An adapter of peft as model.name: its base with the adapter in it, or a sentence on what to do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from text_models import classifier, word_tokenizer
from tuned import Sample

from task.config import Model, TaskConfig
from task.files.contents import ADAPTED, ADAPTER
from task.models.base import Base, BaseError
from task.models.finding import server_base
from task.models.loading import loaded
from task.models.saving import save, save_base
from task.storage.store import Store

IDS = torch.tensor([[1, 4, 5, 6, 2], [1, 7, 8, 9, 2]])


def trained(base: Path, folder: Path, kind: str = "lora", labels: int = 2) -> torch.Tensor:
    """An adapter as peft saves it, with values that change something; the logits of the whole."""
    import peft
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, ignore_mismatched_sizes=True)
    shape: dict[str, Any] = {"task_type": "SEQ_CLS"}
    options = {
        "lora": lambda: peft.LoraConfig(r=2, target_modules=["query", "value"], **shape),
        "dora": lambda: peft.LoraConfig(r=2, target_modules=["query"], use_dora=True, **shape),
        "ia3": lambda: peft.IA3Config(target_modules=["key"], feedforward_modules=[], **shape),
        "loha": lambda: peft.LoHaConfig(r=2, target_modules=["query"], **shape),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=2, **shape),
    }
    adapted = peft.get_peft_model(model, options[kind]())
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    adapted.save_pretrained(folder)
    with torch.no_grad():
        return adapted.eval()(input_ids=IDS).logits


def logits(base: Base, names: str = "bad|good") -> tuple[torch.Tensor, tuple[str, ...]]:
    flat = {"task.kind": "text-classification", "model.name": "given", "data.name": "given", "data.labels": names}
    found = loaded(base, TaskConfig.read(flat))
    with torch.no_grad():
        return found.module.eval()(input_ids=IDS).logits, found.notices


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return word_tokenizer(classifier(tmp_path / "bert", "bert"))


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "loha"])
def test_an_adapter_is_read_with_its_base(kind: str, bert: Path, tmp_path: Path, store: Store) -> None:
    expected = trained(bert, tmp_path / "adapter", kind)
    base = server_base(Model(name=str(tmp_path / "adapter")), store)
    found, notices = logits(base)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not notices
    assert server_base(Model(name=str(tmp_path / "adapter")), store) == base


def test_a_head_of_more_classes_comes_along(bert: Path, tmp_path: Path, store: Store) -> None:
    expected = trained(bert, tmp_path / "adapter", labels=3)
    found, notices = logits(server_base(Model(name=str(tmp_path / "adapter")), store), "0|1|2")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not notices


def test_a_base_that_went_along_is_found(bert: Path, tmp_path: Path, store: Store) -> None:
    expected = trained(bert, tmp_path / "run" / "adapter")
    shutil.move(bert, tmp_path / "run" / "bert")
    found, _ = logits(server_base(Model(name=str(tmp_path / "run" / "adapter")), store))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_its_own_run_is_a_base(bert: Path, tmp_path: Path, store: Store) -> None:
    flat = {
        "task.kind": "text-classification",
        "model.name": str(bert),
        "data.name": "given",
        "data.labels": "bad|good",
    }
    sample = Sample(server_base(Model(name=str(bert)), store), flat)
    model = sample.build("lora")
    model.write({name: tensor + 0.1 for name, tensor in model.trained.items()})
    save(model, tmp_path / "model" / "best", save_base(model, tmp_path / "model" / "base"))
    again = Sample(server_base(Model(name=str(tmp_path / "model" / "best")), store), flat)
    torch.testing.assert_close(again.logits(again.plain()), sample.logits(model.module), rtol=1e-4, atol=1e-5)
    save_base(again.build("lora"), tmp_path / "next")  # an adapter on an adapter finds no base by that name
    assert (tmp_path / "next" / "config.json").exists()


def edited(folder: Path, **changes: Any) -> None:
    path = folder / ADAPTER
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: edited(f, base_model_name_or_path="/no/such/base"), "which is not available here .*merge it where"),
        (lambda f: edited(f, base_model_name_or_path=None), "does not say what it was trained on"),
        (lambda f: edited(f, peft_type="PREFIX_TUNING"), "of this kind cannot be merged"),
        (lambda f: edited(f, target_modules=["nowhere"]), "cannot be merged into its base"),
        (lambda f: edited(f, target_modules=["query"]), "weights do not fit its base: .*value"),
        (lambda f: edited(f, r=3), "cannot be merged into its base"),
        (lambda f: (f / ADAPTED).rename(f / "adapter_model.bin"), "other formats can run code"),
        (lambda f: (f / ADAPTER).write_text("[]"), "does not say what it was trained on"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(
    change: Any, said: str, bert: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trained(bert, tmp_path / "adapter")
    change(tmp_path / "adapter")
    with pytest.raises(BaseError, match=said) as refused:
        server_base(Model(name=str(tmp_path / "adapter")), store)
    assert str(tmp_path) not in refused.value.public


def test_a_base_that_lacks_weights_is_refused_behind_an_adapter(bert: Path, tmp_path: Path, store: Store) -> None:
    trained(bert, tmp_path / "adapter")
    path = bert / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(BaseError, match=r"base lacks weights: bert\.encoder\.layer\.2"):
        server_base(Model(name=str(tmp_path / "adapter")), store)
