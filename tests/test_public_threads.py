"""What people reported of other tools, tried here: each test names its threads, and holds what is right."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import federate
from PIL import Image
from safetensors.torch import load_file, save_file
from samples import config, cut, language_base, text_columns, write_table

from task.config import Model, TaskConfig
from task.data import prepared
from task.data.prepared import DataError
from task.data.rows import IGNORED
from task.models.base import BaseError
from task.models.finding import server_base
from task.models.loading import loaded
from task.storage.store import Store

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
ROWS: dict[str, list[object]] = {
    "instruction": ["add one and two", "say not hot", "say not night"] * 8,
    "output": ["three", "cold", "day"] * 8,
}


def causal(folder: Path, base: Path, **options: Any) -> TaskConfig:
    file = write_table(folder / "rows.jsonl", ROWS)
    flat = {"name": str(file), "test-split": "", "validation-fraction": 0.2, "test-fraction": 0.2, "max-length": 24}
    flat |= {"partitioner": "iid"} | {name.replace("_", "-"): value for name, value in options.items()}
    named = {"task.kind": "causal-lm", "model.name": str(base)}
    return TaskConfig.read(named | {f"data.{name}": value for name, value in flat.items()})


def begins(batch: dict[str, torch.Tensor], token: int) -> list[int]:
    """How often every row has this token."""
    return [int(((ids == token) & (mask == 1)).sum()) for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]


# ------------------------------------------------------------------------------------------------ labels
def test_an_index_beyond_the_names_of_its_type_is_refused(store: Store, words: Path, tmp_path: Path) -> None:
    """datasets #8494 and #8596: a cast to ClassLabel keeps indices that no name has."""
    from datasets import ClassLabel, Dataset

    rows = Dataset.from_dict({"text": ["good film"] * 4, "label": [0, 5, 1, 0]})
    file = tmp_path / "cast.parquet"
    rows.cast_column("label", ClassLabel(names=["bad", "good"])).to_parquet(file)
    with pytest.raises(DataError, match=r"row 1, column 'label'"):
        prepared.prepare(config("text", name=str(file), **cut()), words, store)


def test_a_part_that_lacks_a_class_is_read_by_name(store: Store, vision: Path, tmp_path: Path) -> None:
    """ultralytics #13936: three folders of four in the test part were numbered anew; torchvision #714: '10' is before
    '2'."""
    shades = {"1": 10, "2": 20, "10": 100, "11": 110}
    for part, names in {"train": list(shades), "test": ["1", "10", "11"]}.items():
        for name in names:
            for number in range(4):
                folder = tmp_path / "images" / part / name
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8), shades[name], np.uint8)).save(folder / f"{number}.png")
    parts = prepared.prepare(config(name=str(tmp_path / "images"), validation_fraction=0.25), vision, store)
    for rows in (parts.train, parts.validation, parts.test):
        batch = rows.batch(np.arange(len(rows)))
        for pixels, label in zip(batch["pixel_values"], batch["labels"], strict=True):
            assert round(float(pixels.mean()) * 255) == shades[parts.labels[int(label)]]


@pytest.mark.parametrize("name", ["NA", "None", "null", "nan", "N/A"])
def test_words_that_some_readers_take_for_nothing_are_words(
    name: str, store: Store, words: Path, tmp_path: Path
) -> None:
    """pandas #11839, OasisLMF #307: Namibia's code is NA."""
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "".join(f"good film,{name}\nbad film,other\n" for _ in range(6)))
    parts = prepared.prepare(config("text", name=str(file), **cut()), words, store)
    assert set(parts.labels) == {name, "other"}


@pytest.mark.parametrize("value", [2.7, float("nan"), float("inf")])
def test_a_number_that_is_no_label_is_refused(value: float, store: Store, words: Path, tmp_path: Path) -> None:
    """skordinal #119: 2.7 became 2, and a missing label 0."""
    columns = text_columns() | {"label": [0.0, 1.0, value] + [1.0] * 9}
    file = write_table(tmp_path / "rows.parquet", columns)
    with pytest.raises(DataError, match=r"row 2, column 'label'"):
        prepared.prepare(config("text", name=str(file), **cut()), words, store)


@pytest.mark.parametrize("name", ["scans [v2]", "scans*", "scans?", "{scans}", "scans #1, 100%"])
def test_a_folder_may_have_any_name(name: str, store: Store, vision: Path, tmp_path: Path) -> None:
    """datasets #7468, ultralytics #24257: a name in brackets was a pattern, and '*' took its neighbours along."""
    for folder, shade in ((name, 10), ("scans_old", 200)):
        for part, label in itertools.product(("train", "test"), ("x", "y")):
            place = tmp_path / folder / part / label
            place.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(np.full((8, 8), shade, np.uint8)).save(place / f"{number}.png")
    parts = prepared.prepare(config(name=str(tmp_path / name), validation_fraction=0.25), vision, store)
    assert [len(rows) for rows in (parts.train, parts.validation, parts.test)] == [6, 2, 8]
    assert set(np.unique(parts.test.inputs.values)) == {10}


