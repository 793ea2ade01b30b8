"""Chat templates against transformers, messages in OpenAI's form, and templates that try to leave the sandbox."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import conversations
import pytest
from conversations import asked, call, said

from llamagpu.errors import UnsupportedModelError, UsageError
from llamagpu.text import ChatTemplate, Conversation

GOLDENS = json.loads((Path(__file__).parent.parent / "docs" / "chat-templates.json").read_text())


def render(source: str, messages: list[Any], **given: Any) -> str:
    return ChatTemplate(source, conversations.SPECIAL).render(Conversation(messages, **given)).text


# --- transformers --------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDENS["templates"])
def test_renderings_match_transformers(shared: Path, name: str) -> None:
    """Byte for byte, for every conversation; a conversation that transformers refuses is refused."""
    source = conversations.templates(shared).get(name)
    if source is None:
        pytest.skip("its package is not installed")
    golden = GOLDENS["templates"][name]
    assert conversations.digest(source) == golden["sha256"], "the template has changed: make the goldens again"
    assert golden["renderings"].keys() == conversations.CASES.keys()
    for key, case in conversations.CASES.items():
        text = conversations.rendered(source, case)
        assert (text if text is None else conversations.digest(text)) == golden["renderings"][key], f"{key}:\n{text}"


def test_what_templates_are_given() -> None:
    """The functions, options and blocks of transformers."""
    template = ChatTemplate(
        "{{ bos_token }}{% for m in messages %}{% generation %}{{ m.content }}{% set x = 1 %}{% endgeneration %}"
        "{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}{{ x is defined }}"
        "{{ {'b': 'é<', 'a': [1, 2]} | tojson(sort_keys=true, separators=(',', ':')) }}"
        "{{ 'é' | tojson(ensure_ascii=true) }}{{ [1] | tojson(indent=1) }}{{ strftime_now('%Y') | length }}"
        "{{ tools is none }}{{ documents is none }}{{ effort }}{{ dict(a=1).a }}",
        conversations.SPECIAL,
    )
    text = template.render(Conversation(said("a", "b", "c"), arguments={"effort": "low"})).text
    assert text == '<s>abFalse{"a":[1,2],"b":"é<"}"\\u00e9"[\n 1\n]4TrueTruelow1'
    assert {"effort", "messages", "tools"} <= template.variables


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"arguments": {"messages": []}}, "not an argument"),
        ({"arguments": {"a b": 1}}, "not an argument"),
        ({"arguments": {"x": object()}}, "hold text, numbers"),
        ({"continue_final_message": True}, "exclude one another"),
        ({"tools": {"name": "f"}}, "not a list of tools"),
        ({"tools": [{"type": "function"}]}, "not a tool"),
        ({"documents": ["text"]}, "not a list of documents"),
    ],
)
def test_arguments_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        render("{{ messages[0].content }}", said("Hi"), **given)


def test_continuing_needs_text() -> None:
    def continued(source: str, messages: list[Any]) -> str:
        return render(source, messages, add_generation_prompt=False, continue_final_message=True)

    source = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    assert continued(source, said("Hi", "One, ")) == "[Hi][One,"
    with pytest.raises(UsageError, match="cannot be continued"):
        continued("{{ messages[0].content }}", said("Hi", "One"))
    with pytest.raises(UsageError, match="cannot be continued"):
        continued(source, asked({})[:-1])


# --- messages ------------------------------------------------------------------------------


def test_parts_reach_templates_that_read_them() -> None:
    """Others get one text."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}]
    reads = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "({% if p.type == 'text' %}{{ p['text'] }}{% endif %}){% endfor %}{% endif %}{% endfor %}"
    )
    assert render(reads, messages) == "(a)(b)"
    assert render("{% for m in messages %}{{ m.content }}{% endfor %}", messages) == "a\nb"
    assert render("{% for m in messages %}{{ m.content | tojson }}{% endfor %}", messages) == '"a\\nb"'


