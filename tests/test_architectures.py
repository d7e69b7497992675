"""Every architecture with every tuning: it trains, keeps to its tensors, is saved, and loads as people load it; or the
dry run of `check` refuses it in one sentence, which the table has.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, CAUSAL, IMAGES, TEXTS, data, made, settings
from safetensors.torch import save_file

from strategies.algebra.tensors import snapshot
from task.config import Model, TaskConfig
from task.data.prepared import prepare
from task.data.rows import Rows
from task.models.base import Base, BaseError
from task.models.finding import server_base
from task.models.model import TunedModel, build
from task.models.saving import save, save_base, saved_as
from task.storage.store import Store
from task.training.dry_run import DryRunError, dry_run
from task.training.trainer import Trainer
from task.tunings import registry
from task.tunings.base import OWN, TuningError

TUNINGS = registry.names()
NO_BIASES = "the tuning trains nothing in this model; use tuning = 'lora' or 'full'"
NO_LAYERS = r"does not know this model's layers; name them in ia3\.\w+, of .*, or use 'lora'"
NO_LINEAR = r"needs linear (layers \(torch.nn.Linear\)|or layer-norm layers), and this model has none; use 'full'"
NO_BLOCKS = "needs a transformer of blocks, which this model is not; use 'lora'"
OTHER_WIDTHS = "needs blocks of one width, and .*; use 'lora'"
NO_CACHE = "'prefix' does not fit this model .*; use tuning = 'lora'"
NO_PROMPT = "'prompt' does not fit this (model|classifier).*; use tuning = '(lora|prefix)"
FOR_TEXTS = "'prefix' is for text; for images use tuning = 'prompt'"
OTHER_VISION = "puts tokens into vision transformers of the types vit, deit, dinov2, not into a"
ON_LINEAR = [name for name in TUNINGS if registry.load(name).on_linear_layers]
ONLY_CONVOLUTIONS = r"this model has no linear layers outside its head, but \d+ convolutions; set lora.targets = 'all'"
CONVOLUTIONS = dict.fromkeys(ON_LINEAR, NO_LINEAR) | {"lora": ONLY_CONVOLUTIONS, "adapter": NO_BLOCKS}

REFUSED: dict[str, dict[str, str]] = {
    **{name: {"bias": NO_BIASES} for name in ("llama", "mistral", "qwen3", "gemma2", "gemma3", "cohere")},
    "falcon": {"prefix": NO_CACHE},
    "lfm2": {"bias": NO_BIASES, "prefix": NO_CACHE},
    "mixtral": {"bias": NO_BIASES, "ia3": NO_LAYERS},
    "mamba": {"ia3": NO_LAYERS, "prefix": NO_CACHE},
    **{name: {"prefix": NO_CACHE} for name in ("distilbert", "deberta-v2", "modernbert")},
    "albert": {"prefix": NO_CACHE, "adapter": NO_BLOCKS},
    "mpnet": {"prefix": NO_CACHE, "adapter": NO_BLOCKS},
    "xlnet": {"prefix": NO_CACHE, "adapter": NO_BLOCKS, "ia3": NO_LAYERS},
    **{name: {"prompt": NO_PROMPT, "prefix": NO_CACHE} for name in ("longformer", "bart", "t5")},
    "gpt2-classifier": {"prompt": NO_PROMPT},
    "llama-classifier": {"prompt": NO_PROMPT},
    **{name: {"prefix": FOR_TEXTS} for name in ("vit", "deit", "dinov2")},
    "swin": {"prefix": FOR_TEXTS, "prompt": OTHER_VISION, "adapter": OTHER_WIDTHS},
    "convnext": {"prefix": FOR_TEXTS, "prompt": OTHER_VISION, "adapter": NO_BLOCKS, "ia3": NO_LAYERS},
    "resnet": {"prefix": FOR_TEXTS, "prompt": OTHER_VISION, **CONVOLUTIONS},
    "mobilenet-v2": {"prefix": FOR_TEXTS, "prompt": OTHER_VISION, **CONVOLUTIONS},
    "mobilevit": {"prefix": FOR_TEXTS, "prompt": OTHER_VISION, "adapter": OTHER_WIDTHS},
    "clip": {"prefix": FOR_TEXTS, "prompt": OTHER_VISION},
    "siglip": {"prefix": FOR_TEXTS, "prompt": OTHER_VISION},
}
# Tunings whose folders are read as bases again, which takes a while. ARCHITECTURES=all: every tuning.
NEXT = tuple(TUNINGS) if os.environ.get("ARCHITECTURES") == "all" else ("full", "lora")
PAIRS = [(name, tuning) for name in ARCHITECTURES for tuning in TUNINGS]
# Pairs whose folders are written and loaded elsewhere: those, and a third of the others, in a pattern that has each
# tuning and each architecture. test_tuned_folders.py writes every tuning of three kinds of model.
SAVED = [
    pair
    for number, pair in enumerate(itertools.product(ARCHITECTURES, TUNINGS))
    if pair[1] in NEXT or (number // len(TUNINGS) + number % len(TUNINGS)) % 3 == 0
]
# Parameters that the loss does not reach: those of tokens that are not there and of outputs that are not read, of keys
# what a softmax does not see, of attention among one patch its queries and keys.
STILL = {
    name: re.compile(r"mask_(token|emb)|(key|k_proj|k_lin|c_attn|query_key_value)\.(bias|ssf_shift)" + more)
    for name, more in {
        **dict.fromkeys(ARCHITECTURES, ""),
        "longformer": r"|layer\.1\.attention\.self\.(query|key|value)\.",
        "xlnet": r"|rel_attn\.(seg_embed|r_s_bias)",
        "mamba": r"|dt_proj\.ssf_",
        "mobilevit": r"|attention\.(query|key)\.",
        "clip": r"|vision_model\.post_layernorm\.",
        "siglip": r"|vision_model\.head\.",
    }.items()
}


@dataclass(frozen=True)
class Table:
    """Where bases, rows and results of the table are, and what came of each pair so far."""

    folder: Path
    files: dict[str, Path]
    store: Store
    outcomes: dict[tuple[str, str], str]

    def base(self, name: str) -> Base:
        folder = self.folder / "bases" / name
        if not folder.exists():
            made(name, folder)
        return Base(str(folder), folder, "")

    def case(self, name: str, tuning: str) -> tuple[TaskConfig, Rows]:
        base = self.base(name)
        config = settings(name, base.folder, self.files[ARCHITECTURES[name].kind], tuning)
        return config, prepare(config, base.folder, self.store).train


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    folder = tmp_path_factory.mktemp("architectures")
    return Table(folder, data(folder), Store(folder / "store"), {})


@pytest.mark.each_value
@pytest.mark.fewer
@pytest.mark.parametrize(("name", "tuning"), PAIRS, ids=lambda part: part)
def test_it_trains_or_is_refused(table: Table, name: str, tuning: str) -> None:
    expected = REFUSED.get(name, {}).get(tuning)
    config, rows = table.case(name, tuning)
    if expected is not None:
        with pytest.raises((TuningError, DryRunError), match=expected) as said:
            dry_run(_built(table, name, config), Trainer(config, rows, 0))
        assert "\n" not in str(said.value)
        table.outcomes[name, tuning] = "refused"
        return
    dry_run(_built(table, name, config), Trainer(config, rows, 0))
    model = _built(table, name, config)
    _trains(model, Trainer(config, rows, 0), STILL[name])
    _stands_alone(model, rows)
    if (name, tuning) in SAVED:
        _saves(table, name, tuning, model, rows)
    table.outcomes[name, tuning] = "trains"


def _built(table: Table, name: str, config: TaskConfig) -> TunedModel:
    return build(table.base(name), config, 2 if config.tuning.has_ranks else 0, "cpu")


def _trains(model: TunedModel, trainer: Trainer, still: re.Pattern[str]) -> None:
    """All that the tuning trains moves, and nothing else."""
    before, frozen = snapshot(model.trained), snapshot(model.frozen)
    told = trainer.fit(model)
    assert 0 < told["train-loss"] < 100
    same = {name for name, tensor in model.trained.items() if torch.equal(tensor, before[name])}
    assert {name for name in same if not still.search(name)} == set()
    assert same < model.trained.keys()
    assert [name for name, tensor in model.frozen.items() if not torch.equal(tensor, frozen[name])] == []


def _stands_alone(model: TunedModel, rows: Rows) -> None:
    """A row's logits are the same beside a longer one."""
    for place in (0, len(rows) - 1):
        beside = _logits(model, rows, [0, len(rows) - 1])[0 if place == 0 else 1]
        alone = _logits(model, rows, [place])[0]
        torch.testing.assert_close(beside, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))