@pytest.mark.parametrize(("content", "problem"), [(b"", "no readable image"), (POINTER.encode(), "git lfs pull")])
def test_a_broken_image_is_named(content: bytes, problem: str, store: Store, vision: Path, tmp_path: Path) -> None:
    """Pillow #4757 and #4834: 'cannot identify image file <_io.BytesIO object at 0x7f...>', of thousands."""
    for label, number in itertools.product("xy", range(4)):
        (tmp_path / "scans" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "scans" / label / f"{number}.png")
    (tmp_path / "scans" / "y" / "2.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"{problem}.*y/2\.png") as error:
        prepared.prepare(config(name=str(tmp_path / "scans"), **cut()), vision, store)
    assert "object at" not in str(error.value)
    assert "2.png" not in error.value.public


def test_pictures_that_are_not_read_are_counted(store: Store, vision: Path, tmp_path: Path) -> None:
    """orange3-imageanalytics #51: images of other formats were skipped in silence."""
    for label, number in itertools.product("xy", range(4)):
        place = tmp_path / "scans" / label
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(place / f"{number}.png")
        (place / f"{number}.heic").write_bytes(b"ftypheic")
        (place / "Thumbs.db").write_bytes(b"of Windows")
    parts = prepared.prepare(config(name=str(tmp_path / "scans"), **cut()), vision, store)
    assert [notice for notice in parts.notices if "8 of '.heic'" in notice and "Thumbs" not in notice]


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
def test_a_line_for_excel_says_what_is_between_cells(line: str, store: Store, words: Path, tmp_path: Path) -> None:
    """rainbow_csv #108, csharp-csv-reader #28."""
    file = tmp_path / "rows.csv"
    file.write_text(f"{line}\ntext;label\n" + "a good, good film;good\nbad;bad\n" * 6)
    parts = prepared.prepare(config("text", name=str(file), **cut()), words, store)
    assert parts.labels == ("bad", "good")
    assert sum(map(len, (parts.train, parts.validation, parts.test))) == 12


# ------------------------------------------------------------------------------------------------ bases
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_to_a_file_is_called_one(file: str, tmp_path: Path) -> None:
    """transformers #27923, OmniParser #34: a clone without Git LFS ended in HeaderTooLarge."""
    base = language_base(tmp_path / "base")
    (base / file).write_text(POINTER)
    with pytest.raises(BaseError, match=rf"{file}.*git lfs pull"):
        server_base(Model(name=str(base)), Store(tmp_path / "store"))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_a_pointer_to_rows_is_called_one(suffix: str, store: Store, words: Path, tmp_path: Path) -> None:
    """The same with data."""
    file = tmp_path / f"rows.{suffix}"
    file.write_text(POINTER)
    with pytest.raises(DataError, match="git lfs pull"):
        prepared.prepare(config("text", name=str(file), **cut()), words, store)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module."])
def test_weights_saved_from_a_wrapped_model_are_not_drawn_again(prefix: str, tmp_path: Path) -> None:
    """nanoGPT #325, pytorch #101107: torch.compile and DistributedDataParallel put a prefix before every name."""
    folder = language_base(tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    base = server_base(Model(name=str(folder)), Store(tmp_path / "store"))
    module = loaded(base, causal(tmp_path, folder)).module
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in weights.items())


def test_weights_without_values_are_refused(words: Path, tmp_path: Path) -> None:
    """transformers #20082, FlagEmbedding #873: ZeRO-3 saved tensors of shape (0,), which ignore_mismatched_sizes
    draws at random."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path / "base"
    AutoTokenizer.from_pretrained(words).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(vocab_size=32, **sizes)).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    empty = next(name for name in weights if name.endswith("query.weight"))
    save_file(weights | {empty: torch.zeros(0)}, folder / "model.safetensors", {"format": "pt"})
    base = server_base(Model(name=str(folder)), Store(tmp_path / "store"))
    with pytest.raises(BaseError, match=empty.replace(".", r"\.")):
        loaded(base, config("text", labels="bad|good", name="rows.csv"))


def test_two_sets_of_weights_are_refused(tmp_path: Path) -> None:
    """diffusers #14769, mlx-vlm #1464: what a folder had before lay beside what was saved, and won."""
    from transformers import AutoModelForCausalLM

    base = language_base(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    old = (base / "model.safetensors").read_bytes()
    model.save_pretrained(base, max_shard_size="8KB")
    (base / "model.safetensors").write_bytes(old)
    with pytest.raises(BaseError, match=r"model\.safetensors\.index\.json"):
        server_base(Model(name=str(base)), Store(tmp_path / "store"))


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_model_without_one_of_its_embeddings_is_refused(lost: str, tmp_path: Path) -> None:
    """transformers #34759 and #43159, Qwen3-VL-Embedding #89: they were drawn at random."""
    folder = language_base(tmp_path / "base", tied=False)
    weights = load_file(folder / "model.safetensors")
    weights.pop(lost)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    base = server_base(Model(name=str(folder)), Store(tmp_path / "store"))
    with pytest.raises(BaseError, match=lost.replace(".", r"\.")):
        loaded(base, causal(tmp_path, folder))


# ------------------------------------------------------------------------------------------------ language
@pytest.mark.parametrize("chat", ["{{ bos_token }}{{ messages[0].content }} ", "{{ messages[0].content }} "])
def test_a_prompt_begins_as_the_template_says(chat: str, store: Store, tmp_path: Path) -> None:
    """DeepSeek-R1 #151: two begin tokens where the template and the tokenizer add one each. unsloth #10312: whether
    there is one is the template's choice, and a model is prompted as it was trained."""
    from transformers import AutoTokenizer

    base = language_base(tmp_path / "base", chat)
    batch = prepared.prepare(causal(tmp_path, base), base, store).train.batch([0, 1, 2])
    message = [{"role": "user", "content": "say not hot"}]
    asked = AutoTokenizer.from_pretrained(base).apply_chat_template(message, tokenize=True, return_dict=False)
    assert begins(batch, 0) == [asked.count(0)] * 3


def test_a_tokenizer_that_pads_with_its_end_token_still_learns_to_end(store: Store, tmp_path: Path) -> None:
    """trl #6357, DeepSeek-Coder #163: the end token was masked as padding."""
    base = language_base(tmp_path / "base")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "</s>"}))
    batch = prepared.prepare(causal(tmp_path, base), base, store).train.batch(np.arange(6))
    learned = [row[row != IGNORED].tolist() for row in batch["labels"]]
    assert all(row[-1] == 1 and row.count(1) == 1 for row in learned)


