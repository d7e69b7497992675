"""Prompts: what a model is given, made of an instruction and, where a row has one, the input that it is about.

The tokenizer's own chat template gets one message of the user: the instruction, and after an empty line the input. The
plain template is for models without one; a row without input has no part about it:

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

from task.data.encoding.templates import Template, filled_in
from task.data.encoding.texts import tokenized
from task.data.raw import DataError

Prompts = Callable[[Sequence[str], Sequence[str]], list[list[int]]]  # of instructions and inputs


def chats(template: str, tokenizer: Any, place: object) -> bool:
    """Does `data.template` mean the tokenizer's own? DataError where it shall be and there is none."""
    own = bool(tokenizer.chat_template)
    if template == "chat" and not own:
        raise DataError(f"data.template = 'chat', but the tokenizer in {place} has no chat template; use 'plain'")
    return own and template != "plain"


@contextmanager
def prompts_of(template: str, tokenizer: Any, place: object, day: str = "") -> Iterator[Prompts]:
    """Give what makes token ids of instructions and inputs, as `data.template` says. Raises DataError."""
    if not chats(template, tokenizer, place):
        yield partial(plain_prompts, tokenizer)
        return
    with filled_in(tokenizer, place, day) as own:
        yield partial(chat_prompts, own, tokenizer)


def chat_prompts(
    template: Template, tokenizer: Any, instructions: Sequence[str], inputs: Sequence[str]
) -> list[list[int]]:
    """Token ids of every prompt, by the tokenizer's chat template. DataError where it takes no such message."""
    contents = [f"{task}\n\n{about}" if about else task for task, about in zip(instructions, inputs, strict=True)]
    texts = template.texts([[{"role": "user", "content": content}] for content in contents])
    return bare_ids(tokenizer, texts)  # the template has written the special tokens itself


def plain_prompts(tokenizer: Any, instructions: Sequence[str], inputs: Sequence[str]) -> list[list[int]]:
    """Token ids of every prompt, by the plain template, with what the tokenizer puts in front."""
    return prompt_ids(tokenizer, [_plain(task, about) for task, about in zip(instructions, inputs, strict=True)])


def prompt_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that something follows on: special tokens in front, no end token."""
    found = tokenized(tokenizer, texts, verbose=False)
    end = tokenizer.eos_token_id
    return [ids[:-1] if len(ids) > 1 and ids[-1] == end else ids for ids in found]


def bare_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, without any special tokens but those that are written in them."""
    return tokenized(tokenizer, texts, add_special_tokens=False, verbose=False)


def _plain(instruction: str, about: str) -> str:
    parts = [f"Task:\n{instruction}", *([f"Input:\n{about}"] if about else []), "Answer:\n"]
    return "\n\n".join(parts)
