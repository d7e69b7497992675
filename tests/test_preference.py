"""Preferences (DPO): equation 7 in float64, the reference against the plain base, rows, refusals, a federation."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import Outcome, federate
from samples import language_base, write_table
from torch import nn

import strategies
import thistledown
from strategies.exchange.compatibility import problems
from task.config import TaskConfig
from task.data.prepared import DataError, Rows, prepare_file
from task.data.rows import IGNORED
from task.kinds import registry
from task.kinds.preference import Preference
from task.models.finding import server_base
from task.models.model import TunedModel, build
from task.schema import ConfigError
from task.storage.store import Store, server_store
from task.training import dp_sgd
from task.training.batches import batches
from task.training.micro_batches import BatchLoss
from task.training.trainer import Trainer, evaluate
from task.tunings import registry as tunings
from task.tunings.parts.reference import as_base
from thistledown.estimates.memory import kept_for_backward
from thistledown.estimates.rows import described

CHAT = "{% for m in messages %}<{{ 'model' if m['role'] == 'assistant' else 'user' }}> {{ m['content'] }} {% endfor %}"
CHAT += "{% if add_generation_prompt %}<model> {% endif %}"
ROWS: dict[str, list[object]] = {
    "prompt": ["say one", "say cold hot", "add two", "not night"] * 6,
    "chosen": ["day", "day day", "two day", "day"] * 6,
    "rejected": ["night", "hot night", "night", "night one two"] * 6,
}
TEXTS = {"data.prompt-column": "prompt"}
STEP = {"optimizer": "sgd", "learning-rate": 1e-3, "local-steps": 1, "batch-size": 7, "lora.ranks": "2"}
BASED = sorted(name for name in tunings.names() if tunings.load(name)().has_reference)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_base(tmp_path_factory.mktemp("llama"), CHAT)


def flat(base: Path, **options: Any) -> dict[str, Any]:
    own = {"task.kind": "preference", "model.name": str(base), "data.max-length": 16, "data.test-split": ""}
    own |= {"data.name": "given", "data.validation-fraction": 0.2, "data.test-fraction": 0.2, "data.partitioner": "iid"}
    return own | {name.replace("__", ".").replace("_", "-"): value for name, value in options.items()}


def prepared(base: Path, folder: Path, columns: dict[str, list[object]] = ROWS, **options: Any) -> Rows:
    file = write_table(folder / "rows.jsonl", columns)
    return prepare_file(TaskConfig.read(flat(base, **options)), base, Store(folder / "store"), file, ())


@pytest.fixture(scope="module")
def rows(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return prepared(base, tmp_path_factory.mktemp("rows"), **TEXTS)


def tuned(base: Path, **options: Any) -> tuple[TunedModel, TaskConfig]:
    """A model whose tuning has moved away from the base."""
    config = TaskConfig.read(flat(base) | TEXTS | STEP | options)
    model = build(server_base(config.model, server_store()), config, 2 if config.tuning.has_ranks else 0, "cpu")
    random = torch.Generator().manual_seed(1)
    for tensor in model.trained.values():
        tensor.data.add_(torch.randn(tensor.shape, generator=random) / 5)
    return model, config


# ------------------------------------------------------------------------------------------- the loss
def slow_gains(rows: Rows, policy: Any, reference: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """log pi(y|x) / pi_ref(y|x) of chosen and rejected answers, token by token, each given those before it."""
    found = []
    for row in range(len(rows)):
        batch, gains = rows.batch([row]), []
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            total = torch.zeros((), dtype=torch.float64)
            for place, label in enumerate(labels):
                if label != IGNORED:
                    before = torch.tensor([ids[:place]])
                    own, other = (m(input_ids=before).logits[0, -1].log_softmax(-1)[label] for m in (policy, reference))
                    total = total + own - other.detach()
            gains.append(total)
        found.append((gains[0], gains[1]))
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradient_are_those_of_equation_7(smoothing: float, base: Path, rows: Rows) -> None:
    from transformers import AutoModelForCausalLM

    options = {"preference.beta": 0.3, "preference.label-smoothing": smoothing}
    reference: Any = AutoModelForCausalLM.from_pretrained(base).double().eval()
    found: dict[int, dict[str, torch.Tensor]] = {}
    for size in (0, 1, 2):
        model, config = tuned(base, **options, **{"micro-batch-size": size})
        slow = copy.deepcopy(model.module).double()
        scores = evaluate(model, rows, "cpu")
        told = Trainer(config, rows, 3).fit(model)
        found[size] = {name: tensor.grad for name, tensor in model.trained.items() if tensor.grad is not None}

    def losses(margin: torch.Tensor) -> torch.Tensor:
        right, wrong = torch.sigmoid(0.3 * margin), torch.sigmoid(-0.3 * margin)
        return -(1 - smoothing) * torch.log(right) - smoothing * torch.log(wrong)

    first = slow_gains(rows.select([0, 1, 2, 3]), slow, reference)  # the rows repeat
    every = torch.stack([losses(one - other) for one, other in first])
    (positions,) = batches(config, len(rows), 3)
    mean = torch.stack([every[position % 4] for position in positions.tolist()]).mean()
    assert told["train-loss"] == pytest.approx(float(mean.detach()), rel=1e-5)
    named = {name.replace(".default", "").removeprefix("base_model.model."): p for name, p in slow.named_parameters()}
    right = torch.autograd.grad(mean, [named[name] for name in found[0]])
    for name, gradient in zip(found[0], right, strict=True):
        for size in found:
            torch.testing.assert_close(found[size][name].double(), gradient, rtol=1e-3, atol=1e-6)
    margins = [0.3 * float((one - other).detach()) for one, other in first]
    assert scores["loss"] == pytest.approx(float(every.mean().detach()), rel=1e-5)
    assert scores["margin"] == pytest.approx(sum(margins) / 4, rel=1e-4)
    assert scores["accuracy"] == sum(margin > 0 for margin in margins) / 4


def test_rewards_of_numbers_by_hand() -> None:
    """Chosen: policy -2, base -3; rejected: policy -4, base -1. With beta 0.5 the rewards are 0.5 and -1.5."""
    own = torch.tensor([[-0.5, -1.5], [-4.0, 0.0]])
    reference = torch.tensor([[-1.0, -2.0], [-0.5, -0.5]])
    kind = Preference(beta=0.5)
    rewards = kind._rewards(own, reference)
    assert rewards.tolist() == [[0.5, -1.5]]
    assert float(kind._losses(rewards)) == pytest.approx(math.log(1 + math.exp(-2.0)))
    noisy = Preference(beta=0.5, label_smoothing=0.1)
    expected = 0.9 * math.log(1 + math.exp(-2.0)) + 0.1 * math.log(1 + math.exp(2.0))
    assert float(noisy._losses(rewards)) == pytest.approx(expected)


def test_a_model_that_is_the_base_scores_as_a_guess(base: Path, rows: Rows) -> None:
    config = TaskConfig.read(flat(base) | TEXTS)
    model = build(server_base(config.model, server_store()), config, 2, "cpu")
    assert evaluate(model, rows, "cpu") == pytest.approx(registry.of(config).guessing(()))


def test_pairs_are_counted_where_they_are() -> None:
    """An accelerator's losses are weighted by counts that it has too."""
    count = Preference().count({"labels": torch.empty(6, 4, dtype=torch.int64, device="meta")})
    assert count.device.type == "meta"
    assert int(Preference().count({"labels": torch.zeros(6, 4)})) == 3