def test_a_long_prompt_leaves_something_to_learn(store: Store, tmp_path: Path) -> None:
    """trl #6320 and #3927: rows whose every label was ignored trained without a loss."""
    base = language_base(tmp_path / "base")
    rows = prepared.prepare(causal(tmp_path, base, max_length=2), base, store).train
    assert bool((rows.batch(np.arange(len(rows)))["labels"] != IGNORED).any(1).all())


# ------------------------------------------------------------------------------------------------ what is saved
def test_an_adapter_of_a_base_with_spare_embeddings_loads(tmp_path: Path) -> None:
    """peft #2415, transformers #36550: loaders shrank the embeddings to the size of the tokenizer."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    base = language_base(tmp_path / "base")
    assert len(AutoTokenizer.from_pretrained(base)) < 32
    write_table(tmp_path / "rows.jsonl", ROWS)
    options = {"task.kind": "causal-lm", "model.name": str(base), "data.name": str(tmp_path / "rows.jsonl")}
    options |= {"data.test-split": "", "data.validation-fraction": 0.2, "data.test-fraction": 0.2}
    options |= {"data.partitioner": "iid", "data.max-length": 24, "simulation.num-supernodes": 2, "tuning": "lora"}
    outcome = federate(tmp_path / "out", options)
    model = AutoPeftModelForCausalLM.from_pretrained(outcome.folder / "model" / "last").eval()
    assert model.get_input_embeddings().weight.shape == (32, 16)


def test_counters_of_batches_come_through_a_federation(tmp_path: Path) -> None:
    """flower #4344: the integer buffers of batch norms broke the exchange."""
    from transformers import ResNetConfig, ResNetForImageClassification

    base = tmp_path / "base"
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    shape = ResNetConfig(num_channels=1, num_labels=10, id2label={n: str(n) for n in range(10)}, **sizes)
    torch.manual_seed(0)
    ResNetForImageClassification(shape).save_pretrained(base)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    processor |= {"image_mean": [0.5], "image_std": [0.5]}
    (base / "preprocessor_config.json").write_text(json.dumps(processor))
    options = {"model.name": str(base), "tuning": "full", "simulation.num-supernodes": 2, "evaluate": "server"}
    outcome = federate(tmp_path / "out", options)
    assert outcome.summary["status"] == "completed"
    found = ResNetForImageClassification.from_pretrained(outcome.folder / "model" / "last")
    counters = [value for name, value in found.state_dict().items() if name.endswith("num_batches_tracked")]
    assert counters
    assert {counter.dtype for counter in counters} == {torch.int64}
