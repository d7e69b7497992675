"""What peft lacks, against slow references in float64: visual prompts, bottlenecks, scale and shift."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tuned import Sample, samples

from task.data.prepared import prepare
from task.kinds.registry import load as load_kind
from task.models.base import BaseError
from task.models.loading import loaded
from task.models.model import build
from task.models.saving import restored, save
from task.schema import ConfigError
from task.storage.store import Store
from task.training.trainer import evaluate
from task.tunings import registry
from task.tunings.base import Head, TuningError

HEAD, IMAGES = 76_900, load_kind("image-classification")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, words: Path) -> dict[str, Sample]:
    return samples(tmp_path_factory.mktemp("kinds"), words)


# ------------------------------------------------------------------------------- counts of a ViT-B/16, 100 classes
@pytest.mark.parametrize(
    ("tuning", "body"),
    [
        ("head", 0),
        ("bias", 102_912),
        ("prompt", 12 * 10 * 768),
        ("full", 85_798_656),
        ("norm", 25 * 2 * 768),
        ("adapter", 12 * (2 * 768 * 16 + 16 + 768)),
        ("ssf", 2 * (12 * (4 * 768 + 3072 + 768 + 2 * 768) + 768)),
    ],
)
def test_counts_of_a_vit_base(tuning: str, body: int) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    with torch.device("meta"):
        module = ViTForImageClassification(ViTConfig(num_labels=100))
        tuned = registry.load(tuning)().apply(module, Head(["classifier"], along=True), IMAGES, 0)
    assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) == body + HEAD


# ------------------------------------------------------------------------------- references
def scrambled(sample: Sample, tuning: str, **options: Any) -> nn.Module:
    """A tuned module in float64, with everything that trains moved."""
    model = sample.build(tuning, **options)
    source = torch.Generator().manual_seed(2)
    model.write({n: t.detach() + 0.3 * torch.randn(t.shape, generator=source) for n, t in model.trained.items()})
    return model.module.double().eval()


def by_hand(vit: Any, pixels: torch.Tensor, before: Any, after: Any) -> torch.Tensor:
    """Logits, block by block: `before` and `after` get a block's number, the block and the tokens."""
    hidden = vit.vit.embeddings(pixels)
    for number, block in enumerate(vit.vit.layers):
        hidden = before(number, block, hidden)
        attended = hidden + block.attention(block.layernorm_before(hidden), None)[0]
        hidden = after(number, block, attended + block.mlp(block.layernorm_after(attended)))
    return vit.classifier(vit.vit.layernorm(hidden)[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("deep", [True, False])
def test_visual_prompts_are_those_of_the_equations(kinds: dict[str, Sample], deep: bool) -> None:
    """[x_i, _, E_i] = L_i([x_(i-1), P_(i-1), E_(i-1)]); shallow: the first P goes through all layers."""
    vit: Any = scrambled(kinds["vit"], "prompt", **{"prompt.deep": deep, "prompt.tokens": 3})
    pixels = kinds["vit"].batch()["pixel_values"].double()

    def insert(number: int, block: Any, hidden: torch.Tensor) -> torch.Tensor:
        if number and not deep:
            return hidden
        learned = torch.stack([block.visual_prompt] * len(hidden))
        return torch.cat([hidden[:, :1], learned, hidden[:, 1:]], dim=1)

    def drop(number: int, block: Any, hidden: torch.Tensor) -> torch.Tensor:
        return torch.cat([hidden[:, :1], hidden[:, 4:]], dim=1) if deep else hidden

    assert sum(hasattr(block, "visual_prompt") for block in vit.vit.layers) == (4 if deep else 1)
    torch.testing.assert_close(vit(pixel_values=pixels).logits, by_hand(vit, pixels, insert, drop))


@torch.no_grad()
def test_adapters_are_those_of_the_equation(kinds: dict[str, Sample]) -> None:
    vit: Any = scrambled(kinds["vit"], "adapter", **{"adapter.width": 5})
    pixels = kinds["vit"].batch()["pixel_values"].double()

    def adapt(number: int, block: Any, hidden: torch.Tensor) -> torch.Tensor:
        down, up = block.adapter.down, block.adapter.up
        narrow = hidden @ down.weight.T + down.bias
        assert down.weight.shape == (5, 64)
        return hidden + (0.5 * narrow * (1 + torch.erf(narrow / 2**0.5))) @ up.weight.T + up.bias

    reference = by_hand(vit, pixels, lambda number, block, hidden: hidden, adapt)
    torch.testing.assert_close(vit(pixel_values=pixels).logits, reference)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vit", "bert", "llama"])
def test_scales_and_shifts_fold(kinds: dict[str, Sample], kind: str) -> None:
    sample = kinds[kind]
    tuned = scrambled(sample, "ssf")
    layers = [layer for layer in tuned.modules() if hasattr(layer, "ssf_scale")]
    plain = sample.plain().double()
    for (name, own), theirs in zip(plain.named_modules(), tuned.modules(), strict=True):
        if hasattr(theirs, "ssf_scale") and isinstance(own, nn.Linear):
            x = torch.randn(2, own.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
            shift = getattr(theirs, "ssf_shift", 0.0)
            torch.testing.assert_close(theirs(x), theirs.ssf_scale * own(x) + shift)
            assert f"{name}.weight" in registry.load("ssf")().folded(tuned, {})
    values = {n: p for n, p in tuned.state_dict().items() if ".ssf_" not in n} | registry.load("ssf")().folded(
        tuned, {}
    )
    plain.load_state_dict(values)
    batch = {n: t.double() if t.is_floating_point() else t for n, t in sample.batch().items()}
    torch.testing.assert_close(plain(**batch).logits, tuned(**batch).logits)
    assert len(layers) == {"vit": 33, "bert": 18, "llama": 19}[kind]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["ViT", "DeiT", "Dinov2"])
def test_visual_prompts_fit_the_types_that_are_named(family: str, attention: str) -> None:
    import transformers

    shape: Any = getattr(transformers, f"{family}Config")
    made: Any = getattr(transformers, f"{family}ForImageClassification")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    module = made(shape(image_size=8, patch_size=4, num_channels=1, attn_implementation=attention, **sizes))
    registry.load("prompt")().apply(module, Head(["classifier"], along=True), IMAGES, 0)
    module(pixel_values=torch.randn(2, 1, 8, 8), labels=torch.tensor([0, 1])).loss.backward()
    prompts = [p for n, p in module.named_parameters() if n.endswith("visual_prompt")]
    assert len(prompts) == 2
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in prompts)


# ------------------------------------------------------------------------------- 16 bits
@pytest.mark.parametrize("tuning", ["prompt", "adapter", "ssf"])
def test_what_is_added_to_16_bits_has_32(kinds: dict[str, Sample], tuning: str) -> None:
    model = kinds["vit"].build(tuning, **{"model.dtype": "bfloat16"})
    batch = kinds["vit"].batch()
    output: Any = model.module(pixel_values=batch["pixel_values"].bfloat16(), labels=batch["labels"])
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    added = {tensor.dtype for name, tensor in model.trained.items() if not name.startswith("classifier.")}
    assert added == {torch.float32}


# ------------------------------------------------------------------------------- what does not fit
def test_prefixes_are_for_text(kinds: dict[str, Sample]) -> None:
    with pytest.raises(TuningError, match="'prefix' is for text; for images use tuning = 'prompt' with"):
        kinds["vit"].build("prefix")


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        ("adapter", "needs a transformer of blocks, which this model is not; use 'lora'"),
        ("prompt", "types vit, deit, dinov2, not into a 'thistledown-perceptron'; use tuning = 'lora'"),
        ("norm", "this model has none; use 'lora'"),
        ("ia3", "name them in ia3.attention, of 0, 2, 4, or use 'lora'"),
    ],
)
def test_a_perceptron_has_none_of_it(tuning: str, said: str, tmp_path: Path) -> None:
    from benchmarks.perceptron import write
    from task.models.base import Base

    write(tmp_path, 0, (8, 8), 8)
    with pytest.raises(TuningError, match=said):
        build(Base("given", tmp_path, ""), Sample(Base("", tmp_path, ""), {}).config(tuning), 0, "cpu")


