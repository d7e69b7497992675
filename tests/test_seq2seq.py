"""Encoder-decoders: what is read and what is learned, loss and gradient, and what a tuned one writes."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import Outcome, federate
from samples import WORDS, write_table
from text_models import SPECIALS, encoder_decoder

import thistledown
from task.config import Model, TaskConfig
from task.data.prepared import Rows, prepare, prepare_file
from task.data.rows import IGNORED
from task.kinds import registry
from task.models.base import BaseError
from task.models.finding import server_base
from task.models.model import build
from task.models.saving import save, save_base
from task.schema import ConfigError
from task.storage.store import Store, server_store
from task.training.batches import batches
from task.training.trainer import Trainer, evaluate

ROWS: dict[str, list[object]] = {
    "prompt": ["a good film", "a bad film", "very dull", "bright"] * 6,
    "completion": ["good", "very very bad", "dull film a film", "bright"] * 6,
    "group": ["x", "y", "y", "x"] * 6,
}
IDS = {word: number for number, word in enumerate(SPECIALS + WORDS)}
PAIRS = {"data.prompt-column": "prompt", "data.completion-column": "completion"}
SLOW_STEP = {"optimizer": "sgd", "learning-rate": 1e-3, "local-steps": 1, "batch-size": 7, "tuning": "full"}


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_decoder(tmp_path_factory.mktemp("t5"))


def flat(base: Path, **options: Any) -> dict[str, Any]:
    own = {"task.kind": "seq2seq-lm", "model.name": str(base), "data.max-length": 8, "data.test-split": ""}
    own |= {"data.name": "given", "data.validation-fraction": 0.2, "data.test-fraction": 0.2, "data.partitioner": "iid"}
    own |= PAIRS
    return own | {name.replace("__", ".").replace("_", "-"): value for name, value in options.items()}


def prepared(base: Path, folder: Path, columns: dict[str, list[object]] = ROWS, **options: Any) -> Rows:
    file = write_table(folder / "rows.jsonl", columns)
    return prepare_file(TaskConfig.read(flat(base, **options)), base, Store(folder / "store"), file, ())


def ids(text: str) -> list[int]:
    return [IDS[word] for word in text.split()]


def test_prompts_are_read_and_completions_learned(t5: Path, tmp_path: Path) -> None:
    rows = prepared(t5, tmp_path)
    batch = rows.batch([3, 2])
    assert batch["input_ids"].tolist() == [ids("<s> bright </s> <pad>"), ids("<s> very dull </s>")]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[*ids("<s> bright </s>"), IGNORED], ids("<s> dull film a")]  # 4 tokens are left
    assert rows.notices == (
        "train: 12 of 24 completions lose their end and the end token: they have more than 4 tokens "
        "(data.max-completion-length)",
    )


def test_an_instruction_is_read_with_its_input(t5: Path, tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"instruction": ["good", "bad"], "input": ["film", None], "output": ["a", "a"]}
    rows = prepared(t5, tmp_path, columns, data__prompt_column="", data__completion_column="")
    assert rows.batch([0])["input_ids"][0].tolist() == ids("<s> good film </s>")
    assert rows.batch([1])["input_ids"][0].tolist() == ids("<s> bad </s>")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"data__messages_column": "chat"}, "data.messages-column is for task.kind = 'causal-lm'"),
        ({"data__prompt_column": ""}, "data.completion-column = 'completion' needs data.prompt-column beside it"),
        ({"data__template": "chatml"}, "data.template = 'chatml' is for task.kind = 'causal-lm'"),
        ({"data__max_completion_length": 9}, "data.max-completion-length = 9 is more than data.max-length = 8"),
        ({"packing": True}, "packing = true is for language models"),
        ({"head_rounds": 1}, "has no classifier's head"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], problem: str, t5: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        TaskConfig.read(flat(t5, **options))
    assert problem in str(caught.value)


def test_loss_and_gradient_are_those_of_a_slow_reference(t5: Path, tmp_path: Path) -> None:
    """Token by token in float64, each given those before; a batch in parts has the same gradient."""
    rows, found = prepared(t5, tmp_path, data__max_length=16), {}
    for size in (0, 2):
        config = TaskConfig.read(flat(t5, data__max_length=16) | SLOW_STEP | {"micro-batch-size": size})
        model = build(server_base(config.model, server_store()), config, 0, "cpu")
        slow = copy.deepcopy(model.module).double()
        scores = evaluate(model, rows, "cpu")
        told = Trainer(config, rows, 3).fit(model)
        found[size] = {name: tensor.grad for name, tensor in model.trained.items() if tensor.grad is not None}

    def losses(row: int) -> list[torch.Tensor]:
        batch = rows.batch([row])
        read, written, own = batch["input_ids"], batch["labels"][0].tolist(), []
        for place, token in enumerate(written):
            before = torch.tensor([[0, *written[:place]]])
            logits: Any = slow(input_ids=read, decoder_input_ids=before).logits  # type: ignore[operator]
            own.append(-logits[0, -1].log_softmax(-1)[token])
        return own

    (positions,) = batches(config, len(rows), 3)
    every = torch.stack([loss for row in positions.tolist() for loss in losses(row)])
    assert told["train-loss"] == pytest.approx(float(every.mean().detach()), rel=1e-5)
    named = dict(slow.named_parameters())
    right = torch.autograd.grad(every.mean(), [named[name] for name in found[0]])
    for name, gradient in zip(found[0], right, strict=True):
        for size in (0, 2):
            torch.testing.assert_close(found[size][name].double(), gradient, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        mean = float(torch.stack([loss for row in range(4) for loss in losses(row)]).mean())
    assert scores["loss"] == pytest.approx(mean, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)


def test_a_model_without_an_encoder_is_refused(tmp_path: Path) -> None:
    from samples import language_base

    base = language_base(tmp_path / "llama")
    config = TaskConfig.read(flat(base))
    with pytest.raises(BaseError):
        build(server_base(Model(name=str(base)), server_store()), config, 2, "cpu")


@pytest.fixture(scope="module")
def run(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Divided by a category, which is not learned."""
    folder = tmp_path_factory.mktemp("run")
    file = write_table(folder / "rows.jsonl", ROWS)
    more = {"data.name": str(file), "data.label-column": "group", "data.partitioner": "shards", "lora.targets": "q,v"}
    more |= {"num-server-rounds": 1, "local-steps": 8, "learning-rate": 0.02, "simulation.num-supernodes": 2}
    return federate(folder / "outputs", flat(t5) | more)


