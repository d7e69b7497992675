"""Answers of tuned language models: what transformers generates from the prompt of each row alone."""

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from chats import ALTERNATING, SYSTEM, language_model, write_rows
from in_process import Outcome, federate
from samples import write_table
from tuned import federation, samples

import thistledown
from task.data.encoding.chats.named import NAMED
from task.data.raw import DataError
from thistledown.main import DONE, main

NEW = 8  # tokens of an answer, half of data.max-length


@pytest.fixture(scope="module")
def llama_run(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Outcome:
    folder = tmp_path_factory.mktemp("generation")
    options = federation(samples(folder, words)["llama"], "lora") | {"num-server-rounds": 2, "learning-rate": 0.05}
    return federate(folder / "run", options)


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("chat")
    rows = write_rows(folder / "rows.jsonl", [{"messages": [SYSTEM, *chat]} for chat in ALTERNATING] * 8)
    data = {"name": str(rows), "messages-column": "messages", "test-split": "", "partitioner": "iid", "max-length": 128}
    data["template"] = "chatml"
    options = {f"data.{name}": value for name, value in data.items()} | {
        "task.kind": "causal-lm", "model.name": str(language_model(folder / "model")), "num-server-rounds": 1,
        "local-steps": 1, "simulation.num-supernodes": 2, "batch-size": 4,
    }  # fmt: skip
    return federate(folder / "run", options)


def written(outcome: Outcome, prompt: str, *, special: bool, most: int) -> str:
    """What transformers writes behind a prompt, one token after the other, without a cache and without a batch."""
    from transformers import AutoTokenizer

    folder = outcome.folder / "model" / "best"
    model: Any = thistledown.Outcome(outcome.folder).model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, add_special_tokens=special)["input_ids"]
    new: list[int] = []
    while len(new) < most:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + new])).logits[0, -1]
        new.append(int(logits.argmax()))
        if new[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


def test_instructions_are_answered_as_transformers_answers_each_alone(llama_run: Outcome, tmp_path: Path) -> None:
    """Prompts of different lengths, with and without an input, in one batch."""
    rows = {"instruction": ["add one and two", "say not hot"], "input": ["", "one"], "row": ["1", "02"]}
    file = write_table(tmp_path / "rows.csv", rows)  # type: ignore[arg-type]
    assert main(["predict", str(llama_run.folder), "--file", str(file), "--to", str(tmp_path / "out.csv")]) == DONE
    found = pandas.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False)
    prompts = ["Task:\nadd one and two\n\nAnswer:\n", "Task:\nsay not hot\n\nInput:\none\n\nAnswer:\n"]
    expected = [written(llama_run, prompt, special=True, most=NEW) for prompt in prompts]
    assert found.prediction.tolist() == expected
    assert found.row.tolist() == ["1", "02"]
    assert "probability" not in found.columns
    [one] = thistledown.Outcome(llama_run.folder).predict(["add one and two"])
    assert (one.answer, one.probabilities) == (expected[0], {})


def test_a_conversation_is_answered_after_its_last_turn_that_is_not_the_assistants(
    chat_run: Outcome, tmp_path: Path
) -> None:
    """A row whose last turn is an answer is asked for that answer again."""
    chat = [SYSTEM, *ALTERNATING[0]]
    asked = chat[:-1] if chat[-1]["role"] == "assistant" else chat
    file = write_rows(tmp_path / "rows.jsonl", [{"messages": chat}, {"messages": asked}])
    assert main(["predict", str(chat_run.folder), "--file", str(file), "--to", str(tmp_path / "out.jsonl")]) == DONE
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(chat_run.folder / "model" / "best")
    prompt = tokenizer.apply_chat_template(
        asked, chat_template=NAMED["chatml"], tokenize=False, add_generation_prompt=True
    )
    expected = written(chat_run, prompt, special=False, most=64)
    assert [line["prediction"] for line in lines] == [expected, expected]


def test_a_text_is_a_users_turn(chat_run: Outcome) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(chat_run.folder / "model" / "best")
    turn = [{"role": "user", "content": "hello"}]
    prompt = tokenizer.apply_chat_template(
        turn, chat_template=NAMED["chatml"], tokenize=False, add_generation_prompt=True
    )
    [found] = thistledown.Outcome(chat_run.folder).predict(["hello"])
    assert found.answer == written(chat_run, prompt, special=False, most=64)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([{"role": "assistant", "content": "yes"}], "nobody but the assistant says anything"),
        ([{"role": "nobody", "content": "yes"}], "turn 0: the role is none of"),
        ([{"role": "user", "content": ""}], "turn 0: 'content' is empty"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(chat_run: Outcome, turns: list[Any], said: str, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"messages": ALTERNATING[0]}, {"messages": turns}])
    with pytest.raises(DataError, match=f"rows.jsonl, row 1 .*{said}"):
        thistledown.Outcome(chat_run.folder).predict(file)