# ------------------------------------------------------------------------------------------- the reference
@pytest.mark.parametrize("tuning", BASED)
def test_the_reference_is_the_plain_base(tuning: str, base: Path, rows: Rows) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    model, _ = tuned(base, tuning=tuning)
    model.module.train()
    wanted = [parameter.requires_grad for parameter in model.module.parameters()]
    inputs = {name: tensor for name, tensor in rows.batch([0, 1]).items() if name != "labels"}
    with torch.no_grad():
        with as_base(model.module) as alone:
            assert not model.module.training
            found = alone(**inputs, use_cache=False).logits
        expected = plain(**inputs, use_cache=False).logits
        own = model.module(**inputs, use_cache=False).logits[:, -expected.shape[1] :]
    assert torch.equal(found, expected)
    assert not torch.allclose(own, expected, atol=1e-3)
    assert all(part.training for part in model.module.modules())
    assert [parameter.requires_grad for parameter in model.module.parameters()] == wanted


@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {"gradient-checkpointing": True}])
def test_other_steps_have_nearly_the_same_gradients(options: dict[str, Any], base: Path, rows: Rows) -> None:
    """What autocast rounds in the pass of the reference must not stay for the other."""
    found = []
    for more in (dict[str, Any](), options):
        model, config = tuned(base, **more)
        Trainer(config, rows, 3).fit(model)
        found.append([tensor.grad for tensor in model.trained.values()])
    exact = "precision" not in options
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert float(one.abs().max()) > 0
        torch.testing.assert_close(other, one, rtol=0.0 if exact else 0.2, atol=0.0 if exact else 0.05)