def test_a_classifier_that_looks_for_the_last_token_takes_no_soft_prompt(kinds: dict[str, Sample]) -> None:
    config = Sample(kinds["llama"].base, kinds["bert"].flat).config("prompt")
    module, head, _ = loaded(kinds["llama"].base, config)
    with pytest.raises(TuningError, match="finds the last token of a row by the tokens"):
        config.tuning.apply(module, head, load_kind(config.task.kind.name), 0)


@torch.no_grad()
@pytest.mark.parametrize("tuning", ["prompt", "prefix"])
def test_tokens_are_scored_behind_a_soft_prompt(kinds: dict[str, Sample], tuning: str, store: Store) -> None:
    """The perplexity that is reported is that of the loss that is trained on."""
    sample, config = kinds["llama"], kinds["llama"].config(tuning)
    model, rows = sample.build(tuning), prepare(config, sample.base.folder, store).train
    trained = model.module.eval()(**rows.batch(list(range(len(rows))))).loss
    assert evaluate(model, rows, "cpu")["loss"] == pytest.approx(float(trained), rel=1e-5)


def test_ia3_takes_names(kinds: dict[str, Sample]) -> None:
    model = kinds["vit"].build("ia3", **{"ia3.attention": "q_proj", "ia3.feedforward": "1.mlp.fc1"})
    layers = {name.rsplit(".", 2)[-2] for name in model.trained if name.endswith("ia3_l")}
    assert layers == {"q_proj", "fc1"}
    assert tuple(model.trained["vit.layers.1.mlp.fc1.ia3_l"].shape) == (1, 64)
    with pytest.raises(TuningError, match=r"ia3.attention: no linear layer ends in keys; there are fc1, fc2, k_proj"):
        kinds["vit"].build("ia3", **{"ia3.attention": "keys"})


