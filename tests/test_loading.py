"""What a base is loaded as: nothing of its body is drawn, its head is the classifier, its classes go by their names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import language_base, vision_base
from torch import nn

from task.config import TaskConfig
from task.models.base import Base, BaseError
from task.models.heads import by_labels, head_modules, matching_rows
from task.models.loading import Loaded, loaded

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
Tensors = dict[str, torch.Tensor]


def config(kind: str = "text-classification", labels: str = "good|bad", **more: Any) -> TaskConfig:
    named = {} if kind == "causal-lm" else {"data.labels": labels}
    return TaskConfig.read({"task.kind": kind, "model.name": "given", "data.name": "given", **named, **more})


def load(folder: Path, labels: str = "good|bad", kind: str = "text-classification") -> Loaded:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return loaded(Base("given", folder, ""), config(kind, labels))


@pytest.fixture
def bert(tmp_path: Path, words: Path) -> Path:
    """A classifier of the classes good and bad."""
    return saved(tmp_path / "bert", words, id2label={0: "good", 1: "bad"})


def saved(folder: Path, words: Path, **settings: Any) -> Path:
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    AutoTokenizer.from_pretrained(words).save_pretrained(folder)
    torch.manual_seed(0)
    shape = BertConfig(vocab_size=32, max_position_embeddings=40, **SMALL, **settings)
    BertForSequenceClassification(shape).save_pretrained(folder)
    return folder


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def settle(folder: Path, name: str = "config.json", **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda found: {name: tensor for name, tensor in found.items() if part not in name}


def under(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda found: {prefix + name: tensor for name, tensor in found.items()}


# ------------------------------------------------------------------------------- what a base lacks
LACKING = {
    "a layer": (without("layer.1."), {}, r"lack bert\.encoder\.layer\.1\.\S+, .* and 12 more"),
    "the embeddings": (without("word_embeddings"), {}, r"lack bert\.embeddings\.word_embeddings\.weight\."),
    "more layers in config.json": (lambda found: found, {"num_hidden_layers": 3}, r"lack bert\.encoder\.layer\.2\."),
    "positions": (
        lambda found: found,
        {"max_position_embeddings": 80},
        r"position_embeddings\.weight \(40 x 16, not 80 x 16\)",
    ),
    "vocabulary": (lambda found: found, {"vocab_size": 40}, r"word_embeddings\.weight \(32 x 16, not 40 x 16\)"),
    "an adapter inside": (
        lambda found: {
            f"base_model.model.{name.replace('query.', 'query.base_layer.')}": tensor for name, tensor in found.items()
        },
        {},
        r"merge_and_unload",
    ),
    "two models": (
        lambda found: under("student.")(found) | under("teacher.")(found),
        {},
        r"more than once, under student\. and teacher\.",
    ),
    "another model's names": (lambda found: {f"x.{n}.y": t for n, t in found.items()}, {}, r"named 'x\. \.\.\.'"),
}


@pytest.mark.parametrize("name", LACKING)
def test_a_body_that_lacks_weights_is_refused(bert: Path, name: str) -> None:
    change, settings, said = LACKING[name]
    rewrite(bert, lambda found: {n: t.clone() for n, t in change(found).items()})
    settle(bert, **settings)
    with pytest.raises(BaseError, match=said) as refused:
        load(bert)
    assert str(bert) not in refused.value.public


@pytest.mark.parametrize(
    "prefix", ["base_model.model.", "base_model.", "model.", "module.", "_orig_mod.", "net.model."]
)
def test_weights_under_a_prefix_are_those_of_the_model(bert: Path, prefix: str, tmp_path: Path) -> None:
    plain = load(bert).module.state_dict()
    rewrite(bert, under(prefix))
    found = load(bert)
    assert all(torch.equal(plain[name], tensor) for name, tensor in found.module.state_dict().items())
    assert any(f"read under '{prefix}'" in notice for notice in found.notices)
    found.module.save_pretrained(tmp_path / "again")  # type: ignore[operator]
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == set(plain)


def test_a_head_under_a_prefix_is_drawn_as_without(bert: Path) -> None:
    plain = load(bert, "a|b|c").module.state_dict()
    rewrite(bert, under("module."))
    assert all(torch.equal(plain[n], tensor) for n, tensor in load(bert, "a|b|c").module.state_dict().items())


def test_a_language_model_lacks_nothing(tmp_path: Path) -> None:
    base = language_base(tmp_path / "llama", tied=False)
    rewrite(base, without("lm_head"))
    with pytest.raises(BaseError, match=r"lack lm_head\.weight\. task\.kind = 'causal-lm' needs a model that was"):
        load(base, kind="causal-lm")


# ------------------------------------------------------------------------------- what is said
@pytest.mark.parametrize(
    ("change", "settings", "labels", "said"),
    [
        (lambda found: found, {}, "good|bad", []),
        (without("classifier"), {}, "good|bad", ["the classifier head (classifier.bias, classifier.weight) is drawn"]),
        (lambda found: found, {}, "a|b|c", ["the classifier head (classifier.bias, classifier.weight) is drawn"]),
        (
            without("pooler"),
            {},
            "good|bad",
            ["the classifier head (bert.pooler.dense.bias, bert.pooler.dense.weight) is drawn"],
        ),
        (
            lambda found: found,
            {"num_hidden_layers": 1},
            "good|bad",
            ["weights that this model does not use: bert.encoder.layer.1."],
        ),
        (lambda found: found | {"cls.predictions.bias": torch.ones(3)}, {}, "good|bad", []),
        (lambda found: found, {"problem_type": "regression"}, "good|bad", ["problem_type is 'regression'"]),
        (lambda f: f, {"problem_type": "multi_label_classification"}, "good|bad", ["is 'multi_label_classification'"]),
    ],
)
def test_what_is_said_of_a_base(bert: Path, change: Any, settings: Any, labels: str, said: list[str]) -> None:
    rewrite(bert, change)
    settle(bert, **settings)
    found = load(bert, labels)
    assert len(found.notices) == len(said)
    assert all(part in notice for part, notice in zip(said, found.notices))


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification", None])
@pytest.mark.parametrize("labels", ["good|bad", "one"])
def test_the_loss_is_that_of_the_task(bert: Path, kind: str | None, labels: str) -> None:
    settle(bert, problem_type=kind)
    module = load(bert, labels).module.eval()
    batch = {"input_ids": torch.tensor([[2, 4, 3], [2, 5, 3]]), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    target = torch.tensor([0, len(labels.split("|")) - 1])
    found = module(**batch, labels=target)
    assert torch.allclose(found.loss, nn.functional.cross_entropy(found.logits, target))


# ------------------------------------------------------------------------------- classes by their names
@pytest.mark.parametrize(
    ("own", "names", "rows"),
    [
        ("cat|dog", "cat|dog", [0, 1]),
        ("cat|dog", "dog|cat", [1, 0]),
        ("cat|dog|ant", "ant|cat|dog", [2, 0, 1]),
        ("Cat|DOG", "dog|cat", [1, 0]),
        ("cat|Cat", "Cat|cat", [1, 0]),
        ("cat|dog", "cat|ant", None),
        ("cat|dog", "0|1", None),
        ("LABEL_0|LABEL_1", "cat|dog", None),
        ("LABEL_0|LABEL_1", "0|1", [0, 1]),
        ("LABEL_0|LABEL_1", "1|0", [1, 0]),
        ("LABEL_0|LABEL_1", "1|2", None),
        ("LABEL_0|LABEL_1", "label_1|label_0", [1, 0]),
        ("cat|dog", "cat|dog|ant", None),
        ("cat|cat", "cat|dog", None),
    ],
)
def test_rows_of_a_head_follow_names(own: str, names: str, rows: list[int] | None) -> None:
    assert matching_rows(dict(enumerate(own.split("|"))), tuple(names.split("|"))) == rows


def test_a_head_of_the_same_classes_in_another_order_says_the_same(tmp_path: Path, words: Path) -> None:
    names = ["cat", "dog", "ant"]
    base = saved(tmp_path / "base", words, id2label=dict(enumerate(names)))
    plain, other = load(base, "|".join(names)), load(base, "ant|cat|dog")
    logits = [m.module.eval()(input_ids=torch.tensor([[2, 4, 5, 3]])).logits[0] for m in (plain, other)]
    assert torch.equal(logits[1], logits[0][[2, 0, 1]])
    assert "in another order" in other.notices[0]
    assert other.module.config.id2label == {0: "ant", 1: "cat", 2: "dog"}  # type: ignore[union-attr]


@pytest.mark.parametrize("names", ["cat|dog", "0|1"])
def test_a_head_for_other_classes_is_drawn_anew(bert: Path, names: str) -> None:
    kept, found = load(bert).module.get_submodule("classifier"), load(bert, names)
    assert not torch.equal(found.module.get_submodule("classifier").weight, kept.weight)  # type: ignore[arg-type]
    body = load(bert).module.get_submodule("bert").state_dict()
    assert all(torch.equal(body[n], t) for n, t in found.module.get_submodule("bert").state_dict().items())
    assert "for other classes: good, bad" in found.notices[0]
    assert "classifier.bias) is drawn at random" in found.notices[1]
    again = load(bert, names).module.state_dict()
    assert all(torch.equal(again[n], tensor) for n, tensor in found.module.state_dict().items())


# ------------------------------------------------------------------------------- the head is the classifier
HEADS = {  # of the library's default settings, built without memory
    "clip": ["classifier"],
    "metaclip_2": ["classifier"],
    "siglip": ["classifier"],
    "siglip2": ["classifier"],
    "hgnet_v2": ["fc"],
    "pp_lcnet": ["head"],
    "swiftformer": ["norm", "head", "dist_head"],
    "vit": ["classifier"],
    "dinov2": ["classifier"],
    "resnet": ["classifier"],
    "levit": ["classifier"],
    "bert": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "deberta-v2": ["pooler", "classifier"],
    "bart": ["classification_head"],
    "t5": ["classification_head"],
    "xlnet": ["sequence_summary", "logits_proj"],
    "modernbert": ["head", "classifier"],
    "llama": ["score"],
    "gemma3": ["score"],
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_is_the_classifier(kind: str) -> None:
    from transformers import CONFIG_MAPPING, AutoModelForImageClassification, AutoModelForSequenceClassification

    shape = CONFIG_MAPPING[kind](architectures=[])
    images = type(shape) in AutoModelForImageClassification._model_mapping
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    with torch.device("meta"):
        module = auto.from_config(shape)
    found = head_modules(module, by_labels(module), [])
    assert found == HEADS[kind]
    own = sum(p.numel() for name in found for p in module.get_submodule(name).parameters())
    assert own < 0.05 * sum(p.numel() for p in module.parameters())


def test_a_head_that_is_most_of_the_model_is_said(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    base = vision_base(tmp_path / "resnet")
    shape = ResNetConfig(num_channels=1, embedding_size=2, hidden_sizes=[64], depths=[1], layer_type="basic")
    ResNetForImageClassification(shape).save_pretrained(base)
    labels = "|".join(map(str, range(2000)))
    assert any(
        "of the model's parameters, and trains whole" in n for n in load(base, labels, "image-classification")[2]
    )
