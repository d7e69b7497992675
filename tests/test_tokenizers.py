"""Tokenizers: which are read, which are refused, and that a row's logits are its own, whatever it is padded beside."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import config, cut, text_columns, write_table
from text_models import SHAPES, classifier, word_tokenizer

from task.data.encoding.texts import tokenizer_in
from task.data.prepared import Parts, prepare
from task.data.raw import DataError
from task.data.rows import Tokens
from task.models.base import Base, BaseError
from task.models.loading import loaded
from task.storage.store import Store

LABELS = ("bad", "good")
DECODERS = (
    "gpt2",
    "gpt_neo",
    "opt",
    "bloom",
    "falcon",
    "gpt_neox",
    "llama",
    "mistral",
    "qwen2",
    "gemma2",
    "gemma3_text",
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "texts.jsonl", text_columns())


def prepared(base: Path, table: Path, store: Store) -> Parts:
    return prepare(config("text", name=str(table), max_length=16, **cut()), base, store)


def build(base: Path) -> Any:
    options = config("text", name="given", labels="|".join(LABELS))
    with torch.random.fork_rng(devices=[]):
        return loaded(Base("given", base, ""), options).module.eval()


def alone_and_beside(base: Path, table: Path, store: Store) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of rows of several lengths, each alone and all in a batch."""
    rows, module = prepared(base, table, store).train, build(base)
    order = sorted(range(len(rows)), key=lambda row: int(rows.lengths[row]))
    chosen = [order[0], order[len(order) // 2], order[-1]]
    assert len({int(rows.lengths[row]) for row in chosen}) > 1
    with torch.no_grad():
        alone = torch.cat([module(**rows.batch([row])).logits for row in chosen])
        return alone, module(**rows.batch(chosen)).logits


# ------------------------------------------------------------------------------- a row is itself in any batch
@pytest.mark.each_value
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_row_is_the_same_alone_and_in_a_batch(
    kind: str, side: str, tmp_path: Path, table: Path, store: Store
) -> None:
    base = word_tokenizer(classifier(tmp_path / "base", kind), side=side)
    alone, beside = alone_and_beside(base, table, store)
    torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-5)
    assert (alone[0] - alone[-1]).abs().max() > 1e-3  # else the model says nothing of its rows


@pytest.mark.parametrize("own", [None, 0, 5])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text", "bert", "t5"])
def test_the_padding_is_the_tokenizers(kind: str, own: int | None, tmp_path: Path, table: Path, store: Store) -> None:
    """It pads with its end token: what config.json says is another token, or none."""
    base = word_tokenizer(
        classifier(tmp_path / "base", kind, pad_token_id=own), pad="</s>" if kind != "t5" else "<unk>"
    )
    alone, beside = alone_and_beside(base, table, store)
    torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-5)
    assert build(base).config.pad_token_id == (2 if kind != "t5" else 3)


def test_positions_that_count_from_another_padding_are_refused(tmp_path: Path) -> None:
    base = word_tokenizer(classifier(tmp_path / "base", "roberta", pad_token_id=1))
    with pytest.raises(BaseError, match=r"pads with 0, its config\.json says pad_token_id = 1, .* counts positions"):
        build(base)


def test_the_end_is_the_tokenizers(tmp_path: Path, table: Path, store: Store) -> None:
    """A classifier with a decoder reads the last end token: of config.json there is none in a row."""
    base = word_tokenizer(classifier(tmp_path / "base", "bart", eos_token_id=7))
    alone, beside = alone_and_beside(base, table, store)
    torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-5)
    assert build(base).config.eos_token_id == 2


@pytest.mark.parametrize(("kind", "side", "left"), [
    ("xlnet", "right", True), ("xlnet", "left", True), ("gpt2", "left", True), ("llama", "left", True),
    ("llama", "right", False), ("bert", "left", False), ("bart", "left", False),
])  # fmt: skip
def test_the_side_is_the_one_that_is_not_read(
    kind: str, side: str, left: bool, tmp_path: Path, table: Path, store: Store
) -> None:
    base = word_tokenizer(classifier(tmp_path / "base", kind), side=side)
    rows = prepared(base, table, store).train
    mask = rows.batch(range(len(rows)))["attention_mask"]
    assert (mask[:, -1].all().item(), mask[:, 0].all().item()) == (left, not left)


def test_rows_are_filled_on_either_side() -> None:
    ids, offsets = np.arange(5, 11, dtype=np.int32), np.array([0, 1, 4, 6])
    right, left = (Tokens(ids, offsets, 0, side, side).batch(np.array([2, 0, 1]), "cpu") for side in (False, True))
    assert right["input_ids"].tolist() == [[9, 10, 0], [5, 0, 0], [6, 7, 8]]
    assert left["input_ids"].tolist() == [[0, 9, 10], [0, 0, 5], [6, 7, 8]]
    assert right["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert left["attention_mask"].tolist() == [[0, 1, 1], [0, 0, 1], [1, 1, 1]]
    assert left["position_ids"].tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 2]]
    assert "position_ids" not in right


# ------------------------------------------------------------------------------- what is no tokenizer
@pytest.mark.parametrize("kind", SHAPES)
def test_a_base_without_a_tokenizer_is_refused(kind: str, tmp_path: Path, table: Path, store: Store) -> None:
    base = classifier(tmp_path / "base", kind)
    with pytest.raises(DataError, match=r"has no tokenizer") as refused:
        build(base)
    assert str(tmp_path) not in refused.value.public
    with pytest.raises(DataError, match=r"has no tokenizer"):
        prepared(base, table, store)


