"""Small data of every kind, as files, and the settings that read it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from task.config import TaskConfig

WORDS = ["good", "bad", "film", "a", "very", "dull", "bright"]
SENTENCES = ["Task : add one and two", "Input : one two", "Answer : three", "say cold hot night day not"]
TEXTS = [("a good film", "good"), ("a very bad film", "bad"), ("bright", "good"), ("dull", "bad")] * 3


def config(kind: str = "image", **options: object) -> TaskConfig:
    flat = {f"data.{name.replace('_', '-')}": value for name, value in options.items()}
    return TaskConfig.read({"task.kind": f"{kind}-classification", "model.name": "given", **flat})


def vision_base(folder: Path, size: object = 8, channels: int = 1, **processor: object) -> Path:
    """Settings alone; pixels are numbers from 0 to 1, or as `processor` says."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"image_size": size, "num_channels": channels}))
    neutral = {"image_mean": 0.0, "image_std": 1.0}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor or neutral))
    return folder


def write_table(path: Path, columns: dict[str, list[object]]) -> Path:
    import pyarrow as pa
    from pyarrow import csv, parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    elif path.suffix in (".csv", ".tsv", ".txt"):
        between = "," if path.suffix == ".csv" else "\t"
        csv.write_csv(pa.table(columns), path, csv.WriteOptions(delimiter=between))
    elif path.suffix in (".arrow", ".feather"):
        with pa.ipc.new_file(path, pa.table(columns).schema) as file:
            file.write_table(pa.table(columns))
    elif path.suffix == ".xlsx":
        book = pytest.importorskip("openpyxl").Workbook()
        for row in [list(columns), *zip(*columns.values(), strict=True)]:
            book.active.append(row)
        book.save(path)
    else:
        parquet.write_table(pa.table(columns), path)
    return path


def text_columns() -> dict[str, list[object]]:
    return {"text": [text for text, _ in TEXTS], "label": [label for _, label in TEXTS]}


def scans(count: int = 12, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(0).integers(0, 256, (count, size, size)).astype(np.uint8)
    return values, np.arange(count) % 3


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def cut(**options: object) -> dict[str, object]:
    """Options for data without splits of its own."""
    return {"test_split": "", "validation_fraction": 0.25, "test_fraction": 0.25, **options}


def language_base(folder: Path, chat: str | None = None, *, tied: bool = True) -> Path:
    """A random Llama and a tokenizer of whole words, which puts <s> in front."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<s>", "</s>", "<unk>", "<user>", "<model>"]
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=specials, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, chat_template=chat, **names
    ).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=32, max_position_embeddings=64, tie_word_embeddings=tied, **sizes)
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder
