"""Prompts: the part of a row that the model is given, made of an instruction and an optional input.

A chat template gets one user message: the instruction, an empty line, and the input. The plain template is for models
without one; a row without an input has no such part:

    Task:
    <instruction>

    Input:
    <input>

    Answer:

and a line break, after which the completion begins.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from task.data.encoding.chats.templates import Template, filled_in
from task.data.encoding.texts import tokenized

Prompts = Callable[[Sequence[str], Sequence[str]], list[list[int]]]  # of instructions and inputs


@contextmanager
def prompts_of(template: str, tokenizer: Any, place: object, day: str = "") -> Iterator[Prompts]:
    """Yield the function from instructions and inputs to token ids, by the text of a chat template; empty: the plain
    one. Raises DataError."""
    if not template:
        yield partial(plain_prompts, tokenizer)
        return
    with filled_in(template, tokenizer, place, day) as own:
        yield partial(chat_prompts, own, tokenizer)


def chat_prompts(
    template: Template, tokenizer: Any, instructions: Sequence[str], inputs: Sequence[str]
) -> list[list[int]]:
    """Return the token ids of every prompt, by the chat template. Raises DataError if it refuses a user message."""
    contents = [f"{task}\n\n{about}" if about else task for task, about in zip(instructions, inputs, strict=True)]
    texts = template.texts([[{"role": "user", "content": content}] for content in contents])
    return bare_ids(tokenizer, texts)  # the template has written the special tokens itself


def plain_prompts(tokenizer: Any, instructions: Sequence[str], inputs: Sequence[str]) -> list[list[int]]:
    """Return the token ids of every prompt, by the plain template, with the tokenizer's leading tokens."""
    return prompt_ids(tokenizer, [_plain(task, about) for task, about in zip(instructions, inputs, strict=True)])


def prompt_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of texts that will be continued: leading special tokens, no end token. A text that begins
    with the begin token itself gets no second one."""
    found = tokenized(tokenizer, texts, verbose=False)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    single = [ids[1:] if begin is not None and ids[:2] == [begin, begin] else ids for ids in found]
    return [ids[:-1] if len(ids) > 1 and ids[-1] == end else ids for ids in single]


def bare_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of texts, with no special tokens except those written in the texts."""
    return tokenized(tokenizer, texts, add_special_tokens=False, verbose=False)


def _plain(instruction: str, about: str) -> str:
    parts = [f"Task:\n{instruction}", *([f"Input:\n{about}"] if about else []), "Answer:\n"]
    return "\n\n".join(parts)


def ended(ids: Sequence[int], end: int) -> list[int]:
    """Return token ids with the end token behind them, once."""
    return [*ids] if ids and ids[-1] == end else [*ids, end]


def ending(ids: Sequence[int], room: int, begin: int | None) -> Sequence[int]:
    """Return the last `room` ids (at least one); a leading `begin` is kept if there is room for more than that."""
    if len(ids) <= room:
        return ids
    lead = [ids[0]] if ids[0] == begin and room > 1 else []
    return [*lead, *ids[len(ids) - room + len(lead) :]]