def _logits(model: TunedModel, rows: Rows, places: list[int]) -> list[torch.Tensor]:
    batch = rows.batch(places)
    del batch["labels"]
    with torch.no_grad():
        logits = model.module.eval()(**batch).logits
    if logits.ndim == 2:
        return list(logits)
    mask = batch["attention_mask"].bool()
    return [row[-len(own) :][own] for row, own in zip(logits, mask, strict=True)]


def _saves(table: Table, name: str, tuning: str, model: TunedModel, rows: Rows) -> None:
    """Beside the folder lie a batch and its logits, for `test_what_is_saved_loads_without_us`."""
    folder = table.folder / "saved" / f"{name} {tuning}"
    save(model, folder, save_base(model, folder / "base"))
    if tuning in NEXT:
        _starts_the_next_run(table, name, tuning, model, rows, folder)
    batch = {key: value for key, value in rows.batch([0, 1]).items() if key != "labels"}
    with torch.no_grad():
        logits = model.module.eval()(**batch).logits
    save_file({**batch, "logits": logits.contiguous()}, folder / "expected.safetensors")


def _starts_the_next_run(table: Table, name: str, tuning: str, model: TunedModel, rows: Rows, folder: Path) -> None:
    """As `model.name` the folder is the model that was saved, or is refused where its tuning is no part of a base."""
    if model.config.tuning.soft_prompts or saved_as(model.config) == OWN:
        with pytest.raises(BaseError):
            server_base(Model(name=str(folder)), table.store)
        return
    base = server_base(Model(name=str(folder)), table.store)
    config = settings(name, base.folder, table.files[ARCHITECTURES[name].kind], "head")
    following = build(base, config, 0, "cpu")
    assert not [said for said in following.notices if "drawn" in said]
    for own, other in zip(_logits(model, rows, [0, 1]), _logits(following, rows, [0, 1]), strict=True):
        torch.testing.assert_close(other, own, rtol=1e-3, atol=1e-4 * float(own.abs().max()))


