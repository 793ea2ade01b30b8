"""Calls of tools in the text of an answer, read while the text comes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from llamagpu.text.tool_forms import Form, Opening
from llamagpu.text.tool_json import Malformed, PendingCall, ToolCall

_NAME = re.compile(r"[^\s\[\]{}<>\"]+")
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_MOST_NAME = 256  # characters of a name with the id after it
_SPACES = " \t\r\n"


class NoCalls:
    """Takes the place of a ``CallReader`` where no tools are offered: all is text."""

    calls: tuple[ToolCall, ...] = ()
    deltas: tuple[dict[str, Any], ...] = ()
    full = False

    def push(self, text: str) -> str:
        """The text."""
        return text

    def end(self) -> str:
        """Nothing was held back."""
        return ""


class CallReader:
    """Divides an answer into text and calls. However the text is cut into pieces, the result is the same.

    A call begins as the form says. Its text is held back until it is complete; if it turns out to be no call, it is
    delivered as text. Spaces around calls are dropped.

    Args:
        form: how calls are written.
        most: the calls after which the answer is ``full``; what follows is dropped. None is any number.

    Attributes:
        calls: the complete calls so far.
        deltas: the calls so far as OpenAI streams them: of each first ``id``, ``type`` and ``name``, then pieces of its
            arguments. If a call proves malformed after its beginning was told, its deltas end there, and its text
            follows as text.
    """

    def __init__(self, form: Form, most: int | None = None):
        self._form, self._most = form, most
        self.calls: list[ToolCall] = []
        self.deltas: list[dict[str, Any]] = []
        self._told = 0  # calls whose deltas began
        self._text = ""  # not decided yet
        self._taken = ""  # what came before it of the same call
        self._out = ""
        self._leads = True  # only spaces since the beginning or the last call
        self._state: Callable[[bool], bool] = self._outside
        self._opening = form.openings[0]
        self._listed = False  # the call is in a list
        self._known: tuple[str | None, str | None] = (None, None)  # name and id, if they come before the object
        self._call = PendingCall("")
        self._begun = False  # whether its deltas were told

    @property
    def full(self) -> bool:
        """Whether there are as many calls as are allowed."""
        return self._most is not None and len(self.calls) >= self._most

    def push(self, text: str) -> str:
        """Add text; returns the text that is certainly no part of a call."""
        self._text += text
        return self._run(False)

    def end(self) -> str:
        """The text ends; returns what was held back and is no call."""
        out, rest = self._run(True), self._text
        self._text = ""
        return out + rest if rest.strip(self._gap) or not self.calls else out

    def _run(self, final: bool) -> str:
        """Read what can be decided. States return whether the text has more for the next one."""
        while not self.full:
            try:
                if not self._state(final):
                    if not final or self._state == self._outside:
                        break
                    raise Malformed  # the text ends within a call
            except Malformed:
                self._out += self._taken
                self._taken, self._leads, self._state = "", False, self._outside
        if self.full:
            self._text = ""
        out, self._out = self._out, ""
        return out

    @property
    def _gap(self) -> str:
        """The characters that are no text here."""
        return _SPACES + (self._form.between if self.calls and self._leads else "")

    def _outside(self, final: bool) -> bool:
        """In text, up to the beginning of a call."""
        found = [(at, i) for i, o in enumerate(self._form.openings) if (at := self._find(o)) >= 0]
        cut = min(found)[0] if found else len(self._text) - self._overlap()
        before = self._text[:cut].rstrip(_SPACES)
        before = before if before.strip(self._gap) else ""
        if before:
            self._out, self._leads = self._out + before, False
        self._text = self._text[len(before) :]
        if not found:
            return False
        self._opening = self._form.openings[min(found)[1]]
        self._take(cut - len(before) + len(self._opening.begin))
        self._listed, self._known = False, (None, None)
        self._state = self._name if self._opening.body == "named" else self._before
        return True

    def _find(self, opening: Opening) -> int:
        if not opening.leads:
            return self._text.find(opening.begin)
        rest = self._text.lstrip(self._gap)
        return len(self._text) - len(rest) if self._leads and rest.startswith("{") else -1

    def _overlap(self) -> int:
        """Characters at the end that may be a part of a beginning."""
        begins = [o.begin for o in self._form.openings]
        longest = min(len(self._text), max(map(len, begins)) - 1)
        return next((n for n in range(longest, 0, -1) if any(b.startswith(self._text[-n:]) for b in begins)), 0)

    def _take(self, count: int) -> None:
        self._taken += self._text[:count]
        self._text = self._text[count:]

    def _mark(self) -> str:
        """The next character after spaces, which are taken; nothing if it has not come."""
        self._take(len(self._text) - len(self._text.lstrip(_SPACES)))
        return self._text[:1]

    def _name(self, final: bool) -> bool:
        """Before the separator of name and arguments."""
        separator, tag = self._opening.separator, self._opening.tag
        at = self._text.find(separator, 0, _MOST_NAME + len(separator))
        if at < 0:
            if len(self._text) >= _MOST_NAME + len(separator):
                raise Malformed
            return False
        name, _, id = self._text[:at].partition(tag) if tag else (self._text[:at], "", "")
        if not _NAME.fullmatch(name.strip(_SPACES)):
            raise Malformed
        self._known = name.strip(_SPACES), id if _SHORT_ID.fullmatch(id) else None
        self._take(at + len(separator))
        self._state = self._before
        return True

    def _before(self, final: bool) -> bool:
        """Before the object of a call, or the list that it begins."""
        mark = self._mark()
        if mark == "[" and self._opening.body == "list" and not self._listed:
            self._listed = True
            self._take(1)
        elif mark == "{":
            name, id = self._known
            self._call, self._begun = PendingCall(id or self._form.new_id(), name), False
            self._state = self._object
        elif mark:
            raise Malformed
        return bool(mark)

    def _object(self, final: bool) -> bool:
        """In the object of a call."""
        call = self._call
        piece, end = call.feed(self._text)
        if call.name is not None:
            self._tell(call.name, piece)
        if end is None:
            return False
        done = call.call(self._text[:end], self._opening.leads)
        if call.name is None:  # it did not come first
            self._tell(done.name, done.raw)
        self.calls.append(done)
        self._text, self._taken, self._leads = self._text[end:], "", True
        self._state = self._between if self._listed else self._after
        return True

    def _tell(self, name: str, piece: str) -> None:
        """Add deltas: the beginning of a call, if it was not told, and a piece of its arguments."""
        if not self._begun:
            self._begun = True
            self._told += 1
            function = {"name": name, "arguments": ""}
            self.deltas.append({"index": self._told - 1, "id": self._call.id, "type": "function", "function": function})
        if piece:
            self.deltas.append({"index": self._told - 1, "function": {"arguments": piece}})

    def _between(self, final: bool) -> bool:
        """In a list, after a call."""
        mark = self._mark()
        if mark and mark not in ",]":
            raise Malformed
        self._take(len(mark))
        if mark:
            self._state = self._before if mark == "," else self._after
        return bool(mark)

    def _after(self, final: bool) -> bool:
        """After a call, before the text that ends it."""
        end, rest = self._opening.end, self._text.lstrip(_SPACES)
        if end and end.startswith(rest) and rest != end and not final:
            return False
        if end and (rest.startswith(end) or end.startswith(rest)):
            self._text = rest[len(end) :]
        self._taken, self._state = "", self._outside
        return True
