"""A tool call as JSON: where it ends while its text comes, and what it says."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

_KEYS = ("arguments", "parameters")
# An object up to its arguments, if the name comes first, as every template shows it.
_HEAD = re.compile(r'\{\s*"name"\s*:\s*("[^"\\\x00-\x1f]+")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\\x00-\x1f]')
_PAIRS = {"}": "{", "]": "["}


class Malformed(Exception):
    """The text is no call."""


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for.

    Attributes:
        id: made up for this call, so that its result can name it.
        name: of the function; the model may have invented it.
        arguments: JSON values by name.
        raw: the arguments as the model wrote them, JSON text.
    """

    id: str
    name: str
    arguments: dict[str, Any]
    raw: str

    def as_openai(self) -> dict[str, Any]:
        """The call as an entry of a message's ``tool_calls``."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.raw}}


class Extent:
    """Finds where a JSON object ends while its text comes. It looks at strings and brackets only.

    Attributes:
        end: the index after the object, if it has come.
        fault: the index where brackets do not match or a string holds a line break: it is no object.
    """

    def __init__(self) -> None:
        self._at, self._open, self._string = 0, "", False
        self.end: int | None = None
        self.fault: int | None = None

    def feed(self, text: str) -> int | None:
        """``end`` or ``fault`` of the object that begins the text, or None; the text grows from call to call."""
        while self._stop is None and (found := (_INSIDE if self._string else _OUTSIDE).search(text, self._at)):
            mark, after = found.group(), found.end()
            if mark == "\\":
                if after == len(text):
                    return None
                after += 1
            elif mark == '"':
                self._string = not self._string
            elif mark in "{[":
                self._open += mark
            elif self._string or self._open[-1:] != _PAIRS[mark]:
                self.fault = found.start()
            else:
                self._open = self._open[:-1]
                self.end = None if self._open else after
            self._at = after
        self._at = len(text) if self._stop is None else self._at
        return self._stop

    @property
    def _stop(self) -> int | None:
        return self.end if self.fault is None else self.fault


class PendingCall:
    """A call that is being read: an object with name and arguments, or the arguments alone if the name is known.

    Attributes:
        name: as soon as it is known and the arguments have begun.
    """

    def __init__(self, id: str, name: str | None = None):
        self.id, self.name = id, name
        self._at: int | None = None if name is None else 0  # where the arguments begin
        self._whole, self._arguments = Extent(), Extent()
        self._told = 0  # characters of the arguments

    def feed(self, text: str) -> tuple[str, int | None]:
        """The next piece of the arguments, and the index after the call or where it is at fault, or None; the text
        grows from call to call."""
        stop = self._whole.feed(text)
        if self._at is None and (head := _HEAD.match(text[:stop])):
            self.name, self._at = _json(head.group(1)), head.end()
        if self._at is None:
            return "", stop
        rest = text[self._at :]
        known = rest[: self._arguments.feed(rest)]
        piece, self._told = known[self._told :], len(known)
        return piece, stop

    def call(self, text: str, strict: bool) -> ToolCall:
        """The call, whose text is complete.

        Args:
            strict: whether arguments must be there; otherwise none is an empty object.

        Raises:
            Malformed: it is not JSON, or has no name, or arguments that are no object.
        """
        value = _json(text)
        name, arguments = (self.name, value) if self._at == 0 else (value.get("name"), _arguments(value, strict))
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            raise Malformed
        written = None if self._at is None else text[self._at :][: self._arguments.end]
        return ToolCall(self.id, name, arguments, written or json.dumps(arguments, ensure_ascii=False))


def _arguments(call: dict[str, Any], strict: bool) -> Any:
    given = [call[key] for key in _KEYS if key in call]
    if len(given) != 1:
        return {} if not given and not strict else None
    return _json(given[0]) if isinstance(given[0], str) else given[0]


def _json(text: str) -> Any:
    """A value that every JSON parser takes: no key twice, no NaN, no half of a character."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refused, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise Malformed from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise Malformed
    return dict(pairs)


def _refused(_: str) -> Any:
    raise Malformed


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise Malformed
    return value
