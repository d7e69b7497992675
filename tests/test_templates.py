"""Chat templates come with a base: they say what transformers makes of them, and end when they run away."""

import os
from pathlib import Path

import pytest
from samples import language_base

from task.data.encoding.chats.templates import filled_in, template_of
from task.data.encoding.texts import tokenizer_in
from task.data.raw import DataError

CHATS = [[{"role": "user", "content": text}] for text in ("Task : add\n\none  two ", "é < & \"ß'", "", "日本")]
HONEST = [
    "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<model>{% endif %}",
    """{%- if messages[0]['role'] == 'system' %}
    {%- set text = messages[0]['content'] %}
{%- else %}
    {%- set text = '' %}
{%- endif %}
{{ bos_token }}{{ text }}
{% for message in messages %}
    {%- if loop.index0 % 2 != 0 %}{% continue %}{% endif %}
    {{- message.role | upper + ': ' + (message['content'] | trim) + eos_token }}
{% endfor %}
{%- generation %}x{% endgeneration %}{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}""",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}{% endfor %}"
    "{{ ns.n }}{{ dict(a=1) | items | list }}{{ unk_token }}{{ tools is defined and tools }}",
    "{% macro one(m) %}[{{ m.content }}]{% endmacro %}{{ one(messages[-1]) }}{{ strftime_now('%Y') }}",
]
RUNAWAY = {
    "loop": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "filter": "{{ range(100000) | map('string') | join('x' * 100000) }}",
    "multiplication": "{{ 'x' * 10 ** 10 }}",
    "doubling": "{% set n = namespace(t='xx') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
    "list": "{{ [0] * 10 ** 10 }}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "output": "{% for a in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
    "padding": "{{ '%10000000000d' | format(1) }}",
    "centre": "{{ 'x' | center(10 ** 10) }}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "words": "{{ lipsum(n=10 ** 6, min=10 ** 6) }}",
}
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch {place}') }}",
    "{{ lipsum.__globals__['os'].system('touch {place}') }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
]


def texts(folder: Path, template: str) -> list[str]:
    tokenizer = tokenizer_in(language_base(folder, template))
    with filled_in(template_of("auto", tokenizer, folder), tokenizer, folder) as own:
        return own.texts(CHATS)


@pytest.mark.parametrize("template", HONEST)
def test_a_template_says_what_transformers_makes_of_it(tmp_path: Path, template: str) -> None:
    tokenizer = tokenizer_in(language_base(tmp_path, template))
    expected = tokenizer.apply_chat_template(CHATS, tokenize=False, add_generation_prompt=True)
    assert texts(tmp_path, template) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNAWAY)
def test_a_template_that_runs_away_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=r"chat template (does not end|does not take)") as refused:
        texts(tmp_path, RUNAWAY[kind])
    assert str(tmp_path) not in refused.value.public


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_gets_nowhere(tmp_path: Path, template: str) -> None:
    place = tmp_path / "touched"
    try:
        found = texts(tmp_path / "base", template.replace("{place}", str(place)))
    except DataError as error:
        assert "chat template" in error.public  # noqa: PT017  either is right
    else:
        assert set(found) == {""}
    assert not place.exists()


def test_it_sees_no_environment_and_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    tokenizer = tokenizer_in(language_base(tmp_path, HONEST[0]))
    with filled_in(template_of("auto", tokenizer, tmp_path), tokenizer, tmp_path) as own:
        process = own._process
        assert b"secret" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    assert process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_conversations_are_sent_in_parts_and_come_back_in_order(tmp_path: Path) -> None:
    tokenizer = tokenizer_in(language_base(tmp_path, HONEST[0]))
    chats = [[{"role": "user", "content": f"{number} " + "x" * 300_000}] for number in range(40)]
    with filled_in(template_of("auto", tokenizer, tmp_path), tokenizer, tmp_path) as own:
        found = own.texts(chats)
    assert [text.split()[1] for text in found] == [str(number) for number in range(40)]


@pytest.mark.slow
def test_one_row_that_a_template_cannot_bear_is_enough(tmp_path: Path) -> None:
    """The first rows are taken, then it hangs."""
    trap = "{% if messages[0].content == 'last' %}{{ 10 ** (10 ** messages[0].content | length ** 9) }}{% endif %}x"
    tokenizer = tokenizer_in(language_base(tmp_path, trap))
    with (
        filled_in(template_of("auto", tokenizer, tmp_path), tokenizer, tmp_path) as own,
        pytest.raises(DataError, match=r"does not end|does not take"),
    ):
        own.texts([*CHATS, [{"role": "user", "content": "last"}]])


def test_a_process_that_is_gone_is_said(tmp_path: Path) -> None:
    """As when the system ends it for want of memory, while much is being sent to it."""
    tokenizer = tokenizer_in(language_base(tmp_path, HONEST[0]))
    with filled_in(template_of("auto", tokenizer, tmp_path), tokenizer, tmp_path) as own:
        own._process.kill()
        own._process.wait()
        with pytest.raises(DataError, match="does not end, no answer"):
            own.texts([[{"role": "user", "content": "x" * 10**6}]])
