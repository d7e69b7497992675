"""Every tuning on every kind of model that it fits: names, start, gradients, folders."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from tuned import FITTING, Sample, cancels, samples

from strategies.exchange.replay import start_entry
from task.kinds.causal_lm import CausalLM
from task.models.base import Base, files
from task.models.model import TunedModel
from task.models.saving import restored, save, saved_as
from task.tunings import registry
from task.tunings.base import OWN, PEFT, Head

ADDED = {  # what a tuning adds to the names of the plain model
    "lora-sb": r"\.sb_R\.weight",
    "lora": r"\.lora_[AB]\.weight",
    "dora": r"\.dora_([AB]|magnitude_vector)\.weight",
    "ia3": r"\.ia3_l",
    "adapter": r"\.adapter\.(down|up)\.(weight|bias)",
    "ssf": r"\.ssf_(scale|shift)",
    "prefix": r"^prompt_encoder\.embedding\.weight",
    "prompt": r"^prompt_encoder\.embedding\.weight|\.visual_prompt",
}
CLEAN = r"^(?!.*(base_model|base_layer|modules_to_save|\bdefault\b)).+"  # of any other tuning: without peft's wrapping
OTHERS = [pair for pair in FITTING if not registry.load(pair[1]).in_place]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, words: Path) -> dict[str, Sample]:
    return samples(tmp_path_factory.mktemp("kinds"), words)


def moved(model: TunedModel) -> dict[str, torch.Tensor]:
    """Other values for everything that trains."""
    source = torch.Generator().manual_seed(1)
    return {
        name: tensor.detach() + 0.1 * torch.randn(tensor.shape, generator=source)
        for name, tensor in model.trained.items()
    }


def start_of(model: TunedModel) -> dict[str, torch.Tensor]:
    entry = start_entry(model)
    return entry.tensors if entry else {}


@pytest.mark.each_value
@pytest.mark.parametrize(("kind", "tuning"), FITTING)
def test_names_are_clean_and_the_same_everywhere(kinds: dict[str, Sample], kind: str, tuning: str) -> None:
    one, other = kinds[kind].build(tuning), kinds[kind].build(tuning)
    plain = dict(kinds[kind].plain().named_parameters())
    own = one.frozen.keys() - plain.keys()  # frozen tensors that are not the base's come from the server, once
    assert own == start_of(one).keys() - one.trained.keys()
    for name, tensor in one.trained.items():
        if name in plain:
            assert tensor.shape == plain[name].shape
        else:
            assert re.search(rf"({ADDED.get(tuning, CLEAN)})$", name)
        assert torch.equal(tensor, other.trained[name])
    assert len(one.trained) == sum(p.requires_grad for p in one.module.parameters())  # no two have one name
    assert one.trained.keys() == other.trained.keys()
    assert {n for n in plain if n.startswith("classifier.")} <= one.trained.keys()
    if tuning == "norm":
        assert all(re.search(r"norm|classifier", name, re.IGNORECASE) for name in one.trained)


@pytest.mark.each_value
@pytest.mark.parametrize(("kind", "tuning"), FITTING)
def test_the_start_is_the_base_unless_it_is_drawn(kinds: dict[str, Sample], kind: str, tuning: str) -> None:
    sample = kinds[kind]
    own, base = sample.logits(sample.build(tuning).module), sample.logits(sample.plain())
    assert torch.allclose(own, base, rtol=0, atol=1e-6) != registry.load(tuning).soft_prompts


@pytest.mark.each_value
@pytest.mark.parametrize(("kind", "tuning"), OTHERS)
def test_all_that_trains_gets_a_gradient(kinds: dict[str, Sample], kind: str, tuning: str) -> None:
    model, alive = kinds[kind].build(tuning), set()
    model.module.train()
    for _ in range(2):
        model.module.zero_grad()
        model.module(**kinds[kind].batch()).loss.backward()
        for name, tensor in model.trained.items():
            assert tensor.grad is not None
            if float(tensor.grad.abs().max()):
                alive.add(name)
            tensor.data -= 0.1 * tensor.grad
    assert {name for name in model.trained if not cancels(name)} <= alive


@pytest.mark.each_value
@pytest.mark.parametrize(("kind", "tuning"), FITTING)
def test_what_is_saved_loads(kinds: dict[str, Sample], kind: str, tuning: str, tmp_path: Path) -> None:
    sample = kinds[kind]
    model = sample.build(tuning)
    values = moved(model)
    model.write(values)
    expected = sample.logits(model.module)
    save(model, tmp_path / "tuned", str(sample.base.folder))
    found = sample.logits(reloaded(sample, tuning, tmp_path / "tuned"))
    tolerance = 1e-5 if registry.load(tuning).folds else 1e-6  # folded weights are rounded
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert not torch.allclose(expected, sample.logits(sample.plain()), atol=1e-3)
    model.reset(model.trained)
    assert torch.equal(sample.logits(model.module), sample.logits(sample.build(tuning).module))


def reloaded(sample: Sample, tuning: str, folder: Path) -> torch.nn.Module:
    """By peft, by our own code, or by transformers alone."""
    if (folder / "adapter_config.json").exists():
        from peft import PeftModel

        assert saved_as(sample.config(tuning)) == PEFT
        return PeftModel.from_pretrained(sample.plain(), folder)  # type: ignore[no-any-return]
    if saved_as(sample.config(tuning)) == OWN:
        return restored(folder, "" if (folder / "base").is_dir() else str(sample.base.folder))
    for name, path in files(sample.base.folder).items():
        if "token" in name and not (folder / name).exists():
            shutil.copy(path, folder / name)
    return Sample(Base("tuned", folder, ""), sample.flat).plain()


def test_a_changed_base_is_saved_too(kinds: dict[str, Sample], tmp_path: Path) -> None:
    for tuning in ("adapter", "ssf", "norm"):
        model = kinds["vit"].build(tuning)
        model.write(moved(model) | {"vit.embeddings.cls_token": torch.ones(1, 1, 64)})
        save(model, tmp_path / tuning, "unused")
        assert (tmp_path / tuning / "base").is_dir() == (tuning != "ssf")
        if tuning == "norm":
            from peft import PeftModel

            folder = Base("base", tmp_path / tuning / "base", "")
            found = PeftModel.from_pretrained(Sample(folder, {}).plain(), tmp_path / tuning)
        else:
            found = reloaded(kinds["vit"], tuning, tmp_path / tuning)
        expected = kinds["vit"].logits(model.module)
        torch.testing.assert_close(kinds["vit"].logits(found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("options", "scale"), [({}, 2.0), ({"rslora": True}, 16 / 8**0.5)])
@pytest.mark.parametrize("tuning", ["lora", "dora"])
def test_alpha_is_divided_by_the_largest_rank(
    kinds: dict[str, Sample], tuning: str, options: dict[str, object], scale: float
) -> None:
    """In peft's settings of the saved adapter too, of which the product is lora_alpha / r."""
    ranks = (8,) if tuning == "dora" else (2, 8)
    chosen = registry.load(tuning)(ranks=ranks, alpha=16.0, **options)  # type: ignore[arg-type]
    assert chosen.product_scale() == scale
    model = kinds["llama"].plain()
    adapted = chosen.apply(model, Head(["lm_head"], along=False), CausalLM(), 8)
    written = adapted.peft_config["default"]  # type: ignore[index,union-attr]
    assert (written.r, written.lora_alpha) == (8, pytest.approx(8 * scale))