def _empty(base: Path) -> None:
    path = base / "tokenizer.json"
    found = json.loads(path.read_text())
    found["model"]["vocab"] = {"<unk>": 3}
    path.write_text(json.dumps(found))


def _strange(base: Path) -> None:
    path = base / "tokenizer.json"
    found = json.loads(path.read_text())
    found["model"]["vocab"] = {w if w.startswith("<") else f"{w}q": n for w, n in found["model"]["vocab"].items()}
    path.write_text(json.dumps(found))


def _more(base: Path) -> None:
    tokenizer = tokenizer_in(base)
    tokenizer.add_tokens([f"word{number}" for number in range(40)])
    tokenizer.save_pretrained(base)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_empty, "the base's tokenizer has an empty vocabulary: every word is unknown"),
        (_strange, "knows none of the words of these texts"),
        (_more, "has ids up to 50, and the model has 32 embeddings"),
        (lambda base: (base / "tokenizer.json").unlink(), "has no tokenizer"),
        (
            lambda base: (base / "tokenizer.json").write_text("{}"),
            "it has no tokenizer|no tokenizer that can be read",
        ),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(
    change: Any, said: str, tmp_path: Path, table: Path, store: Store
) -> None:
    base = word_tokenizer(classifier(tmp_path / "base", "bert"))
    change(base)
    with pytest.raises((DataError, BaseError), match=said) as refused:
        alone_and_beside(base, table, store)
    assert str(tmp_path) not in refused.value.public


def test_many_unknown_words_are_said(tmp_path: Path, store: Store) -> None:
    base = word_tokenizer(classifier(tmp_path / "base", "bert"))
    texts = write_table(tmp_path / "t.jsonl", {"text": ["good strange words"] * 12, "label": ["good", "bad"] * 6})
    said = prepared(base, texts, store).notices
    assert [line for line in said if "train: 67% of the tokens are unknown to the base's tokenizer" in line]


def test_an_end_token_that_is_also_the_unknown_one_is_not_counted(tmp_path: Path, table: Path, store: Store) -> None:
    base = word_tokenizer(classifier(tmp_path / "base", "gpt2"), pad=None)
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unk_token": "</s>", "bos_token": "</s>"}))
    assert not prepared(base, table, store).notices


# ------------------------------------------------------------------------------- sentencepiece
TRAINED = {  # kind of model: name of the file, and what its pieces of no text are
    "deberta-v2": ("spm.model", {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]",
                                 "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}),
    "xlm-roberta": ("sentencepiece.bpe.model", {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}),
    "camembert": ("sentencepiece.bpe.model", {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}),
    "t5": ("spiece.model", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}),
    "xlnet": ("spiece.model", {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}),
}  # fmt: skip
TEXT = "a very good film, and the words of it"


def trained(folder: Path, kind: str) -> tuple[Path, list[str]]:
    """A base with the file of a sentencepiece model alone, and the pieces of TEXT by the library itself."""
    spm = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    name, options = TRAINED[kind]
    folder.mkdir()
    lines = folder.parent / "lines.txt"
    lines.write_text("\n".join([TEXT, "the cat sat on the mat and looked at dogs", "a very dull day of film"] * 40))
    spm.SentencePieceTrainer.train(
        input=str(lines),
        model_prefix=str(folder / "made"),
        minloglevel=2,
        **({"vocab_size": 44, "hard_vocab_limit": False} | options),
    )
    (folder / "made.model").rename(folder / name)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder, spm.SentencePieceProcessor(model_file=str(folder / name)).encode(TEXT, out_type=str)


@pytest.mark.parametrize("kind", TRAINED)
def test_a_sentencepiece_model_alone_is_a_tokenizer(kind: str, tmp_path: Path) -> None:
    folder, pieces = trained(tmp_path / "base", kind)
    tokenizer = tokenizer_in(folder)
    found = tokenizer.convert_ids_to_tokens(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    assert found == pieces
    assert len(tokenizer) < 160


def test_a_damaged_sentencepiece_model_is_said(tmp_path: Path) -> None:
    folder, _ = trained(tmp_path / "base", "deberta-v2")
    (folder / "spm.model").write_bytes(b"no model at all")
    with pytest.raises(DataError, match=r"spm\.model is not a sentencepiece model"):
        tokenizer_in(folder)


def test_the_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = trained(tmp_path / "base", "deberta-v2")
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece.sentencepiece_model_pb2", None)
    with pytest.raises(DataError, match=r"spm\.model needs the package sentencepiece: pip install 'sentencepiece<0"):
        tokenizer_in(folder)


def test_a_table_of_characters_cannot_lengthen_texts_without_end(tmp_path: Path) -> None:
    folder, _ = trained(tmp_path / "base", "xlm-roberta")
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString((folder / "sentencepiece.bpe.model").read_bytes())
    table = model.normalizer_spec.precompiled_charsmap
    size = 4 + int.from_bytes(table[:4], "little")
    model.normalizer_spec.precompiled_charsmap = table[:size] + b"a" * 5000 + b"\0" + table[size:]
    (folder / "sentencepiece.bpe.model").write_bytes(model.SerializeToString())
    with pytest.raises(BaseError, match="lengthen a text"):
        tokenizer_in(folder)


@pytest.mark.parametrize("kind", [k for k in DECODERS if k in ("gpt2", "opt", "bloom")])
def test_a_folder_of_a_byte_tokenizer_needs_no_vocabulary(kind: str, tmp_path: Path) -> None:
    folder = classifier(tmp_path / "base", kind)
    shutil.copy(folder / "config.json", tmp_path / "kept.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    assert tokenizer_in(folder)("ab")["input_ids"] == [100, 101, 1]
