"""Conversations: which tokens are learned, by every habit of chat templates; what is refused, and where it is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chats import (
    ALTERNATING,
    GEMMA_LIKE,
    HABITS,
    LAST_ALONE,
    SYSTEM,
    Turns,
    byte_tokenizer,
    chatml,
    mask_by_hand,
    sharegpt,
    write_rows,
)

from task.config import TaskConfig
from task.data.encoding.chats.named import NAMED
from task.data.encoding.chats.tokens import Cut, fitted
from task.data.encoding.texts import tokenizer_in
from task.data.prepared import DataError, Rows, prepare_file
from task.data.rows import IGNORED
from task.schema import ConfigError
from task.storage.store import Store

ASSETS = Path(__file__).parents[2] / "shared" / "assets"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_tokenizer(tmp_path_factory.mktemp("chats"), chatml())


def config(file: object = "given", **options: object) -> TaskConfig:
    own = {"data.messages-column": "messages", "data.max-length": 256, "data.partitioner": "iid"}
    own |= {f"data.{name.replace('_', '-')}": value for name, value in options.items()}
    flat = {"task.kind": "causal-lm", "model.name": "given", "data.name": str(file), **own}
    return TaskConfig.read(flat)


def prepared(base: Path, rows: list[Any], folder: Path, **options: object) -> Rows:
    file = write_rows(folder / "rows.jsonl", rows)
    return prepare_file(config(file, **options), base, Store(folder / "store"), file, ())


def messages(chats: list[Turns]) -> list[dict[str, Turns]]:
    return [{"messages": chat} for chat in chats]


def row_of(rows: Rows, row: int) -> tuple[list[int], list[bool]]:
    batch = rows.batch([row])
    return batch["input_ids"][0].tolist(), (batch["labels"][0] != IGNORED).tolist()


def up_to_last(ids: list[int], learned: list[bool]) -> tuple[list[int], list[bool]]:
    end = len(learned) - learned[::-1].index(True)
    return ids[:end], learned[:end]


def refusal(base: Path, rows: list[Any], folder: Path, **options: object) -> DataError:
    with pytest.raises(DataError) as error:
        prepared(base, rows, folder, **options)
    return error.value


# ------------------------------------------------------------------------------- which tokens are learned
@pytest.mark.parametrize("habit", HABITS)
def test_only_what_the_assistant_writes_is_learned(habit: str, tmp_path: Path) -> None:
    template, before, behind = HABITS[habit]
    base = byte_tokenizer(tmp_path / "base", template)
    tokenizer = tokenizer_in(base)
    chats = ALTERNATING if habit == "gemma" else [*ALTERNATING, [SYSTEM, *ALTERNATING[1]]]
    rows = prepared(base, messages(chats), tmp_path)
    for number, chat in enumerate(chats):
        expected = up_to_last(*mask_by_hand(tokenizer, chat, before, behind))
        assert row_of(rows, number) == expected
        ids, learned = expected
        said = tokenizer.decode([token for token, own in zip(ids, learned, strict=True) if own])
        answers = [turn["content"] for turn in chat if turn["role"] == "assistant"]
        assert [part.strip() for part in said.split(behind)[:-1]] == [answer.strip() for answer in answers]


@pytest.mark.parametrize("name", NAMED)
def test_a_named_template_marks_what_transformers_does(name: str, tmp_path: Path) -> None:
    base = byte_tokenizer(tmp_path / "base")
    tokenizer = tokenizer_in(base)
    chats = ALTERNATING if name == "gemma" else [*ALTERNATING, [SYSTEM, *ALTERNATING[1]]]
    rows = prepared(base, messages(chats), tmp_path, template=name)
    options = {"return_dict": True, "return_assistant_tokens_mask": True, "chat_template": NAMED[name]}
    for number, chat in enumerate(chats):
        found = tokenizer.apply_chat_template(chat, tokenize=True, **options)
        expected = [bool(own) for own in found["assistant_masks"]]
        assert row_of(rows, number) == up_to_last(found["input_ids"], expected)


@pytest.mark.parametrize("name", NAMED)
def test_a_named_template_has_the_answers_that_the_prefix_rule_finds(name: str, tmp_path: Path) -> None:
    bare = NAMED[name].replace("{%- generation %}", "").replace("{% endgeneration %}", "")
    base = byte_tokenizer(tmp_path / "base", bare)
    (tmp_path / "own").mkdir()
    by_prefix = prepared(base, messages(ALTERNATING), tmp_path)
    by_tags = prepared(base, messages(ALTERNATING), tmp_path / "own", template=name)
    assert [row_of(by_prefix, n) for n in range(3)] == [row_of(by_tags, n) for n in range(3)]


def test_the_plain_template_is_that_of_instructions(tmp_path: Path) -> None:
    base = byte_tokenizer(tmp_path / "base")
    (tmp_path / "own").mkdir()
    single = [chat[:2] for chat in ALTERNATING]
    rows = prepared(base, messages(single), tmp_path)
    pairs = [{"instruction": asked["content"], "output": answer["content"]} for asked, answer in single]
    same = prepared(base, pairs, tmp_path / "own", messages_column="", max_completion_length=100)
    assert [row_of(rows, n) for n in range(3)] == [row_of(same, n) for n in range(3)]
    assert row_of(rows, 0)[0].count(1) == 1  # one begin token


def test_a_text_that_has_its_begin_and_end_tokens_gets_no_others(tmp_path: Path) -> None:
    base = byte_tokenizer(tmp_path / "base")
    rows = prepared(base, [{"text": "<s>cold</s>"}, {"text": "cold"}], tmp_path, messages_column="",
                    instruction_column="", output_column="text")  # fmt: skip
    assert row_of(rows, 0) == row_of(rows, 1)
    assert [row_of(rows, 0)[0].count(token) for token in (1, 2)] == [1, 1]


def test_forms_are_one_conversation(tmp_path: Path) -> None:
    base = byte_tokenizer(tmp_path / "base", chatml())
    chats = [*ALTERNATING, [SYSTEM, *ALTERNATING[1]]]
    found = []
    for number, (column, rows) in enumerate(
        [("messages", [{"messages": chat} for chat in chats]),
         ("conversations", [{"conversations": sharegpt(chat)} for chat in chats])]
    ):  # fmt: skip
        (tmp_path / str(number)).mkdir()
        made = prepared(base, rows, tmp_path / str(number), messages_column=column)
        found.append([row_of(made, row) for row in range(len(chats))])
    assert found[0] == found[1]


def test_a_conversational_completion_is_learned_and_its_prompt_is_not(tmp_path: Path) -> None:
    base = byte_tokenizer(tmp_path / "base", chatml())
    chat = ALTERNATING[1]
    rows = prepared(base, [{"prompt": chat[:3], "completion": chat[3:4]}], tmp_path, messages_column="",
                    prompt_column="prompt", completion_column="completion")  # fmt: skip
    ids, learned = row_of(rows, 0)
    whole, _ = up_to_last(*mask_by_hand(tokenizer_in(base), chat[:4], "<|im_start|>assistant\n", "<|im_end|>"))
    assert ids == whole
    assert tokenizer_in(base).decode(np.array(ids)[learned]) == "day<|im_end|>"


def test_prompts_and_completions_of_text_are_taken_as_they_are(tmp_path: Path) -> None:
    base = byte_tokenizer(tmp_path / "base", chatml())
    options = {"messages_column": "", "prompt_column": "prompt", "completion_column": "completion"}
    rows = prepared(base, [{"prompt": "say not hot:", "completion": " cold"}], tmp_path, **options)
    ids, learned = row_of(rows, 0)
    tokenizer = tokenizer_in(base)
    assert tokenizer.decode(ids) == "<s>say not hot: cold</s>"
    assert tokenizer.decode(np.array(ids)[learned]) == " cold</s>"
    error = refusal(base, [{"prompt": "say", "completion": "cold"}], tmp_path, template="chatml", **options)
    assert "data.template is for turns, and column 'prompt' has texts" in str(error)


def test_a_turn_of_weight_0_is_given(tmp_path: Path) -> None:
    base = byte_tokenizer(tmp_path / "base", chatml())
    chat: list[Any] = [dict(turn) for turn in ALTERNATING[1]]
    chat[1]["weight"], chat[3]["weight"] = 0, 1
    ids, learned = row_of(prepared(base, messages([chat]), tmp_path), 0)
    assert tokenizer_in(base).decode(np.array(ids)[learned]) == f"day<|im_end|>{chat[5]['content']}<|im_end|>"


# ------------------------------------------------------------------------------- templates
def test_a_system_turn_that_a_template_refuses_can_be_merged(tmp_path: Path) -> None:
    base = byte_tokenizer(tmp_path / "base", GEMMA_LIKE)
    rows = messages([[SYSTEM, *ALTERNATING[1]]])
    error = refusal(base, rows, tmp_path)
    assert "rows.jsonl, row 0 (line 1), column 'messages', turn 0: the chat template does not take this" in str(error)
    assert "set data.system-turn = 'merged'" in error.public
    ids, _ = row_of(prepared(base, rows, tmp_path, system_turn="merged"), 0)
    said = tokenizer_in(base).decode(ids)
    assert said.startswith(
        "<s><start_of_turn>user\none word, no more\n\nsay not hot<end_of_turn>\n<start_of_turn>model"
    )
    error = refusal(base, messages([[SYSTEM, *ALTERNATING[0][1:]]]), tmp_path, system_turn="merged")
    assert "turn 0: a system turn without a user turn behind it cannot be merged" in str(error)


def test_the_turn_that_a_template_raises_at_is_named(tmp_path: Path) -> None:
    base = byte_tokenizer(tmp_path / "base", GEMMA_LIKE)
    doubled = [*ALTERNATING[1][:2], {"role": "assistant", "content": "secret"}]
    error = refusal(base, messages([*ALTERNATING, doubled]), tmp_path)
    assert "row 3 (line 4), column 'messages', turn 2: the chat template does not take this assistant turn" in str(
        error
    )
    assert "must alternate" in str(error)
    assert error.public == (
        "column 'messages': the chat template does not take this assistant turn; "
        "leave the row out, or use another data.template"
    )


@pytest.mark.parametrize("template", [LAST_ALONE, "{{ messages | length }}" + chatml()])
def test_a_template_that_rewrites_earlier_turns_is_refused(template: str, tmp_path: Path) -> None:
    base = byte_tokenizer(tmp_path / "base", template)
    thoughts = [dict(turn) for turn in ALTERNATING[1]]
    thoughts[1]["content"] = "<think>hm</think>cold"
    error = refusal(base, messages([thoughts]), tmp_path)
    assert "row 0 (line 1), column 'messages', turn 1: the chat template writes this answer, or what is" in str(error)
    assert "{% generation %}" in error.public


def test_a_template_that_marks_nothing_is_refused(tmp_path: Path) -> None:
    never = (
        "{% for m in messages %}{{ m.content }}{% if false %}{% generation %}{% endgeneration %}{% endif %}{% endfor %}"
    )
    error = refusal(byte_tokenizer(tmp_path / "base", never), messages(ALTERNATING), tmp_path)
    assert "row 0 (line 1), column 'messages': no token is the assistant's, by the chat template" in str(error)


def test_a_file_of_the_users_is_sent_as_text(tmp_path: Path) -> None:
    from strategies.rounds.handshake.resolve import resolve

    base = byte_tokenizer(tmp_path / "base", GEMMA_LIKE)
    place = tmp_path / "own.jinja"
    place.write_text(chatml())
    file = write_rows(tmp_path / "rows.jsonl", messages(ALTERNATING * 4))
    asked = config(file, template=str(place), test_split="", date="2026-01-31")
    store = Store(tmp_path / "store")
    sent = resolve(asked, store, 1)
    assert sent.data.template == chatml()
    found = prepare_file(sent, base, store, file, ())
    expected = mask_by_hand_with(base, chatml(), ALTERNATING[0])
    assert row_of(found, 0) == expected
    with pytest.raises(DataError, match=r"names a file of the server, which sends its text"):
        prepare_file(asked, base, store, file, ())
    for text, problem in (
        (None, "cannot be read"),
        ("no template", "it has no"),
        ("{{ x }}" * 10**4, "at most 65,536"),
    ):
        place.unlink(missing_ok=True)
        if text is not None:
            place.write_text(text)
        with pytest.raises(DataError, match=problem):
            resolve(asked, store, 1)


def mask_by_hand_with(base: Path, template: str, chat: Turns) -> tuple[list[int], list[bool]]:
    tokenizer = tokenizer_in(base)
    tokenizer.chat_template = template
    return up_to_last(*mask_by_hand(tokenizer, chat, "<|im_start|>assistant\n", "<|im_end|>"))


# ------------------------------------------------------------------------------- rows that are too long
def test_a_long_conversation_loses_its_last_turns() -> None:
    """Tokens are their own positions; 3 to 5, 9 to 10 and 15 to 20 are learned."""
    ranges = [(3, 6), (9, 11), (15, 21)]
    for most in range(6, 30):
        found = fitted(range(25), ranges, most, most // 2, begin=0)
        kept = [one for one in ranges if one[1] <= most]
        assert found.ids.tolist() == list(range(kept[-1][1]))
        assert np.flatnonzero(found.learned).tolist() == [token for one in kept for token in range(*one)]
        assert found.cut is (Cut.NOTHING if most >= 21 else Cut.TURNS)


def test_a_long_exchange_keeps_what_is_next_to_its_answer() -> None:
    """The prompt is 0 to 9, the answer 10 to 17."""
    for most in range(2, 18):
        found = fitted(range(30), [(10, 18), (22, 24)], most, most // 2, begin=0)
        answer = list(range(10, 18))[: max(most // 2, most - 10)]
        room = most - len(answer)
        prompt = [0, *range(10 - room + 1, 10)] if 1 < room < 10 else list(range(10 - room, 10))
        assert found.ids.tolist() == [*prompt, *answer]
        assert found.learned.tolist() == [False] * len(prompt) + [True] * len(answer)
        assert found.cut is Cut.EXCHANGE


def test_cut_rows_are_counted(base: Path, tmp_path: Path) -> None:
    rows = prepared(base, messages(ALTERNATING), tmp_path, max_length=40)
    answers = [tokenizer_in(base).decode(np.array(ids)[own]) for ids, own in (row_of(rows, row) for row in range(3))]
    assert answers == ["three<|im_end|>", "cold<|im_end|>day<|im_end|>", "assistant<|im_end|>user\nassistant<|im_end|>"]
    more = "more than data.max-length = 40 tokens"
    assert rows.notices == (f"train: 1 of 3 conversations lose their last turns: they have {more}",)
    (tmp_path / "short").mkdir()
    (said,) = prepared(base, messages(ALTERNATING), tmp_path / "short", max_length=9).notices
    assert said.startswith("train: 3 of 3 conversations have more than data.max-length = 9 tokens up to the end of")


# ------------------------------------------------------------------------------- what is refused
ANSWER = {"role": "assistant", "content": "day"}
ASKED = {"role": "user", "content": "night?"}
WRONG: dict[str, tuple[Any, str]] = {
    "unknown role": ([{"role": "asistant", "content": "x"}, ANSWER], "turn 0: the role is none of system, user"),
    "no assistant": ([ASKED, ASKED], "no turn is the assistant's, so there is nothing to learn; the roles are user"),
    "empty content": ([ASKED, {"role": "assistant", "content": " \n"}], "turn 1: 'content' is empty, and the role is"),
    "no content": ([ASKED, {"role": "assistant"}], "turn 1: 'content' is empty"),
    "no role": ([ASKED, {"content": "day"}], "turn 1: a turn has 'role' and 'content', or 'from' and 'value'"),
    "content of another type": ([ASKED, {"role": "assistant", "content": 3}], "turn 1, 'content': holds 3, but those"),
    "content of parts": ([ASKED, {"role": "assistant", "content": [{"type": "text"}]}], "turn 1, 'content': holds [{"),
    "role of another type": ([ASKED, {"role": 7, "content": "day"}], "turn 1, 'role': holds 7, but those before"),
    "a turn of text": ([ASKED, "day"], "item 1: holds 'day', but those before have dict"),
    "a text": ("night? day", "holds 'night? day', but those before have list"),
    "an object": (ASKED, "holds {'role': 'user'"),
    "a weight": ([ASKED, ANSWER | {"weight": 2}], "turn 1: 'weight' is neither 0 nor 1, but 2"),
    "a call of a tool": ([ASKED, {"role": "assistant", "tool_calls": [{"name": "f"}]}], "turn 1: calls of tools"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_malformed_row_is_named_by_file_line_and_turn(kind: str, base: Path, tmp_path: Path) -> None:
    value, problem = WRONG[kind]
    good = [ASKED, ANSWER]
    error = refusal(base, messages([good, good, value, good]), tmp_path)
    assert "rows.jsonl, row 2 (line 3), column 'messages'" in str(error)
    assert problem in str(error)
    for secret in ("rows.jsonl", "row 2", "line 3", "turn 1", "day", "night", "asistant", str(tmp_path)):
        assert secret not in error.public


@pytest.mark.parametrize("values", [[3, 4], [["day"], ["night"]], [{"role": "user"}] * 2, [[[ASKED]]] * 2])
def test_a_column_without_conversations_is_named(values: list[Any], base: Path, tmp_path: Path) -> None:
    error = refusal(base, [{"messages": value} for value in values], tmp_path)
    assert "row 0 (line 1), column 'messages'" in str(error)
    assert any(said in str(error) for said in ("neither a text nor", "a turn has 'role' and", "no list of turns"))


def test_a_row_without_turns_is_left_out(base: Path, tmp_path: Path) -> None:
    rows = messages([[ASKED, ANSWER], [], [ASKED, ANSWER]])
    assert len(prepared(base, [*rows, {"messages": None}], tmp_path)) == 2
    error = refusal(base, rows, tmp_path, skip_empty=False)
    assert "row 1 (line 2), column 'messages': the text is empty" in str(error)


def test_settings_that_contradict_are_all_named() -> None:
    with pytest.raises(ConfigError) as error:
        config(prompt_column="prompt", template="chat-ml", system_turn="none")
    told = str(error.value)
    assert "data.system-turn must be one of own, merged" in told
    with pytest.raises(ConfigError) as error:
        config(prompt_column="prompt", template="chtml")
    told = str(error.value)
    assert "data.prompt-column = 'prompt' needs data.completion-column beside it" in told
    assert "data.messages-column = 'messages' has whole conversations" in told
    assert "data.template must be one of auto, chat, plain, chatml" in told
    assert "did you mean 'chatml'?" in told


def test_a_file_of_conversations_says_which_key_reads_it(base: Path, tmp_path: Path) -> None:
    error = refusal(base, [{"conversations": sharegpt(chat)} for chat in ALTERNATING], tmp_path, messages_column="")
    assert "(set data.messages-column = 'conversations' if it has conversations)" in str(error)
    error = refusal(base, [{"conversations": sharegpt(chat)} for chat in ALTERNATING], tmp_path)
    assert "did you mean 'conversations'?" in str(error)


@pytest.mark.parametrize(("name", "key"), [
    ("seq-length", "max-length"), ("max-seq-length", "max-length"), ("data.seq-length", "max-length"),
    ("messages", "messages-column"), ("conversations", "messages-column"), ("prompt", "prompt-column"),
    ("chat-template", "template"),
])  # fmt: skip
def test_names_from_other_tools_are_answered(name: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"there is no key '{name}'; did you mean 'data\.{key}'\?"):
        TaskConfig.read({name: "x"})


# ------------------------------------------------------------------------------- a real tokenizer
@pytest.mark.parametrize("template", ["auto", *NAMED])
def test_a_real_tokenizer(template: str, tmp_path: Path) -> None:
    """Sentencepiece's pieces, with a mark for a space in front of every word."""
    base = ASSETS / "stories260k-llama"
    if not base.exists():
        pytest.skip("../shared/assets/stories260k-llama is not here")
    merged = "merged" if template == "gemma" else "own"
    rows = prepared(base, messages([*ALTERNATING, [SYSTEM, *ALTERNATING[1]]]), tmp_path, template=template,
                    system_turn=merged)  # fmt: skip
    ids, learned = row_of(rows, 0)
    said = tokenizer_in(base).decode(np.array(ids)[learned])
    assert said.replace(" ", "").startswith("three")
    assert ids.count(tokenizer_in(base).bos_token_id) == (template not in ("chatml", "llama-3"))
    assert "add" not in said
