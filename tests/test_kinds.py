"""Task kinds: what holds for each of them, a contributor's file among them."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import Outcome, federate
from samples import language_base
from text_models import encoder_decoder

import task.kinds
import thistledown
from task.config import Data, Model, TaskConfig
from task.data.labels import LabelError
from task.data.prepared import DataError, prepare, prepare_file
from task.data.rows import IGNORED
from task.data.tables.columns import of_values
from task.kinds import registry
from task.models.base import Base
from task.models.finding import server_base
from task.prediction.entities import entities, f1
from task.schema import ConfigError
from task.storage.store import Store, server_store
from thistledown.commands.check import check
from thistledown.settings import Settings

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
EXAMPLE = re.compile(r"```python\n(# task/kinds/(\w+)\.py\n.*?)```", re.DOTALL)
MOST_LINES = 80
THEIRS = "joined-texts"  # the kind that CONTRIBUTING shows
WORDS = "token-classification"
KINDS = sorted({*registry.names(), THEIRS})
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "met", "in", "saw", "and"]
PIECES += ["ann", "##a", "ben", "par", "##is", "rome"]
SENTENCES = [
    ("Anna met Ben", "B-PER O B-PER"),
    ("Ben Anna saw Paris", "B-PER I-PER O B-LOC"),
    ("Rome and Paris", "B-LOC O B-LOC"),
    ("Anna in Rome", "B-PER O B-LOC"),
    ("Paris saw Ben Anna", "B-LOC O B-PER I-PER"),
]


@pytest.fixture(scope="module", autouse=True)
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put the kind that CONTRIBUTING shows where kinds are looked for."""
    found = EXAMPLE.search(CONTRIBUTING.read_text())
    assert found is not None
    assert len(found[1].splitlines()) <= MOST_LINES
    folder = tmp_path_factory.mktemp("more")
    (folder / f"{found[2]}.py").write_text(found[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task.kinds, "__path__", [*task.kinds.__path__, str(folder)])
        importlib.invalidate_caches()
        yield
    sys.modules.pop(f"task.kinds.{found[2]}", None)


@dataclass(frozen=True)
class Sample:
    """A base for a kind, and rows."""

    base: Base
    flat: dict[str, Any]

    @property
    def config(self) -> TaskConfig:
        return TaskConfig.read(self.flat)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random body without a head, and a tokenizer that cuts names in two."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(PIECES)}, unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(PIECES), max_position_embeddings=40, **sizes)).save_pretrained(folder)
    return folder


def sample(kind: str, bert: Path, folder: Path, rows: dict[str, list[Any]], **data: Any) -> Sample:
    """A base that fits the kind, and these rows as a file."""
    own = registry.load(kind)
    file = folder / "rows.jsonl"
    lines = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cut = {"test-split": "", "validation-fraction": 0.2, "test-fraction": 0.2, "partitioner": "iid", "max-length": 12}
    cut |= {f"{part}-rows": 0 for part in ("train", "validation", "test")} | {"name": str(file)} | data
    flat = {"task.kind": kind, **{f"data.{key}": value for key, value in cut.items()}}
    if own.images:
        return Sample(server_base(Model(), server_store()), flat)
    place = bert if own.drawn_head else encoder_decoder(folder / "t5") if own.name == "seq2seq-lm" else None
    place = place or language_base(folder / "llama")
    return Sample(server_base(Model(name=str(place)), server_store()), flat | {"model.name": str(place)})


@dataclass(frozen=True)
class Run:
    """A federation of one kind."""

    sample: Sample
    outcome: Outcome


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    kind, folder = registry.load(request.param), tmp_path_factory.mktemp(request.param)
    rows = kind.stand_in(Data(labels=("x", "y"), max_length=12))
    labels = {"labels": "x|y"} if kind.drawn_head and not kind.resolve(Data()).labels else {}
    found = sample(request.param, bert, folder, {name: column * 20 for name, column in rows.items()}, **labels)
    options = {"simulation.num-supernodes": 2, "num-server-rounds": 2, "evaluate": "both", "lora.ranks": "2"}
    return Run(found, federate(folder / "outputs", found.flat | options))


# ------------------------------------------------------------------------------- every kind
@pytest.mark.about("kind")
@pytest.mark.parametrize("kind", KINDS)
def test_what_it_names_exists(kind: str) -> None:
    import peft
    import transformers
    from transformers.pipelines import PIPELINE_REGISTRY

    own = registry.load(kind)
    assert own.name == kind
    assert hasattr(transformers, own.auto_class)
    assert hasattr(peft, own.peft_auto_class)
    assert own.peft_task_type in ("", *peft.TaskType)
    assert not own.piped or own.pipeline in PIPELINE_REGISTRY.get_supported_tasks()
    assert own.chosen_by in own.metrics
    assert own.guessing(("x", "y")).keys() <= own.metrics.keys()


@pytest.mark.about("kind")
def test_server_and_nodes_measure_what_it_declares(run: Run) -> None:
    kind = registry.of(run.sample.config)
    assert run.outcome.summary["status"] == "completed"
    assert run.outcome.summary["metric"] == kind.chosen_by
    for line in run.outcome.rounds:
        assert not any(node["refused"] for node in line["nodes"])
        for name, metric in kind.metrics.items():
            for value in (line[f"server-validation-{name}"], line[f"server-test-{name}"], line[f"nodes-{name}"]):
                assert metric.low <= value <= metric.high


@pytest.mark.about("kind")
def test_the_saved_folder_loads_by_its_classes(run: Run) -> None:
    import peft

    kind, folder = registry.of(run.sample.config), run.outcome.folder / "model" / "last"
    module = getattr(peft, kind.peft_auto_class).from_pretrained(folder).eval()
    rows = prepare(run.outcome.task, run.sample.base.folder, server_store()).test
    scores = kind.evaluate(module.get_base_model(), rows, "cpu")
    for name, value in scores.items():
        assert value == pytest.approx(run.outcome.rounds[-1][f"server-test-{name}"], abs=1e-4)


@pytest.mark.about("kind")
def test_check_explains_it(run: Run, tmp_path: Path) -> None:
    said = [f"{key}={json.dumps(value)}" for key, value in run.sample.flat.items()]
    lines: list[str] = []
    check(Settings.read(CONTRIBUTING.parent, None, [*said, "simulation.num-supernodes=2"], tmp_path), lines.append)
    assert any(line.startswith("data      ") and "rows to train on" in line for line in lines)


@pytest.mark.about("kind")
def test_the_card_names_its_pipeline(run: Run) -> None:
    text = (run.outcome.folder / "model" / "last" / "README.md").read_text()
    assert f"pipeline_tag: {registry.of(run.sample.config).pipeline}" in text


# ------------------------------------------------------------------------------- the contributor's
def test_texts_of_several_columns_are_one(bert: Path, tmp_path: Path) -> None:
    rows = {"title": ["ann met", "ben", "rome"], "body": ["in paris", "saw", "and ann"], "label": ["a", "b", "a"]}
    found = sample(THEIRS, bert, tmp_path, rows, **{"text-column": "title,body"})
    parts = prepare_file(found.config, found.base.folder, Store(tmp_path / "store"), found.config.data.name, ())
    whole = ["[CLS]", "ann", "met", "in", "par", "##is", "[SEP]"]
    assert parts.batch([0])["input_ids"][0].tolist() == [PIECES.index(piece) for piece in whole]


# ------------------------------------------------------------------------------- words with labels
def sentences(**more: Any) -> dict[str, list[Any]]:
    return {
        "tokens": [words.split() for words, _ in SENTENCES * 8],
        "tags": [tags.split() for _, tags in SENTENCES * 8],
        **more,
    }


NAMED = {"text-column": "tokens", "label-column": "tags"}


@pytest.mark.slow
def test_entities_are_learned(bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    found = sample(WORDS, bert, tmp_path, sentences(), **NAMED)
    options = {"simulation.num-supernodes": 2, "num-server-rounds": 4, "learning-rate": 0.02, "local-steps": 12}
    outcome = federate(tmp_path / "outputs", found.flat | options | {"lora.ranks": "4"})
    scores = [line["f1"] for line in outcome.rounds]
    assert outcome.task.data.labels == ("B-LOC", "B-PER", "I-PER", "O")
    assert outcome.summary["metric"] == "f1"
    assert scores[0] < 0.5
    assert scores[-1] > 0.9

    folder = outcome.folder / "model" / "last"
    module, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert module.config.id2label == dict(enumerate(outcome.task.data.labels))
    texts = [words for words, _ in SENTENCES]
    for text, one in zip(texts, thistledown.Outcome(outcome.folder).predict(texts, "last"), strict=True):
        tokens = tokenizer(text.split(), is_split_into_words=True, return_tensors="pt")
        first = [tokens.word_ids().index(word) for word in range(len(text.split()))]
        with torch.no_grad():
            likeliest = module.eval()(**tokens).logits[0].argmax(-1)
        assert one.answer == " ".join(module.config.id2label[int(likeliest[place])] for place in first)


def test_the_first_token_of_a_word_has_its_label(bert: Path, tmp_path: Path) -> None:
    found = sample(WORDS, bert, tmp_path, sentences(), **NAMED)
    own = found.config
    rows = prepare_file(own, found.base.folder, Store(tmp_path / "store"), own.data.name, ())
    batch = rows.batch([0, 2])
    ids = [[PIECES.index(piece) for piece in text.split()] for text in ("[CLS] ann ##a met ben [SEP]",)]
    assert batch["input_ids"][0, :6].tolist() == ids[0]
    assert batch["labels"][0].tolist()[:6] == [IGNORED, 1, IGNORED, 3, 1, IGNORED]
    assert (batch["labels"] == IGNORED)[batch["attention_mask"] == 0].all()
    assert rows.names == ()


@pytest.mark.parametrize(
    ("tokens", "tags", "given", "problem"),
    [
        (["Anna"], ["B-PER", "O"], (), r"row 40 \(line 41\), column 'tags': not as many labels as words: 2 and 1"),
        (["Anna"], ["B-ORG"], ("O", "B-PER", "I-PER", "B-LOC"), r"row 40 .*, column 'tags': the label is none of O"),
        (["Anna"], [None], (), r"row 40 \(line 41\), column 'tags': the label is missing"),
        (["Anna"], None, (), r"row 40 \(line 41\), column 'tags': no list"),
    ],
)
def test_labels_that_do_not_fit_are_named(
    tokens: Any, tags: Any, given: tuple[str, ...], problem: str, bert: Path, tmp_path: Path
) -> None:
    rows = sentences()
    more = {"tokens": [*rows["tokens"], tokens], "tags": [*rows["tags"], tags]}
    found = sample(WORDS, bert, tmp_path, more, **NAMED)
    with pytest.raises((DataError, LabelError), match=problem):
        prepare_file(found.config, found.base.folder, Store(tmp_path / "store"), found.config.data.name, given)


def test_words_that_are_no_labels_are_not_counted_as_labels(bert: Path, tmp_path: Path) -> None:
    """Who may choose the column must not learn what is in it."""
    found = sample(WORDS, bert, tmp_path, sentences(), **(NAMED | {"label-column": "tokens"}))
    with pytest.raises(DataError, match="column 'tokens' has too many different values to be labels"):
        prepare_file(found.config, found.base.folder, Store(tmp_path / "store"), found.config.data.name, (), 4)


def test_a_row_has_no_label_to_be_divided_by(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'dirichlet' divides rows by their label, and a row of task\.kind"):
        _ = sample(WORDS, bert, tmp_path, sentences(), **NAMED, partitioner="dirichlet").config


def test_entities_are_those_of_seqeval() -> None:
    from seqeval.metrics import f1_score
    from seqeval.metrics.sequence_labeling import get_entities

    source = np.random.default_rng(0)
    for kinds in (["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], ["O", "S-A", "B-A", "I-A", "E-A", "B-B", "I-B", "E-B"]):
        true, said = ([[kinds[k] for k in source.integers(0, len(kinds), 6)] for _ in range(200)] for _ in range(2))
        for row in true:
            assert [(kind, start, end - 1) for kind, start, end in entities(row)] == get_entities(row)
        assert f1(true, said) == pytest.approx(f1_score(true, said), rel=1e-12)
    assert list(entities(["B-A", "L-A", "U-A", "DET", "DET"])) == [("A", 0, 2), ("A", 2, 3), ("DET", 3, 5)]
    assert f1([["O"]], [["O"]]) == 0.0


def test_words_without_an_answer_are_marked(bert: Path, tmp_path: Path) -> None:
    """Those beyond the length, and those without tokens; the others keep their places."""
    from transformers import AutoModelForTokenClassification

    own = registry.load(WORDS)
    names = {"id2label": {0: "O", 1: "B-PER"}}
    module = AutoModelForTokenClassification.from_pretrained(bert, **names).eval()
    rows = of_values(tmp_path, {"text": [[" ", "Anna", "met"], ["Ben"] * 9]}, ["text"], [])
    said = list(own.predict(module, bert, Data(max_length=6), rows, np.arange(2), "cpu"))
    marks = [[word == "_" for word in str(one.answer).split()] for one in said]
    assert marks == [[True, False, False], [False] * 5 + [True] * 4]
