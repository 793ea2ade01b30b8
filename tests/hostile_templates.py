"""Chat templates that eat time or memory, or try to leave the sandbox: every filter, test, method and operator."""

from __future__ import annotations

from collections.abc import Iterator

import conversations
import jinja2
import numpy as np
from hostile import MESSAGES, Outcome

from llamagpu.text import ChatTemplate, Conversation
from llamagpu.text.sandbox import environment

MOST_SECONDS = 2.0 + 0.6  # the limit is 2 s of a template's own code; then come one more built-in call and clearing up
MOST_BYTES = 256_000_000
VALUES = (
    *("messages", "messages[0]", "''", "'a'", "('ab ' * 99999)", "('\U0001f600' * 999999)", "(('a' * 1999999) ~ 'b')"),
    *("range(99999)", "([0] * 99999)", "([[1]] * 9999)", "5", "10 ** 3", "2.5", "1e308", "true", "none", "missing"),
    *("{'a': 1, 'b': messages}", "(1, 'a', none)", "namespace(a=1)", "(('<a&>' * 99999) | safe)", "cycler('a', 'b')"),
    *("'a\u00e9'.encode()", "joiner(', ')", "lipsum", "loop", "(messages | map(attribute='content'))", "dict", "-1"),
    *("999999999", "9999999999999", "('%s ' * 9999)", "('{0}' * 9999)", "('9' * 4000)", "('https://a.b ' * 99999)"),
    *("('a\\n' * 99999)", "([['a', 'b']] * 9999)", "(range(99999) | map('string'))", "n.x", "n.y", "[n.x, n.x]"),
    *("(n.x, n.x)", "{'a': n.x, 'b': n.x}", "dict(a=n.x, b=n.x)", "(messages | groupby('role'))", "self", "caller"),
)
ARGUMENTS = (
    *("0", "1", "-1", "999999999", "99999", "2.5", "'a'", "('b' * 999999)", "none", "true", "messages", "[0]", "n.x"),
    *("{97: 'b' * 999999}", "'role'", "'list'", "'ceil'", "attribute='content'", "width=999999999", "default=n.x"),
    *("start=[]", "fill_with=n.x", "indent='b' * 999999", "'utf-32'", "separators=('b' * 999999, 'c')", "'upper'"),
    *(
        "'format'",
        "'__class__'",
        "method='ceil'",
        "base=36",
        "length=999999999",
        "wrapstring='b' * 999999",
        "precision=999999999",
    ),
)
OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">=", "in", "not in", "and", "or")
METHODS = sorted(
    {
        name
        for kind in (str, bytes, int, float, list, dict, tuple, range, jinja2.runtime.LoopContext, jinja2.runtime.Macro)
        for name in dir(kind)
    }
)
INSIDE = ("class '", "built-in", "<function", "<module", "<bound", "Environment object")


def sources(count: int, seed: int) -> Iterator[str]:
    """Templates around random expressions: alone, compared, kept, and repeated until they are large."""
    rng, made = np.random.default_rng(seed), environment()
    filters, tests = sorted(made.filters), sorted(made.tests)

    def one(given: tuple[str, ...] | list[str]) -> str:
        return given[int(rng.integers(len(given)))]

    def arguments() -> str:
        given = [one(ARGUMENTS) for _ in range(int(rng.integers(0, 4)))]
        return ", ".join(sorted(dict.fromkeys(given), key=lambda text: "=" in text))

    def expression() -> str:
        kind = int(rng.integers(5))
        if kind == 0:
            return f"({one(VALUES)} | {one(filters)}({arguments()}))"
        if kind == 1:
            return f"({one(VALUES)} is {one(tests)}({arguments()}))"
        if kind == 2:
            return f"{one(VALUES)}.{one(METHODS)}({arguments()})"
        if kind == 3:
            return f"({one(VALUES)} {one(OPERATORS)} {one(VALUES)})"
        return f"({one(VALUES)} | {one(filters)}({arguments()}) | {one(filters)}({arguments()}))"

    for _ in range(count):
        made_of, kind = expression(), int(rng.integers(5))
        start = "{% set n = namespace(x=[1], y=[1]) %}"
        if kind == 0:
            yield f"{start}{{{{ {made_of} }}}}"
        elif kind == 1:
            yield f"{start}{{% set a = {made_of} %}}{{{{ a | list | length }}}}{{{{ a == {made_of} }}}}"
        elif kind == 2:
            changed = f"{{% set n.y = n.x %}}{{% set n.x = {made_of} %}}"
            yield f"{start}{{% for i in range(70) %}}{changed}{{% endfor %}}{{{{ n.x == n.y }}}}"
        elif kind == 3:
            yield f"{start}{{% for i in range(900) %}}{{% set n.x = [n.x, {made_of}] %}}{{% endfor %}}"
        else:
            body = f"{{{{ {made_of} }}}}" * 20
            yield f"{start}{{% macro f() %}}{body}{{% endmacro %}}{{% set a %}}{{{{ f() }}}}{{{{ f() }}}}{{% endset %}}"


def render(source: str) -> None:
    """Render a template for a conversation; what it may not show is an AssertionError."""
    text = ChatTemplate(source, conversations.SPECIAL).render(Conversation(MESSAGES)).text
    shown = [inside for inside in INSIDE if inside in text]
    assert not shown, f"it shows {shown}: {text[:200]}"


def complaint(found: Outcome) -> str:
    """What is wrong with an outcome; empty if nothing is."""
    slow = f"{found.seconds:.1f} s" if found.seconds > MOST_SECONDS else ""
    large = f"{found.grown / 1e6:.0f} MB" if found.grown > MOST_BYTES else ""
    return ", ".join(part for part in (found.foreign, slow, large) if part)
