"""Columns of conversations, of prompts and completions, of instructions and outputs: recognised by names and types."""

from task.data.guessing.columns import Column, Holds
from task.data.guessing.guess import Guess, Sight, Sure, literally

MESSAGES, PROMPT, COMPLETION = "data.messages-column", "data.prompt-column", "data.completion-column"
CHOSEN, REJECTED = "data.chosen-column", "data.rejected-column"
INSTRUCTION, INPUT, OUTPUT = "data.instruction-column", "data.input-column", "data.output-column"
PLAIN = "text"  # a common name for outputs that have no instructions


def prompted(sight: Sight) -> Guess | None:
    """Return the columns of rows that a language model learns: conversations, else pairs of texts, else the column with
    the longest texts. None if there is no text."""
    return _pair(sight) or _conversation(sight) or _instruction(sight) or _plain(sight)


def preferred(sight: Sight) -> Guess | None:
    """Return the columns of chosen and rejected answers, which have common names, and of texts as prompts if answers
    are texts. Conversations begin with their prompts, unless the column of prompts has turns too."""
    chosen, rejected = (sight.named(key, Holds.TEXT, Holds.TURNS) for key in (CHOSEN, REJECTED))
    if chosen is None or rejected is None or chosen is rejected or chosen.holds is not rejected.holds:
        return None
    prompt = sight.named(PROMPT, chosen.holds)
    if prompt in (chosen, rejected) or (prompt is None and chosen.holds is Holds.TEXT):
        return None
    return Guess({PROMPT: prompt.name if prompt else "", CHOSEN: chosen.name, REJECTED: rejected.name}, Sure.SAID)


def _conversation(sight: Sight) -> Guess | None:
    turns = [one for one in sight.columns if one.holds is Holds.TURNS]
    found = sight.named(MESSAGES, Holds.TURNS) or next(iter(turns), None)
    if found is None:
        return None
    others = tuple(one.name for one in turns if one is not found)
    return Guess({MESSAGES: found.name}, Sure.NAMES, {MESSAGES: others} if others else {})


def _pair(sight: Sight) -> Guess | None:
    """Return a prompt and its completion, if they are called so: both are taken as they are."""
    prompt, completion = (sight.named(key, Holds.TEXT, Holds.TURNS) for key in (PROMPT, COMPLETION))
    given = PROMPT in sight.given and COMPLETION in sight.given
    if not (prompt and completion and (given or literally([prompt, completion], "prompt", "completion"))):
        return None
    return Guess({PROMPT: prompt.name, COMPLETION: completion.name}, Sure.NAMES)


def _instruction(sight: Sight) -> Guess | None:
    instruction, output = sight.named(INSTRUCTION, Holds.TEXT), sight.named(OUTPUT, Holds.TEXT)
    if not (instruction and output) or output is instruction or (output.name == PLAIN and OUTPUT not in sight.given):
        return None
    more = sight.named(INPUT, Holds.TEXT)
    columns = {
        INSTRUCTION: instruction.name,
        INPUT: more.name if more and more not in (instruction, output) else "",
        OUTPUT: output.name,
    }
    return Guess(columns, Sure.SHAPE if output.repeats and OUTPUT not in sight.given else Sure.NAMES)


def _plain(sight: Sight) -> Guess | None:
    found: Column | None = sight.named(OUTPUT) if OUTPUT in sight.given else sight.text()
    if found is None:
        return None
    texts = [one.name for one in sight.columns if one.holds is Holds.TEXT and one is not found]
    return Guess({INSTRUCTION: "", OUTPUT: found.name}, Sure.LEFT, {OUTPUT: tuple(texts)} if texts else {})
