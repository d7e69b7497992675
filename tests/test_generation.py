"""Answers of tuned language models: what transformers generates from the prompt of each row alone."""

import io
import json
import sys
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
from task.prediction.streaming import Streamed
from thistledown.main import DONE, WRONG, main
from thistledown.predictor import Predictor

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


def test_a_terminal_gets_an_answer_as_it_is_written(
    chat_run: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its pieces are the answer that the model gives as a whole."""
    [whole] = thistledown.Outcome(chat_run.folder).predict(["hello"])
    predictor = Predictor(chat_run.folder)
    pieces: list[str] = []
    assert predictor.stream(predictor.rows_from(["hello"]), 0, pieces.append) == whole
    assert "".join(pieces) == whole.answer
    assert len(pieces) > 1
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["predict", str(chat_run.folder), "hello", "hello"]) == DONE
    assert capsys.readouterr().out == f"{whole.answer}\n" * 2


def test_a_chat_has_its_history_in_the_template_until_it_is_reset(
    chat_run: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(chat_run.folder / "model" / "best")
    turns: list[dict[str, str]] = []
    answers = []
    for text in ("hi", "no"):
        turns.append({"role": "user", "content": text})
        prompt = tokenizer.apply_chat_template(
            turns, chat_template=NAMED["chatml"], tokenize=False, add_generation_prompt=True
        )
        answers.append(written(chat_run, prompt, special=False, most=8))
        turns.append({"role": "assistant", "content": answers[-1]})
    options = "data.max-length=400 data.max-completion-length=8"
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n\nno\n/reset\nhi\n"))
    assert main(["predict", str(chat_run.folder), "--chat", "-c", options]) == DONE
    said = capsys.readouterr()
    assert said.out == "".join(f"{answer}\n" for answer in (*answers, answers[0]))
    assert said.err == "the conversation is empty\n"


def test_the_oldest_turns_of_a_long_chat_are_left_out(chat_run: Outcome) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(chat_run.folder / "model" / "best")
    most, new = 36, 4
    changed = {"data.max-length": most, "data.max-completion-length": new}
    talk = Predictor(chat_run.folder, changed=changed).conversation()
    for text in ("one", "two", "three"):
        talk.ask(text, lambda piece: None)
    *asked, answer = talk.turns
    prompts = [
        tokenizer.apply_chat_template(
            asked[first:], chat_template=NAMED["chatml"], tokenize=False, add_generation_prompt=True
        )
        for first in (0, 2, 4)
    ]
    fit = [one for one in prompts if len(tokenizer(one, add_special_tokens=False)["input_ids"]) <= most - new]
    assert 0 < len(fit) < 3
    assert answer["content"] == written(chat_run, fit[0], special=False, most=new)


def test_an_instruction_is_the_first_turn_of_a_chat(
    llama_run: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("say not hot\n"))
    assert main(["predict", str(llama_run.folder), "--chat"]) == DONE
    [answer] = thistledown.Outcome(llama_run.folder).predict(["say not hot"])
    assert capsys.readouterr().out == f"{answer.answer}\n"


def test_input_that_is_no_text_is_said(
    llama_run: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"say \xff\n"), "utf-8"))
    assert main(["predict", str(llama_run.folder), "--chat"]) == WRONG
    assert capsys.readouterr().err == "standard input is no utf-8 text: invalid start byte\n"


class Spelling:
    """A tokenizer whose tokens are bytes, and which joins a word to the one before it."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace").replace(" nt", "n't")


@pytest.mark.parametrize(
    ("answer", "pieces"),
    [
        (" né \n", ["n", "é"]),
        ("日本", ["日", "本"]),
        ("is nt", ["i", "s", " n", "\nisn't"]),
        ("\xe9".encode("latin-1").decode(errors="surrogateescape"), ["\ufffd"]),
    ],
)
def test_pieces_are_whole_signs_and_end_as_the_answer_ends(answer: str, pieces: list[str]) -> None:
    class Model:
        def generate(self, streamer: Any) -> None:
            streamer.put(torch.tensor([[1, 2, 3]]))
            for byte in answer.encode(errors="surrogateescape"):
                streamer.put(torch.tensor([byte]))
            streamer.end()

    found: list[str] = []
    Streamed(Model(), Spelling(), found.append).generate()
    assert [piece for piece in found if piece] == pieces


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