def test_tool_calls_in_openai_form() -> None:
    """Arguments become objects, null fields and empty lists vanish, reasoning has the names that templates read."""
    source = "{{ messages | tojson }}"
    message = {"role": "assistant", "content": None, "refusal": None, "reasoning": "hm", "tool_calls": [call("f", "")]}
    found = json.loads(render(source, [message, {"role": "assistant", "content": "a", "tool_calls": []}]))
    assert found[0] == {
        "role": "assistant",
        "reasoning": "hm",
        "thinking": "hm",
        "reasoning_content": "hm",
        "tool_calls": [call("f", {})],
    }
    assert found[1] == {"role": "assistant", "content": "a"}
    assert message["tool_calls"][0]["function"]["arguments"] == ""  # the caller's own object


def test_the_role_developer() -> None:
    """It is a newer name of ``system``, which templates get unless they know the role."""
    messages = [{"role": "developer", "content": "x"}]
    assert render("{{ messages[0].role }}", messages) == "system"
    assert render("{% if messages[0].role == 'developer' %}yes{% endif %}", messages) == "yes"
    assert render("{% if messages[0].role == 'critic' %}yes{% endif %}", [{"role": "critic", "content": ""}]) == "yes"


DEEP: Any = "x"
for _ in range(3000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("hi", "not a message"),
        ({"content": "hi"}, "not a message"),
        ({"role": 1, "content": "hi"}, "not a message"),
        ({"role": "asistant", "content": "hi"}, "Unknown role 'asistant'"),
        ({"role": "user"}, "role and a content"),
        ({"role": "user", "content": None}, "role and a content"),
        ({"role": "user", "content": 5}, "text, or a list of parts"),
        ({"role": "user", "content": ["hi"]}, "not a part"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "part of type 'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, "has no text"),
        ({"role": "tool", "content": "x", "tool_call_id": 7}, "tool_call_id must be text"),
        ({"role": "user", "content": "x", "name": {}}, "name must be text"),
        ({"role": "assistant", "tool_calls": {"a": 1}}, "tool_calls must be a list"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "not a tool call"),
        ({"role": "assistant", "tool_calls": [call("f", "{")]}, "are not JSON"),
        ({"role": "assistant", "tool_calls": [call("f", "[1]")]}, "not the arguments"),
        ({"role": "user", "content": "x", "extra": object()}, "hold text, numbers"),
        ({"role": "user", "content": "x", "extra": {1: 2}}, "hold text, numbers"),
        ({"role": "user", "content": "x", "extra": DEEP}, "nested too deeply"),
    ],
)
def test_messages_refused(message: Any, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        render("{{ messages }}", [message])
    with pytest.raises(UsageError, match="empty"):
        render("", [])


# --- the sandbox ---------------------------------------------------------------------------

ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ '' | attr('__class__') | attr('__base__') }}",
    "{{ messages | map(attribute='__class__') | list | first }}",
    "{{ ['']|map('attr', '__class__')|list }}",
    "{{ messages|groupby('__class__') }}",
    "{{ messages.__init__.__globals__['os'].system('touch ESCAPED') }}",
    "{{ lipsum.__globals__['os'].system('touch ESCAPED') }}",
    "{{ lipsum['__globals__']['os'] }}",
    "{{ cycler.__init__.__globals__.os.popen('touch ESCAPED').read() }}",
    "{{ joiner.__init__.__globals__.os.system('touch ESCAPED') }}",
    "{{ namespace.__init__.__globals__.os.system('touch ESCAPED') }}",
    "{{ namespace(__class__=1).__class__ }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}{{ n }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ dict.mro() }}",
    "{{ range.__class__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['datetime'] }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ messages.append.__self__.__class__ }}",
    "{{ (messages[0].items)().__class__ }}",
    "{% macro f() %}{% endmacro %}{{ f.__globals__ }}",
    "{% macro f() %}{{ caller.__code__ }}{% endmacro %}{% call f() %}{% endcall %}",
    "{{ loop.__init__ }}{% for m in messages %}{{ loop._iterator.__class__ }}{% endfor %}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '{x.__class__}'.format_map({'x': messages}) }}",
    "{{ ('{0.__class__}' | attr('format'))(messages) }}",
    "{% set f = '{0.__class__}'.format %}{{ [messages] | map(f) | list }}{{ f(messages) }}",
    "{{ ['{0.__class__}'] | map('attr', 'format') | map('call', messages) | list }}",
    "{{ '%(a)s' | format(a=''.__class__) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch ESCAPED') }}",
    "{% from 'os' import system %}{{ system('touch ESCAPED') }}",
    "{% extends 'base' %}",
    "{{ messages[0].update({'content': 'changed'}) }}",
    "{{ messages.clear() }}",
    "{{ messages[0].pop('content') }}",
    "{{ (messages | first).__setitem__('content', 'changed') }}",
    "{{ __import__('os').system('touch ESCAPED') }}",
    "{{ open('ESCAPED', 'w') }}",
    "{{ ''.join.__self__.__class__ }}",
    "{{ raise_exception('{0.__class__}'.format(self)) }}",
)
LARGE = (
    "{{ range(10 ** 9) | list }}",
    "{{ range(999999999) | join }}",
    "{{ [0] * 100000 * 100000 }}",
    "{{ 'a' * 100000 * 100000 }}",
    "{{ 'a'.ljust(9999999999) }}",
    "{{ 'a'.center(9999999999) }}",
    "{{ 'a' | center(9999999999) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (9999999999, 1) }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 9999999999) }}",
    "{{ [1] | tojson(indent=9999999999) }}",
    "{{ 'a\n' | indent(9999999999, true) }}",
    "{{ ('a' * 99999).replace('a', 'a' * 99999) }}",
    "{{ ('a' * 99999) | replace('a', 'a' * 99999) }}",
    "{{ ['a'] * 99999 | join('a' * 99999) }}",
    "{{ ('a' * 99999).join(['a'] * 99999) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% set n = namespace(x='aaaa') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x ~ '' }}",
    "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "{{ 2 ** 99999999 }}",
)


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No template may start a program, or open or import anything."""

    def escaped(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a template escaped")

    monkeypatch.chdir(tmp_path)
    for owner, name in ((os, "system"), (os, "popen"), (subprocess, "Popen"), (builtins, "open"), (builtins, "eval")):
        monkeypatch.setattr(owner, name, escaped)


@pytest.mark.usefixtures("locked")
@pytest.mark.parametrize("source", ESCAPES)
def test_no_template_escapes(source: str) -> None:
    """It is refused, or it renders nothing of Python's inside; the conversation stays as it was."""
    messages = said("Hi")
    try:
        text = render(source, messages)
    except (UsageError, UnsupportedModelError):
        text = ""
    assert not any(
        inside in text for inside in ("class '", "built-in", "<function", "<module", "root:", "object at 0x")
    )
    assert messages == said("Hi")
    assert not os.listdir()


@pytest.mark.usefixtures("locked")
@pytest.mark.parametrize("source", LARGE)
def test_large_and_endless_templates_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamagpu.text.limits.MOST_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(UsageError):
        render(source, said("Hi"))
    assert time.monotonic() - start < 5


def test_ordinary_sizes_are_not_stopped() -> None:
    """Limits are far above the needs of long conversations and of large numbers."""
    text = "word <b> 123456789 " * 5_000
    source = (
        "{% for m in messages %}{{ m.content | trim | replace('word', 'longer word') | indent(4) }}{{ 5000000000 }}"
        "{{ {'n': 123456789012, 'c': m.content} | tojson(indent=4) }}{{ '%s %d' | format('x', 123456789) }}"
        "{{ m.content.replace('x', '') ~ 99999999 }}{{ '{}'.format(99999999) }}{{ '-' * 80 }}{% endfor %}"
    )
    assert len(render(source, said(text, "b"))) > 300_000
