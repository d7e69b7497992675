"""Small models of three kinds and the settings that tune them: the embedded ViT, a random BERT, a random Llama."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from samples import TEXTS, language_base, write_table
from torch import nn

from task.config import Model, TaskConfig
from task.models.base import Base
from task.models.finding import server_base
from task.models.loading import loaded
from task.models.model import TunedModel, build
from task.storage.store import Store, server_store
from task.tunings import registry

FITTING = [
    *(("vit", tuning) for tuning in registry.names() if tuning != "prefix"),  # for text alone
    *(("bert", tuning) for tuning in registry.names()),
    *(("llama", tuning) for tuning in registry.names() if tuning != "bias"),  # it has no bias terms
]
ROWS: dict[str, list[object]] = {
    "instruction": ["add one and two", "say not hot", "say not night"] * 8,
    "output": ["three", "cold", "day"] * 8,
}


def rank_of(tuning: str) -> int:
    """The rank that factors of a tuning have here."""
    return 2 if registry.load(tuning).has_ranks else 0


@dataclass(frozen=True)
class Sample:
    """A base, and the flat settings of a federation on it."""

    base: Base
    flat: dict[str, Any]

    def config(self, tuning: str, **options: Any) -> TaskConfig:
        """The settings, label names included."""
        named = {"data.labels": "|".join(map(str, range(10)))} if not self.flat else {}
        return TaskConfig.read(named | self.flat | {"tuning": tuning, "lora.ranks": "2"} | options)

    def build(self, tuning: str, **options: Any) -> TunedModel:
        """A fresh model."""
        return build(self.base, self.config(tuning, **options), rank_of(tuning), "cpu")

    def plain(self, tuning: str = "full") -> nn.Module:
        """The base as transformers has it; a head that it lacks is drawn as `build` draws it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return loaded(self.base, self.config(tuning))[0].eval()

    def batch(self) -> dict[str, torch.Tensor]:
        """Four fixed random rows with labels; of texts the last two are padded."""
        source = torch.Generator().manual_seed(0)
        if not self.flat:
            return {"pixel_values": torch.randn(4, 1, 8, 8, generator=source), "labels": torch.arange(4)}
        ids = torch.randint(5, 11, (4, 7), generator=source)
        mask = torch.ones_like(ids)
        mask[2:, 5:] = 0
        causal = self.flat["task.kind"] == "causal-lm"
        labels = ids.masked_fill(mask == 0, -100) if causal else torch.tensor([0, 1, 1, 0])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def logits(self, module: nn.Module) -> torch.Tensor:
        """In evaluation mode, of `batch`; of a language model those behind soft prompts."""
        with torch.no_grad():
            found = torch.as_tensor(module.eval()(**self.batch()).logits)
        return found[:, -7:] if found.ndim == 3 else found


def samples(folder: Path, words: Path) -> dict[str, Sample]:
    """One of every kind; `words` has a tokenizer for BERT."""
    bert, llama = _bert(folder / "bert", words), language_base(folder / "llama")
    texts = {"text": [text for text, _ in TEXTS * 3], "label": [label for _, label in TEXTS * 3]}
    split = {"data.test-split": "", "data.validation-fraction": 0.2, "data.test-fraction": 0.2}
    split |= {f"data.{part}-rows": 0 for part in ("train", "validation", "test")}
    split |= {"data.partitioner": "iid", "data.max-length": 16}
    table, rows = (str(write_table(folder / n, c)) for n, c in (("texts.csv", texts), ("rows.jsonl", ROWS)))
    return {
        "vit": Sample(server_base(Model(), server_store()), {}),
        "bert": _sample(bert, "text-classification", table, split | {"data.labels": "good|bad"}),
        "llama": _sample(llama, "causal-lm", table=rows, split=split),
    }


def cancels(name: str) -> bool:
    """A shift of all keys alike, which no softmax sees; its gradient is rounding."""
    return bool(re.search(r"\.(k_proj|key)\.(bias|ssf_shift)$", name))


def federation(sample: Sample, tuning: str) -> dict[str, Any]:
    """Options of a federation on a sample; two steps, so that what lies behind zeros moves too."""
    return sample.flat | {"tuning": tuning, "lora.ranks": "2", "local-steps": 2, "simulation.num-supernodes": 2}


def _sample(folder: Path, kind: str, table: str, split: dict[str, Any]) -> Sample:
    base = server_base(Model(name=str(folder)), Store(folder / "store"))
    return Sample(base, {"task.kind": kind, "model.name": str(folder), "data.name": table, **split})


def _bert(folder: Path, words: Path) -> Path:
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    AutoTokenizer.from_pretrained(words).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    shape = BertConfig(vocab_size=32, max_position_embeddings=40, id2label={0: "good", 1: "bad"}, **sizes, **dropout)
    BertForSequenceClassification(shape).save_pretrained(folder)
    return folder