def test_gradients_of_single_pairs(base: Path, rows: Rows) -> None:
    """As example-privacy clips them."""
    model, config = tuned(base)
    parameters = [tensor for tensor in model.trained.values() if isinstance(tensor, nn.Parameter)]
    kind = registry.of(config)
    samples = dp_sgd._gradients(BatchLoss(kind, model.module), parameters, rows.batch([0, 1, 3]), 3)
    for number, row in enumerate((0, 1, 3)):
        right = torch.autograd.grad(kind.loss(model.module, rows.batch([row])), parameters)
        for sample, gradient in zip(samples, right, strict=True):
            torch.testing.assert_close(sample[number], gradient, rtol=1e-3, atol=1e-5)


def test_a_private_step_without_noise_is_a_plain_step(base: Path, rows: Rows) -> None:
    config = {"batch-size": len(rows)}
    plain, private = tuned(base, **config), tuned(base, **config)
    Trainer(plain[1], rows, 3).fit(plain[0])
    steps = dp_sgd.PrivateSteps(noise=0.0, clip=1e6, rate=1.0, steps=1)
    Trainer(private[1], rows, 3, private=steps).fit(private[0])
    for name, tensor in plain[0].trained.items():
        torch.testing.assert_close(private[0].trained[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantised_base_is_its_own_reference(bits: str, base: Path, rows: Rows) -> None:
    pytest.importorskip("bitsandbytes")
    options = {"model.quantization": bits, "local-steps": 4, "learning-rate": 0.02}
    config = TaskConfig.read(flat(base) | TEXTS | options)
    model = build(server_base(config.model, server_store()), config, 2, "cpu")
    assert evaluate(model, rows, "cpu")["margin"] == 0.0
    Trainer(config, rows, 3).fit(model)
    assert evaluate(model, rows, "cpu")["margin"] > 0.01


def test_memory_is_that_of_two_sequences_a_row(base: Path, rows: Rows) -> None:
    kept = {}
    for size in (1, 2):
        config = TaskConfig.read(flat(base) | TEXTS | {"batch-size": size})
        kept[size] = kept_for_backward(
            build(server_base(config.model, server_store()), config, 2, "cpu"), config, rows.select([3])
        )
    causal = TaskConfig.read(
        flat(base) | {"task.kind": "causal-lm", "batch-size": 2, "data.prompt-column": "prompt"}
        | {"data.completion-column": "rejected"}
    )  # fmt: skip
    file = write_table(base.parent / "causal" / "rows.jsonl", ROWS)
    alone = prepare_file(causal, base, Store(base.parent / "causal" / "store"), file, ())
    model = build(server_base(causal.model, server_store()), causal, 2, "cpu")
    assert kept[1] == pytest.approx(kept_for_backward(model, causal, alone.select([3])), rel=0.1)
    assert kept[2] == pytest.approx(2 * kept[1], rel=0.1)


# ------------------------------------------------------------------------------------------- rows
def text_of(base: Path, rows: Rows, row: int) -> list[str]:
    return list(described(base, rows.select([row]), 1, ()))


def test_check_shows_both_answers(base: Path, rows: Rows) -> None:
    assert text_of(base, rows, 3) == [
        "row 0     5 tokens, 2 of them chosen", '  given    "<s> not night"', '  chosen   "day </s>"',
        "row 0     7 tokens, 4 of them rejected", '  given    "<s> not night"', '  rejected "night one two </s>"',
    ]  # fmt: skip


def test_conversations_part_at_the_answers(base: Path, tmp_path: Path) -> None:
    """With a column of prompts or without, they are the same."""
    asked = [turn("user", "say one"), turn("assistant", "day"), turn("user", "not")]
    good, bad = turn("assistant", "day"), turn("assistant", "night")
    whole = prepared(base, tmp_path / "a", {"chosen": [[*asked, good]], "rejected": [[*asked, bad]]})
    parts: dict[str, list[object]] = {"prompt": [asked], "chosen": [[good]], "rejected": [[bad]]}
    apart = prepared(base, tmp_path / "b", parts, **TEXTS)
    for name, tensor in whole.batch([0]).items():
        assert torch.equal(apart.batch([0])[name], tensor)
    lines = text_of(base, whole, 0)
    assert [line for line in lines if "chosen " in line or "rejected " in line] == [
        '  chosen   "day"', '  rejected "night"'
    ]  # fmt: skip


def test_long_answers_get_the_same_prompt(base: Path, tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "prompt": ["one two " * 4, "one", "say"], "chosen": ["day", "day", "hot"],
        "rejected": ["night " * 9, "day", "cold"],
    }  # fmt: skip
    found = prepared(base, tmp_path, columns, data__max_length=10, **TEXTS)
    batch = found.batch([0])
    chosen, rejected = ((batch["labels"][side] == IGNORED) & batch["attention_mask"][side].bool() for side in (0, 1))
    assert batch["attention_mask"].sum(1).tolist() == [7, 10]
    assert batch["input_ids"][0][chosen].tolist() == batch["input_ids"][1][rejected].tolist()
    assert [said.split(" preferences ")[0] for said in found.notices] == ["train: 1 of 3"] * 3
    assert "a long answer loses its end" in found.notices[0]
    assert "the prompt loses its beginning" in found.notices[1]
    assert "have the same answer twice" in found.notices[2]


TEXT = {"prompt": "say", "chosen": "day", "rejected": "day"}
USER, GOOD = turn("user", "say"), turn("assistant", "day")


@pytest.mark.parametrize(
    ("row", "options", "problem"),
    [
        (TEXT, {}, r"row 0 \(line 1\), column 'chosen': texts need a prompt"),
        (TEXT | {"chosen": 3}, TEXTS, "column 'chosen': neither a text nor a list"),
        (TEXT | {"chosen": [GOOD], "rejected": [GOOD]}, TEXTS, "row 0 .*, column 'prompt': a text, and column"),
        (TEXT | {"prompt": [USER]}, TEXTS, "row 0 .*, column 'prompt': no text"),
        ({"chosen": [USER, GOOD], "rejected": "day"}, {}, "row 0 .*, column 'rejected': no list of turns, but 'day'"),
        ({"chosen": [USER, GOOD], "rejected": [GOOD]}, {}, "column 'chosen', turn 0: not the first turn of column"),
        (
            {"chosen": [USER, GOOD], "rejected": [USER, turn("user", "hot"), GOOD]}, {},
            "row 0 .*, column 'rejected', turn 1: the two conversations part here, and only answers of",
        ),
        (
            {"chosen": [USER, GOOD], "rejected": [USER, turn("robots", "hot")]}, {},
            "row 0 .*, column 'rejected', turn 1: the role is none of",
        ),
        ({"chosen": [USER, GOOD]}, {}, "has no column 'rejected'"),
    ],
)  # fmt: skip
def test_a_malformed_row_is_named(
    row: dict[str, object], options: dict[str, str], problem: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=problem):
        prepared(base, tmp_path, {name: [value] for name, value in row.items()}, **options)


# ------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tuning": "full"}, "compares with the base, and tuning = 'full' with these options changes it"),
        ({"tuning": "bias"}, "tuning = 'bias'"),
        ({"tuning": "norm"}, "tuning = 'norm'"),
        ({"tuning": "head"}, "tuning = 'head'"),
        ({"lora__init": "pissa"}, "use tuning = 'lora', with lora.init = 'default'"),
        ({"lora__bias": "all"}, "lora.bias = 'none'"),
        ({"packing": True}, "packing = true is for language models"),
        ({"data__messages_column": "chat"}, "data.messages-column is not for task.kind = 'preference'"),
        ({"data__rejected_column": "chosen"}, "data.chosen-column and data.rejected-column are both 'chosen'"),
        ({"data__completion_column": "chat"}, "data.completion-column is not for task.kind = 'preference'"),
        ({"preference__beta": 0.0}, "preference.beta must be at least 1e-06"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], problem: str, base: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        TaskConfig.read(flat(base, **options))
    assert problem in str(caught.value)


@pytest.mark.parametrize("name", ["flora", "fedex-lora", "sa-fedlora", "slora", "ferret", "fedavg", "rbla"])
def test_strategies_that_write_into_the_base_are_refused(name: str, base: Path) -> None:
    strategy = strategies.load(name)
    found = "; ".join(problems(strategy, TaskConfig.read(flat(base))))
    assert ("writes into the base, with which task.kind = 'preference' compares" in found) == strategy.writes_base


# ------------------------------------------------------------------------------------------- a federation
@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("run")
    more = TEXTS | {"data.name": str(write_table(folder / "rows.jsonl", ROWS)), "simulation.num-supernodes": 2}
    more |= {"num-server-rounds": 2, "local-steps": 6, "learning-rate": 0.02, "lora.ranks": "2", "batch-size": 8}
    more |= {"preference.beta": 0.5}
    return federate(folder / "outputs", flat(base) | more)


@pytest.mark.judged
def test_a_federation_learns_what_is_preferred(run: Outcome) -> None:
    first, last = run.rounds[0], run.rounds[-1]
    assert first["server-test-accuracy"] == 0.5
    assert first["server-test-loss"] == pytest.approx(math.log(2))
    assert last["server-test-accuracy"] == 1.0
    assert last["server-test-loss"] < 0.6
    assert last["server-test-margin"] > 0.2


def test_it_answers_prompts(run: Outcome) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    outcome = thistledown.Outcome(run.folder)
    folder = run.folder / "model" / "best"
    model, tokenizer = AutoPeftModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    said = outcome.predict(["say cold hot"])[0].answer
    found = model.generate(**tokenizer("say cold hot", return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert said == tokenizer.decode(found[0, 4:], skip_special_tokens=True).strip()
    rows = prepared(outcome_base(run), run.folder / "again", ROWS, **TEXTS).select([0])
    kind = registry.of(run.task)
    (one,) = kind.exchanges(outcome.model("best").eval(), outcome_base(run), run.task.data, rows, "cpu")
    assert (one.prompt, one.reference) == ("say one", "day")


def outcome_base(run: Outcome) -> Path:
    return server_base(run.task.model, server_store()).folder
