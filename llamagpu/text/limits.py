"""Limits on the time and memory of chat templates.

Built-in functions of Python cannot be interrupted. So the size of a result is bounded before any call that could make a
huge value at once, and what a template makes is added up, whether it keeps it or not.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

MOST_SECONDS = 2.0
MOST_CHARACTERS = 4_000_000
MOST_BYTES = 200_000_000  # of all long values together
_MOST_AT_ONCE = 4 * MOST_CHARACTERS  # bound of a single result, which is an estimate from above
_MOST_NUMBER = 10**30
_LONG = 10_000  # items or characters; shorter values are not added up
_ITEM_BYTES = 64  # of a list's item
_NUMBERS = re.compile(r"[0-9]+")
_WIDTH_ARGUMENT = re.compile(r"\*|\{[^}]*\{")  # a format's width comes from an argument
_FORMATS = ("format", "format_map")


class TemplateStopped(Exception):
    """A template exceeded a limit."""


@contextmanager
def limits() -> Iterator[None]:
    """Stop the code inside when it exceeds the time limit, or when its values exceed a limit of size."""
    deadline, before = time.monotonic() + MOST_SECONDS, sys.gettrace()
    made, last = 0, None

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal made, last
        if time.monotonic() > deadline:
            raise TemplateStopped(f"it ran for more than {MOST_SECONDS:g} seconds")
        for value in (*frame.f_locals.values(), argument):
            if isinstance(value, (str, bytes, list, tuple)) and len(value) > MOST_CHARACTERS:
                _check_characters(len(value))
        if event == "return" and argument is not last:
            made, last = made + _held(argument), argument
            if made > MOST_BYTES:
                raise TemplateStopped(f"it makes more than {MOST_BYTES:,} bytes")
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def _check_characters(count: int) -> None:
    if count > MOST_CHARACTERS:
        raise TemplateStopped(f"it makes more than {MOST_CHARACTERS:,} characters")


def _held(value: Any) -> int:
    """The bytes of a long value."""
    if isinstance(value, (str, bytes)):
        return sys.getsizeof(value) if len(value) > _LONG else 0
    return len(value) * _ITEM_BYTES if isinstance(value, (list, tuple)) and len(value) > _LONG else 0


def concatenated(pieces: Iterable[str]) -> str:
    """Pieces as one text."""
    given = list(pieces)
    _check_characters(sum(map(len, given)))
    return "".join(given)


def bound(value: Any, arguments: Sequence[Any], what: str) -> None:
    """Stop if the text or list made of a value could be huge: each of its items could be as wide as a number among the
    arguments, and be followed by all other arguments."""
    numbers = [_magnitude(a) for a in arguments if isinstance(a, (int, float))]
    others = [a for a in arguments if not isinstance(a, (int, float))]
    if what in _FORMATS and isinstance(value, str):
        widths = [_magnitude(float(n)) for n in _NUMBERS.findall(value)]
        widths += numbers if _WIDTH_ARGUMENT.search(value) else []
        estimate = len(value) + (value.count("{") + value.count("%")) * (size(others) + max(widths, default=0))
    elif what == "sum":  # of lists: each addition makes another list
        estimate = (size(value) + 1) * (size(value) if others else 1)
    else:
        estimate = (size(value) + 1) * (max(numbers, default=0) + 1) * size(others)
    if estimate > _MOST_AT_ONCE:
        raise TemplateStopped(f"it computes {what} of large values")


def bound_numbers(operator: str, left: Any, right: Any) -> None:
    """Stop if an operator could make a huge value of two."""
    numbers = [v for v in (left, right) if isinstance(v, (int, float))]
    if operator == "**" or any(abs(v) > _MOST_NUMBER for v in numbers):
        raise TemplateStopped(f"it computes {operator} of large values")
    if operator == "*" and len(numbers) == 1:
        bound((left, right), numbers, "*")
    elif operator == "%" and isinstance(left, (str, bytes)):
        bound(left, right if isinstance(right, tuple) else (right,), "format")
    elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
        _check_characters(len(left) + len(right))


def counted(value: Any) -> Any:
    """A list, tuple or dictionary of a template, unless it holds too much: one that holds another twice, which holds a
    third twice, and so on, takes for ever to compare."""
    if size(value) > _MOST_AT_ONCE:
        raise TemplateStopped(f"it makes more than {_MOST_AT_ONCE:,} items")
    return value


def guarded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A filter or test that is bounded before it runs."""
    takes_environment = hasattr(function, "jinja_pass_arg")

    def limited(*args: Any, **kwargs: Any) -> Any:
        passed, (value, *rest) = args[:takes_environment], args[takes_environment:]
        value = listed(value)
        bound(value, (*rest, *kwargs.values()), name)
        return function(*passed, value, *rest, **kwargs)

    limited.__dict__.update(vars(function))  # the mark by which jinja2 passes the environment first
    return limited


def listed(value: Any) -> Any:
    """A value whose size is known: the items of an iterator, or the value itself."""
    return list(value) if isinstance(value, Iterator) else value


def _magnitude(number: float) -> int:
    return int(min(abs(number), _MOST_AT_ONCE)) if number == number else 0


def size(value: Any) -> int:
    """Characters and items in a value. What is in it twice counts twice, so it may be a huge number."""
    sizes: dict[int, int] = {}
    left = [value]
    while left:
        item = left[-1]
        inner = _inner(item)
        unknown = [i for i in inner if _inner(i) and id(i) not in sizes]
        if unknown and id(item) not in sizes:
            left += unknown
            continue
        left.pop()
        sizes[id(item)] = 1 + sum(sizes[id(i)] if id(i) in sizes else _leaf(i) for i in inner) if inner else _leaf(item)
    return sizes[id(value)]


def _inner(item: Any) -> Sequence[Any]:
    """The items of a container."""
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    return item if isinstance(item, (list, tuple)) else ()


def _leaf(item: Any) -> int:
    return len(item) if isinstance(item, (str, bytes)) else 1