# ------------------------------------------------------------------------------------------- without us
LOAD = """
import json, sys
import peft, torch, transformers
from pathlib import Path
from safetensors.torch import load_file

CLASSES = {
    "causal-lm": ("AutoModelForCausalLM", "AutoPeftModelForCausalLM"),
    "text-classification": ("AutoModelForSequenceClassification", "AutoPeftModelForSequenceClassification"),
    "image-classification": ("AutoModelForImageClassification", "AutoPeftModel"),
}
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
apart = {}
for line in sys.stdin:
    kind, soft, folder = json.loads(line)
    try:
        whole, by_peft = CLASSES[kind]
        load = getattr(peft, by_peft) if soft else getattr(transformers, whole)
        model = load.from_pretrained(folder).eval()
        batch = load_file(Path(folder) / "expected.safetensors")
        expected = batch.pop("logits")
        with torch.no_grad():
            found = model(**batch).logits
        apart[folder] = float((found - expected).abs().max() / expected.abs().max())
    except Exception as error:
        apart[folder] = f"{type(error).__name__}: {error}"
assert not {"task", "strategies", "thistledown"} & set(sys.modules)
print(json.dumps(apart))
"""
OURS = {IMAGES: ("adapter", "prompt"), TEXTS: ("adapter",), CAUSAL: ("adapter",)}  # tunings that are loaded by us alone


@pytest.mark.slow
def test_what_is_saved_loads_without_us(table: Table) -> None:
    """By the class that people call, in another process that does not have this project."""
    cases = {pair: table.folder / "saved" / " ".join(pair) for pair in table.outcomes if _loads_elsewhere(*pair)}
    lines = [
        json.dumps([ARCHITECTURES[n].kind, not registry.load(t).transformers_loads, str(place)])
        for (n, t), place in cases.items()
    ]
    command = [sys.executable, "-I", "-c", LOAD]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, cwd=table.folder)
    assert done.returncode == 0, done.stderr[-2000:]
    apart = json.loads(done.stdout.splitlines()[-1])
    assert len(apart) == len(cases)
    assert {pair: apart[str(p)] for pair, p in cases.items() if not _close(apart[str(p)])} == {}


def _loads_elsewhere(name: str, tuning: str) -> bool:
    fits = tuning not in REFUSED.get(name, {}) and tuning not in OURS[ARCHITECTURES[name].kind]
    return fits and (name, tuning) in SAVED


def _close(apart: float | str) -> bool:
    return isinstance(apart, float) and apart < 1e-4


@pytest.mark.slow
def test_how_many_there_are(table: Table) -> None:
    if len(table.outcomes) < len(PAIRS):
        pytest.skip("only a part of the table ran")
    counts = Counter(table.outcomes.values())
    print(f"{len(ARCHITECTURES)} architectures, {len(TUNINGS)} tunings: {dict(counts)}")
    assert counts == {"trains": len(PAIRS) - 64, "refused": 64}