def test_a_folder_of_other_tensors_is_refused(kinds: dict[str, Sample], tmp_path: Path) -> None:
    save(kinds["vit"].build("adapter"), tmp_path, str(kinds["vit"].base.folder))
    other = (tmp_path / "tuning.json").read_text().replace('"adapter"', '"prompt"')
    (tmp_path / "tuning.json").write_text(other)
    with pytest.raises(TuningError, match="names or shapes differ"):
        restored(tmp_path, str(kinds["vit"].base.folder))


def test_a_folder_leads_to_no_other_and_runs_no_code(kinds: dict[str, Sample], tmp_path: Path) -> None:
    folder, base = tmp_path / "model" / "last", kinds["vit"].base.folder
    save(kinds["vit"].build("adapter"), folder, str(base))
    with pytest.raises(BaseError, match=r"tuning\.json names the base .*: say base = "):
        restored(folder)
    shutil.copytree(base, tmp_path / "model" / "base")
    about = json.loads((folder / "tuning.json").read_text())
    about["settings"]["model.trust-remote-code"] = True
    about["base"] = str(tmp_path / "model" / "base")
    edited = json.loads((tmp_path / "model" / "base" / "config.json").read_text())
    edited["auto_map"] = {"AutoModelForImageClassification": "evil.Model", "AutoConfig": "evil.Config"}
    (tmp_path / "model" / "base" / "config.json").write_text(json.dumps(edited))
    (tmp_path / "model" / "base" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (folder / "tuning.json").write_text(json.dumps(about))
    assert restored(folder)
    assert not (tmp_path / "ran").exists()
    (folder / "tuning.json").write_text("[" * 10_000)
    with pytest.raises(ConfigError, match=r"tuning\.json"):
        restored(folder)
