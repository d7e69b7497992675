"""What `train-loss` is: a mean over rows, or over learned tokens, of batches of any size."""

from pathlib import Path

import pytest
import torch
from samples import language_base, text_columns, write_table
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from task.config import Model, TaskConfig
from task.data import prepared
from task.data.rows import IGNORED, Rows
from task.models.finding import server_base
from task.models.model import build
from task.storage.store import Store
from task.training.trainer import Trainer

FROZEN = {"learning-rate": 0.0, "local-epochs": 1, "optimizer": "sgd"}


def test_every_row_counts_alike(tmp_path: Path, words: Path, store: Store) -> None:
    folder = tmp_path / "base"
    AutoTokenizer.from_pretrained(words).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertForSequenceClassification(BertConfig(vocab_size=32, **sizes, **dropout)).save_pretrained(folder)
    table = {name: values[:10] for name, values in text_columns().items()}
    flat = {"task.kind": "text-classification", "tuning": "full", "batch-size": 9, **FROZEN, "model.name": str(folder)}
    flat |= {"data.name": str(write_table(tmp_path / "rows.csv", table)), "data.labels": "good|bad"}
    config = TaskConfig.read(flat)
    rows = prepared.prepare_file(config, folder, store, config.data.name, config.data.labels)
    model = build(server_base(Model(name=str(folder)), store), config, 0, "cpu")
    assert Trainer(config, rows, seed=3).fit(model)["train-loss"] == pytest.approx(_mean(model.module, rows), abs=1e-6)


def test_every_learned_token_counts_alike(tmp_path: Path, store: Store) -> None:
    folder = language_base(tmp_path / "base")
    pairs: list[tuple[object, object]] = [("say not hot", "cold"), ("add one and two", "three three three day")] * 5
    table = {"instruction": [ask for ask, _ in pairs], "output": [answer for _, answer in pairs]}
    flat = {"task.kind": "causal-lm", "tuning": "full", "batch-size": 4, **FROZEN, "model.name": str(folder)}
    flat |= {"data.name": str(write_table(tmp_path / "rows.jsonl", table)), "data.max-length": 24}
    config = TaskConfig.read(flat)
    base = server_base(Model(name=str(folder)), store)
    rows = prepared.prepare_file(config, folder, store, config.data.name, ())
    model = build(base, config, 0, "cpu")
    assert Trainer(config, rows, seed=3).fit(model)["train-loss"] == pytest.approx(_mean(model.module, rows), abs=1e-6)


def _mean(module: torch.nn.Module, rows: Rows) -> float:
    """One row at a time, in float64, dropout off as the models have none."""
    total, count = 0.0, 0
    with torch.no_grad():
        for row in range(len(rows)):
            batch = rows.batch([row])
            labels = int((batch["labels"] != IGNORED).sum())
            total += float(module(**batch).loss.double()) * labels
            count += labels
    return total / count
