"""Marks on the text that comes from the conversation, so that it can be told from the template's own text.

A template mixes both into one string, and only the template may write special tokens. So the conversation is rendered
twice: as it is, and with its characters replaced by twins in a private-use plane of Unicode. Where the second text,
translated back, equals the first, the twins show every character of the conversation.

Twins have the length of the characters that they replace. Spaces, quotes and the characters that JSON and HTML escape
stay as they are, and so do strings that the template itself names (``'</think>' in content``). Hence templates may
trim, split, slice and search what they are given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

_PLANE = 0xF0000  # U+F0000 to U+FFFFD, for private use
_TWINS = re.compile("[\U000f0000-\U000fffff]")
_BACK = {_PLANE + c: c for c in range(0x10000)}
_UNMARKED = set("\"'\\<>&") | {chr(c) for c in range(0x20)}


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation: ``text``, and ``marked``, the same with twins in place of the conversation's own
    characters. Their lengths are equal."""

    text: str
    marked: str

    def is_given(self, begin: int, end: int) -> bool:
        """Whether a part of the text holds something that was given with the conversation."""
        return _TWINS.search(self.marked, begin, end) is not None


class Marks:
    """Replaces the characters of strings that could be a part of a special token.

    Args:
        special: the texts of special tokens.
        named: strings that the template names, in comparisons or as keys, and names of roles. A string of the
            conversation that is one of them stays unmarked. So does one inside a longer text, unless special tokens
            have it as a part.
    """

    def __init__(self, special: Collection[str], named: Collection[str]):
        self._special = sorted((s for s in special if s), key=len, reverse=True)
        characters = {c for s in self._special for c in s if ord(c) < 0x10000 and not c.isspace()} - _UNMARKED
        self._table = {ord(c): _PLANE + ord(c) for c in characters}
        self._named = {n for n in named if not any(s in n for s in self._special)}
        kept = (n for n in self._named if characters & {*n} and not any(n in s for s in self._special))
        within = sorted(kept, key=len, reverse=True)
        # Special tokens come first, and are marked as a whole. The group holds a string that stays.
        pattern = [*map(re.escape, self._special), f"({'|'.join(map(re.escape, within)) or '(?!)'})"]
        self._pieces = re.compile("|".join(pattern))

    def render(self, render: Callable[[dict[str, Any]], str], given: dict[str, Any]) -> Rendered:
        """The text that ``render`` makes of JSON values by the names of variables, with its marks.

        If the marks change the text (the template reads the content in a way that was not foreseen), the safe reading
        is taken: special tokens that the conversation can have added count as the conversation's.
        """
        text = render(given)
        if not self._special:
            return Rendered(text, text)
        try:
            marked = render({name: self._mark(value) for name, value in given.items()})
        except Exception:  # the template refuses the twins
            return Rendered(text, self._suspect(text, lambda s: _holds(given, s)))
        if marked.translate(_BACK) == text:
            return Rendered(text, marked)
        return Rendered(text, self._suspect(text, lambda s: text.count(s) > marked.count(s)))

    def _suspect(self, text: str, is_suspect: Callable[[str], bool]) -> str:
        """The text with marks on all occurrences of the special tokens that are suspect."""
        for s in self._special:
            if s in text and is_suspect(s):
                text = text.replace(s, s.translate(self._table))
        return text

    def _mark(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._mark_text(value)
        if isinstance(value, list):
            return [self._mark(v) for v in value]
        if isinstance(value, dict):
            return {self._mark_text(k): self._mark(v) for k, v in value.items()}
        return value

    def _mark_text(self, text: str) -> str:
        if text in self._named:
            return text
        out, at = [], 0
        for match in self._pieces.finditer(text):
            if match[1] is not None:
                out += [text[at : match.start()].translate(self._table), match[1]]
                at = match.end()
        return "".join([*out, text[at:].translate(self._table)])


def _holds(value: Any, text: str) -> bool:
    """Whether a text occurs in the strings of a JSON value."""
    if isinstance(value, dict):
        return any(_holds(v, text) for pair in value.items() for v in pair)
    return any(_holds(v, text) for v in value) if isinstance(value, list) else isinstance(value, str) and text in value