def test_it_writes_what_plain_peft_writes(run: Outcome, t5: Path) -> None:
    from peft import AutoPeftModelForSeq2SeqLM
    from transformers import AutoTokenizer

    folder = run.folder / "model" / "best"
    model, tokenizer = AutoPeftModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = ["a good film", "very dull"]
    for text, one in zip(texts, thistledown.Outcome(run.folder).predict(texts), strict=True):
        found = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=4, do_sample=False)
        assert one.answer == tokenizer.decode(found[0], skip_special_tokens=True).strip()


@pytest.mark.judged
def test_held_out_rows_are_answered_as_predict_answers(run: Outcome) -> None:
    outcome, base = thistledown.Outcome(run.folder), server_base(run.task.model, server_store()).folder
    rows = prepare(run.task, base, server_store()).test
    found = list(registry.of(run.task).exchanges(outcome.model("best").eval(), base, run.task.data, rows, "cpu"))
    assert len(found) == len(rows)
    known = {(one.prompt, one.reference) for one in found}
    assert known <= {("a good film", "good"), ("a bad film", "very very bad"), ("very dull", "dull film a"),
                     ("bright", "bright")}  # fmt: skip
    assert [one.answer for one in found] == [one.answer for one in outcome.predict([one.prompt for one in found])]
    assert run.rounds[-1]["server-test-loss"] > 0


@pytest.mark.parametrize(("kind", "tuning"), [("t5", "lora"), ("bart", "norm"), ("bart", "full"), ("t5", "prompt")])
def test_a_saved_model_puts_out_the_same_outside(kind: str, tuning: str, tmp_path: Path) -> None:
    """Loaded by peft or transformers alone."""
    import peft
    import transformers

    place = encoder_decoder(tmp_path / "base", kind)
    config = TaskConfig.read(flat(place) | {"tuning": tuning, "lora.ranks": "2", "local-steps": 2})
    rows, base = prepared(place, tmp_path), server_base(config.model, server_store())
    model = build(base, config, 2, "cpu")
    Trainer(config, rows, 3).fit(model)
    save(model, tmp_path / "tuned", save_base(model, tmp_path / "beside"))
    adapted = (tmp_path / "tuned" / "adapter_config.json").exists()
    loads: Any = peft.AutoPeftModelForSeq2SeqLM if adapted else transformers.AutoModelForSeq2SeqLM
    batch = rows.batch([0, 1, 2])
    with torch.no_grad():
        ours, theirs = (
            module.eval()(**batch).logits for module in (model.module, loads.from_pretrained(tmp_path / "tuned"))
        )
    torch.testing.assert_close(theirs, ours)


def test_the_lines_that_load_it_run(run: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    from task.models.usage import usage

    base = server_base(run.task.model, server_store())
    exec("\n".join(usage(run.task, base, run.folder / "model" / "best")), {})
    assert set(capsys.readouterr().out.split()) <= set(WORDS)
