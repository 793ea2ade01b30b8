"""The sandbox of chat templates: jinja2 as transformers sets it up, with limits on time and size.

A template comes with the model and is not trusted. jinja2's immutable sandbox refuses attributes and calls that lead
out of it; the limits end templates that run or grow without end. Built-in functions of Python cannot be interrupted,
so the size of a result is bounded before any call that could make a huge value at once.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import BuiltinMethodType, FrameType
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

MOST_SECONDS = 2.0
MOST_CHARACTERS = 4_000_000
_MOST_AT_ONCE = 10 * MOST_CHARACTERS  # bound of a single result, which is an estimate from above
_MOST_NUMBER = 10**30
# Filters and methods of strings that turn values into text or repeat text. They are bounded before they run.
_FILTERS = (
    "capitalize",
    "center",
    "e",
    "escape",
    "forceescape",
    "format",
    "indent",
    "join",
    "lower",
    "pprint",
    "replace",
    "string",
    "striptags",
    "title",
    "tojson",
    "trim",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
)
_METHODS = (
    "center",
    "expandtabs",
    "format",
    "format_map",
    "join",
    "ljust",
    "replace",
    "rjust",
    "zfill",
)
_NUMBERS = re.compile(r"[0-9]+")
_WIDTH_ARGUMENT = re.compile(r"\*|\{[^}]*\{")  # a format's width comes from an argument


class TemplateStopped(Exception):
    """A template exceeded a limit."""


def environment() -> jinja2.Environment:
    """The environment in which transformers compiles chat templates (transformers/utils/chat_template_utils.py)."""
    made = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"], finalize=_finalize
    )
    made.filters["tojson"] = _to_json
    made.filters |= {name: _guarded(made.filters[name]) for name in _FILTERS}
    made.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda format: now().strftime(format),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return made


def now() -> datetime.datetime:
    """The clock of ``strftime_now``."""
    return datetime.datetime.now()


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = [v for v in (left, right) if isinstance(v, (int, float))]
        if operator == "**" or any(abs(v) > _MOST_NUMBER for v in numbers):
            raise TemplateStopped(f"it computes {operator} of large values")
        if operator == "*" and len(numbers) == 1:
            _bound((left, right), numbers, "*")
        elif operator == "%" and isinstance(left, str):
            _bound(left, right if isinstance(right, tuple) else (right,), "format")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        if isinstance(method, BuiltinMethodType) and isinstance(text := method.__self__, str):
            name, given = method.__name__, (*args, *kwargs.values())
            if name in _METHODS:
                _bound((text, given) if name == "join" else text, given, name)
        return super().call(__context, __obj, *args, **kwargs)

    def _generate(self, source: jinja2.nodes.Template, *args: Any, **kwargs: Any) -> Any:
        for node in source.find_all(jinja2.nodes.Concat):  # makes text without a call that could be checked
            node.nodes = [jinja2.nodes.Filter(n, "string", [], [], None, None, lineno=n.lineno) for n in node.nodes]
        return super()._generate(source, *args, **kwargs)


class _Generation(jinja2.ext.Extension):
    """The block ``{% generation %}``, which marks answers for training. It is rendered as its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares a set)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    @staticmethod
    def _body(caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """``dict`` in a template: it makes dictionaries, and has no attributes of a type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(jinja2.utils.Namespace):
    """``namespace`` in a template, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any):  # so that a template can use the name self
        self, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"{name!r:.60} is not allowed in a namespace, because it is unsafe")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: not escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


# --- limits --------------------------------------------------------------------------------


@contextmanager
def limits() -> Iterator[None]:
    """Stop the code inside when it exceeds the time limit, or when a string or list exceeds the size limit."""
    deadline, before = time.monotonic() + MOST_SECONDS, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > deadline:
            raise TemplateStopped(f"it ran for more than {MOST_SECONDS:g} seconds")
        for value in (*frame.f_locals.values(), argument):
            if isinstance(value, (str, list)) and len(value) > MOST_CHARACTERS:
                raise TemplateStopped(f"it makes more than {MOST_CHARACTERS:,} characters")
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is bounded before it is made."""

    @functools.wraps(function)  # it keeps the mark by which jinja2 passes the environment first
    def guarded(*args: Any, **kwargs: Any) -> Any:
        value, *rest = args[1:] if hasattr(function, "jinja_pass_arg") else args
        _bound(value, (*rest, *kwargs.values()), function.__name__.removeprefix("do_"))
        return function(*args, **kwargs)

    return guarded


def _finalize(value: Any) -> Any:
    """An expression's value before it is written."""
    if not isinstance(value, str):
        _bound(value, (), "text")
    return value


def _bound(value: Any, arguments: Sequence[Any], what: str) -> None:
    """Stop if the text made of a value could be huge: numbers among the arguments can be widths or repetitions, and
    joined or replaced text is repeated."""
    factors = [1]
    if what != "format" or (isinstance(value, str) and _WIDTH_ARGUMENT.search(value)):
        factors += [_magnitude(a) for a in arguments if isinstance(a, (int, float))]
    if what == "format" and isinstance(value, str):
        factors += [_magnitude(float(n)) for n in _NUMBERS.findall(value)]
    if what in ("join", "replace"):
        factors += [_size(a) for a in arguments[-1:]]
    if (_size(value) + 1) * (max(factors) + 1) > _MOST_AT_ONCE:
        raise TemplateStopped(f"it computes {what} of large values")


def _magnitude(number: float) -> int:
    return int(min(abs(number), _MOST_AT_ONCE)) if number == number else 0


def _size(value: Any) -> int:
    """Characters and items in a value, counted up to the limit."""
    size, left = 0, [value]
    while left and size <= _MOST_AT_ONCE:
        item = left.pop()
        size += len(item) if isinstance(item, str) else 1
        if isinstance(item, dict):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            left += item
    return size
