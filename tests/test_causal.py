"""Causal language models: which tokens are learned, what is measured of them, what trains, whose rows they are."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import federate
from samples import language_base, write_table

from task.config import Model, TaskConfig
from task.data.prepared import DataError, Rows, data_index, prepare, prepare_file
from task.data.rows import IGNORED
from task.models.base import Base, BaseError
from task.models.finding import server_base
from task.models.model import TunedModel, build
from task.models.saving import save
from task.schema import ConfigError
from task.storage.store import Store
from task.training.parallel_evaluation import MOST
from task.training.perplexity import _batches
from task.training.trainer import Trainer, evaluate
from task.tunings.base import TuningError
from thistledown.commands.check import check
from thistledown.settings import Settings

ASSETS = Path(__file__).parents[2] / "shared" / "assets"
CHAT = "{% for m in messages %}<user> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
ROWS: dict[str, list[object]] = {
    "instruction": ["add one and two", "say not hot", "say not night"] * 8,
    "input": ["one two", "", None] * 8,
    "output": ["three", "cold", "day"] * 8,
    "category": ["sum", "word", "word"] * 8,
    "id": [0, 1, 2] * 8,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return based(language_base(tmp_path_factory.mktemp("tiny")))


def based(folder: Path) -> Base:
    return server_base(Model(name=str(folder)), Store(folder / "store"))


def flat(file: Path, **options: object) -> dict[str, Any]:
    own = {"name": str(file), "test-split": "", "validation-fraction": 0.2, "test-fraction": 0.2, "partitioner": "iid"}
    own |= {"max-length": 24} | {name.replace("_", "-"): value for name, value in options.items()}
    return {"task.kind": "causal-lm", "model.name": "given", **{f"data.{name}": value for name, value in own.items()}}


def config(file: Path = Path("given"), tuning: str = "full", **options: object) -> TaskConfig:
    return TaskConfig.read(flat(file, **options) | {"tuning": tuning})


def prepared(folder: Path, base: Path, rows: dict[str, list[object]] | None = None, **options: object) -> Rows:
    file = write_table(folder / "rows.jsonl", ROWS if rows is None else rows)
    return prepare_file(config(file, **options), base, Store(folder / "store"), file, ())


def words(base: Path, ids: Any) -> str:
    from transformers import AutoTokenizer

    return " ".join(AutoTokenizer.from_pretrained(base).convert_ids_to_tokens(ids))


def learned(base: Path, rows: Rows, row: int) -> tuple[str, str]:
    """All words of a row, and those that are learned."""
    batch = rows.batch([row])
    labels = batch["labels"][0]
    return words(base, batch["input_ids"][0].tolist()), words(base, labels[labels != IGNORED].tolist())


# ------------------------------------------------------------------------------- which tokens are learned
def test_only_the_completion_is_learned(base: Base, tmp_path: Path) -> None:
    rows = prepared(tmp_path, base.folder)
    asked = "<s> Task : add one and two Input : one two Answer :"
    assert learned(base.folder, rows, 0) == (f"{asked} three </s>", "three </s>")
    assert learned(base.folder, rows, 1) == ("<s> Task : say not hot Answer : cold </s>", "cold </s>")
    batch = rows.batch([0, 1])
    assert {(t.shape, t.dtype) for t in batch.values()} == {(torch.Size([2, 15]), torch.int64)}
    long, short = batch["input_ids"].tolist()
    assert batch["labels"].tolist() == [[IGNORED] * 13 + long[13:], [IGNORED] * 8 + short[8:10] + [IGNORED] * 5]
    assert batch["attention_mask"].tolist() == [[1] * 15, [1] * 10 + [0] * 5]
    assert short[10:] == [1] * 5  # a tokenizer without a padding token lends its end token, which is learned once


def test_a_chat_template_goes_first(tmp_path: Path) -> None:
    base = language_base(tmp_path / "chat", CHAT)
    rows = prepared(tmp_path, base)
    assert learned(base, rows, 0) == ("<user> add one and two one two <model> three </s>", "three </s>")
    plain = prepared(tmp_path, base, template="plain")
    assert learned(base, plain, 1)[0] == "<s> Task : say not hot Answer : cold </s>"


def test_a_row_that_is_too_long_keeps_the_end_of_its_prompt(base: Base, tmp_path: Path) -> None:
    rows = prepared(tmp_path, base.folder, ROWS | {"output": ["cold hot night day"] * 24}, max_length=6)
    assert learned(base.folder, rows, 0) == ("<s> Answer : cold hot night", "cold hot night")
    rows = prepared(tmp_path, base.folder, ROWS, max_length=6, max_completion_length=5)
    assert learned(base.folder, rows, 0) == ("<s> two Answer : three </s>", "three </s>")
    rows = prepared(tmp_path, base.folder, ROWS, max_length=2)
    assert learned(base.folder, rows, 0) == (": three", "three")


def test_a_corpus_has_no_prompts(base: Base, tmp_path: Path) -> None:
    texts: dict[str, list[object]] = {"text": ["day not night", "hot"]}
    rows = prepared(tmp_path, base.folder, texts, instruction_column="", output_column="text")
    assert learned(base.folder, rows, 0) == ("<s> day not night </s>", "day not night </s>")
    assert learned(base.folder, rows, 1) == ("<s> hot </s>", "hot </s>")


@pytest.mark.parametrize(("column", "value"), [("output", " "), ("instruction", None)])
def test_a_row_without_text_is_named(column: str, value: object, base: Base, tmp_path: Path) -> None:
    bad = ROWS | {column: [*ROWS[column][:5], value, *ROWS[column][6:]]}
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 5 \(line 6\), column '{column}': the text is empty"):
        prepared(tmp_path, base.folder, bad, skip_empty=False)


def test_what_cannot_be_prepared_is_said(base: Base, tmp_path: Path) -> None:
    wrong: list[tuple[str, dict[str, list[object]], dict[str, object]]] = [
        ("row 0 (line 1), column 'input': no text, but 3", ROWS | {"input": [3] * 24}, {}),
        ("has no column 'output'", {"instruction": ["add"]}, {}),
        ("has no column 'context'", ROWS, {"input_column": "context"}),
        ("has no chat template; use 'plain'", ROWS, {"template": "chat"}),
        ("more than the 64 tokens", ROWS, {"max_length": 65}),
    ]
    for problem, rows, options in wrong:
        with pytest.raises(DataError) as error:
            prepared(tmp_path, base.folder, rows, **options)
        assert problem in str(error.value)
    without = {name: values for name, values in ROWS.items() if name != "input"}
    found, _ = learned(base.folder, prepared(tmp_path, base.folder, without), 0)
    assert found == "<s> Task : add one and two Answer : three </s>"


def test_incompatible_settings_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        TaskConfig.read({"task.kind": "causal-lm", "data.max-completion-length": 128})
    told = str(error.value)
    assert "name a causal language model for task.kind = 'causal-lm'" in told
    assert "name data with a column of outputs" in told
    assert "data.max-completion-length = 128 leaves none" in told


# ------------------------------------------------------------------------------- what is measured
def test_metrics_are_means_over_completion_tokens(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("task.training.perplexity.LOGITS", MOST * 40 * 32)  # batches of several sizes
    rows = prepared(tmp_path, base.folder, ROWS | {"output": ["three", "cold hot night day", "day"] * 8})
    model = build(base, config(), 0, "cpu")
    model.module.double().eval()
    losses, right = [], []
    for row in range(len(rows)):
        batch = rows.batch([row])
        labels = batch.pop("labels")[0]
        with torch.no_grad():
            logits = model.module(**batch).logits[0]
        for place in range(1, len(labels)):
            if labels[place] != IGNORED:
                shares = logits[place - 1].softmax(-1)
                losses.append(-math.log(shares[labels[place]]))
                right.append(int(shares.argmax()) == int(labels[place]))
    model.module.float()
    found = evaluate(model, rows, "cpu")
    mean = sum(losses) / len(losses)
    assert found == pytest.approx({"loss": mean, "perplexity": math.exp(mean), "accuracy": np.mean(right)}, rel=1e-5)


def test_batches_hold_every_row_once_within_their_budget() -> None:
    lengths = np.random.default_rng(0).integers(2, 50, 200)
    batches = list(_batches(lengths, 100))
    assert sorted(np.concatenate(batches)) == list(range(200))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= 100 for batch in batches)
    assert [len(batch) for batch in _batches(lengths[:3], 1)] == [1, 1, 1]


# ------------------------------------------------------------------------------- what trains
def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(input_ids=torch.arange(12).view(2, 6)).logits


def test_tied_embeddings_are_one_tensor_and_stay_tied(base: Base, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = build(base, config(), 0, "cpu")
    assert "lm_head.weight" not in model.trained
    model.write({name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in model.trained.items()})
    assert model.module.lm_head.weight is model.module.model.embed_tokens.weight  # type: ignore
    save(model, tmp_path, "given")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model.module))


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_embedding_trains_by_itself_alone(tied: bool, tmp_path: Path) -> None:
    base = based(language_base(tmp_path / "base", tied=tied))
    assert set(build(base, config(tuning="head"), 0, "cpu").trained) == {
        "model.embed_tokens.weight" if tied else "lm_head.weight"
    }
    adapted = build(base, config(tuning="lora"), 2, "cpu").trained
    assert len(adapted) == 2 * 7 * 2
    assert not any("lm_head" in name or "embed" in name for name in adapted)
    with pytest.raises(TuningError, match="the tuning trains nothing in this model"):
        build(base, config(tuning="bias"), 0, "cpu")


def test_what_is_no_causal_model_is_refused(tmp_path: Path) -> None:
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = transformers.BertConfig(vocab_size=32, initializer_range=0.3, **sizes)
    said = {"BertModel": "its files lack cls.predictions", "BertLMHeadModel": "sees the tokens that it must predict"}
    for kind, problem in said.items():
        getattr(transformers, kind)(shape).save_pretrained(tmp_path / kind)
        with pytest.raises(BaseError, match=problem):
            build(based(tmp_path / kind), config(), 0, "cpu")
    transformers.ViTModel(transformers.ViTConfig(**sizes)).save_pretrained(tmp_path / "vit")
    with pytest.raises(BaseError, match=r"is not a model for task.kind = 'causal-lm'"):
        build(based(tmp_path / "vit"), config(), 0, "cpu")


@pytest.mark.judged
@pytest.mark.parametrize("tuning", ["full", "lora", "head"])
def test_training_lowers_the_loss(tuning: str, base: Base, tmp_path: Path) -> None:
    rows = prepared(tmp_path, base.folder)
    settings = TaskConfig.read(flat(Path("given")) | {"tuning": tuning, "local-steps": 20, "learning-rate": 0.02})
    model: TunedModel = build(base, settings, 4, "cpu")
    before = evaluate(model, rows, "cpu")["loss"]
    assert Trainer(settings, rows, 0).fit(model)["train-loss"] < before
    assert evaluate(model, rows, "cpu")["loss"] < before - 0.2


# ------------------------------------------------------------------------------- whose rows they are
def test_categories_are_read_for_splits_that_go_by_them(tmp_path: Path, store: Store) -> None:
    file = write_table(tmp_path / "rows.jsonl", ROWS)
    plan = data_index(config(file, partitioner="shards", label_column="category"), store)
    assert plan.labels == ("sum", "word")
    assert {"sum": 0, "word": 1}[str(ROWS["category"][plan.train.rows[0]])] == plan.train.labels[0]
    plan = data_index(config(file, partitioner="natural", id_column="id"), store)
    assert plan.labels == ()
    assert plan.train.ids is not None
    assert not plan.train.labels.any()
    with pytest.raises(DataError, match=r"'dirichlet' goes by labels: use 'iid', or 'natural' with data.id-column, or"):
        data_index(config(file, partitioner="dirichlet"), store)
    alike = write_table(tmp_path / "alike.jsonl", ROWS | {"category": ["same"] * 24})
    assert data_index(config(alike, partitioner="dirichlet", label_column="category"), store).labels == ("same",)


@pytest.mark.judged
def test_a_federation_names_its_metrics_and_takes_the_lowest_loss(base: Base, tmp_path: Path) -> None:
    file = write_table(tmp_path / "rows.jsonl", ROWS)
    settings = flat(file, partitioner="dirichlet", label_column="category", min_partition_size=1, train_rows=0)
    settings |= {"model.name": str(base.folder), "num-server-rounds": 2, "local-steps": 4, "learning-rate": 0.02}
    own = {0: {"data-path": str(write_table(tmp_path / "own.jsonl", {n: ROWS[n] for n in ("instruction", "output")}))}}
    outcome = federate(tmp_path / "out", settings | {"evaluate": "both"}, node_configs=own)
    summary, rounds = outcome.summary, outcome.rounds
    assert (summary["status"], summary["metric"]) == ("completed", "loss")
    assert summary["metric-source"].endswith("validation part, by the lowest loss")
    assert summary["best-round"] == min(rounds, key=lambda line: line["server-validation-loss"])["round"]
    assert summary["final"] < summary["base"]
    assert rounds[-1]["perplexity"] == pytest.approx(math.exp(rounds[-1]["loss"]))
    assert not any(line["refused"] for line in rounds[-1]["nodes"])
    report = (outcome.folder / "report.html").read_text()
    heads = [f'<th scope="col">{title}</th>' for title in ("loss", "perplexity", "token accuracy")]
    assert "".join(heads) in report


def test_check_says_what_is_learned(base: Base, tmp_path: Path) -> None:
    settings = flat(write_table(tmp_path / "rows.jsonl", ROWS)) | {"model.name": str(base.folder)}
    said = [f"{key}={value!r}" for key, value in settings.items()]
    lines: list[str] = []
    app = Path(__file__).parent.parent
    check(Settings.read(app, None, [*said, "simulation.num-supernodes=2 lora.ranks='2'"], tmp_path), lines.append)
    text = "\n".join(lines)
    assert "28 of them learned; prompts by the plain template" in text
    assert "labels" not in text
    with pytest.raises(ConfigError, match="goes by labels"):
        check(Settings.read(app, None, [*said, "data.partitioner='shards'"], tmp_path), lines.append)


@pytest.mark.judged
@pytest.mark.slow
def test_real_instructions_on_a_real_model(store: Store) -> None:
    for name in ("stories260k-llama", "natural_instructions"):
        if not (ASSETS / name).exists():
            pytest.skip(f"../shared/assets/{name} is not here")
    options = {"train_rows": 300, "validation_rows": 10, "test_rows": 50, "max_length": 64, "max_completion_length": 16}
    named = {"instruction_column": "definition", "partitioner": "natural", "id_column": "task"}
    settings = config(ASSETS / "natural_instructions", tuning="lora", **named, **options)
    base = server_base(Model(name=str(ASSETS / "stories260k-llama")), store)
    parts = prepare(settings, base.folder, store)
    assert parts.test.lengths.max() == 64
    model = build(base, settings, 8, "cpu")
    before = evaluate(model, parts.test, "cpu")["loss"]
    assert 4 < before < math.log(512)  # better than all tokens alike
    Trainer(replace(settings, local_steps=20, learning_rate=0.003), parts.train, 0).fit(model)
    assert evaluate(model, parts.test, "cpu")["loss"] < before - 0.5
