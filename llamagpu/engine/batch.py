"""What a call of ``generate`` asks for: prompts, each with its settings, and the form of its answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llamagpu.engine.arguments import items, whole_in
from llamagpu.engine.params import DEFAULTS, row_settings
from llamagpu.engine.prompts import Prompt
from llamagpu.engine.result import Result
from llamagpu.engine.stream import Stream
from llamagpu.errors import Unique, UsageError, shown

Item = Prompt | Mapping[str, Any]  # a mapping has a prompt, and settings of its own


@dataclass(frozen=True)
class Call:
    """The prompts of a call.

    Attributes:
        prompts: each with its settings.
        one: it was given a prompt, not a list of them.
        n: the texts of each prompt; None is one, which is not in a list.
    """

    prompts: list[tuple[Prompt, dict[str, Any]]]
    one: bool
    n: int | None

    @classmethod
    def single(cls, prompt: Prompt, settings: Mapping[str, Any], n: int | None = None) -> Call:
        """A call with one prompt.

        Raises:
            UsageError: ``n`` is out of its range.
        """
        return cls([(prompt, {**settings})], True, _number(n))

    @classmethod
    def of(cls, given: Any, n: int | None, options: Mapping[str, Any]) -> Call:
        """A call with options for all prompts, whose own settings replace them.

        Raises:
            UsageError: an item is no prompt, or a value is out of its range.
        """
        if isinstance(given, Mapping):
            return cls.single(*_with_settings(given, options), n)
        if not isinstance(given, str):
            given = items(given, "a prompt")
        if isinstance(given, str) or (given and not any(_is_item(p) for p in given)):
            return cls.single(given, options, n)
        call = cls([], False, _number(n))
        for i, item in enumerate(given):
            with call.about(i):
                call.prompts.append(_with_settings(item, options))
        return call

    @contextmanager
    def about(self, index: int) -> Iterator[None]:
        """Name the prompt of a list that the errors in the block are about."""
        try:
            yield
        except UsageError as e:
            if self.one:
                raise
            raise type(e)(f"Item {index}: {e.what}", e.why, e.hint) from None

    def form(self, results: Sequence[Result]) -> Any:
        """The results, ``n`` of each prompt in order, as the call returns them."""
        out: list[Any] = list(results)
        if self.n is not None:
            out = [out[first : first + self.n] for first in range(0, len(out), self.n)]
        return out[0] if self.one else out


@dataclass(eq=False)
class Batch(Unique):
    """The running generations of a call, ``n`` of each prompt in order. Leaving its block stops them."""

    call: Call
    streams: list[Stream]

    def close(self) -> None:
        """Stop all of them."""
        for stream in self.streams:
            stream.close()

    @property
    def results(self) -> Any:
        """What the call returns; waits for the end of all."""
        return self.call.form([stream.result for stream in self.streams])


def _number(n: int | None) -> int | None:
    return None if n is None else whole_in("n", n, 1)


def _is_item(value: Any) -> bool:
    """Whether an item of a list is a prompt of its own: text, a list or array of ids, or a mapping."""
    return isinstance(value, str) or (hasattr(value, "__len__") and not isinstance(value, bytes))


def _with_settings(item: Any, options: Mapping[str, Any]) -> tuple[Prompt, dict[str, Any]]:
    """A prompt and its settings."""
    if not _is_item(item):
        raise UsageError(f"{shown(item)} is no prompt.", "It must be text, token ids, or a dictionary with a prompt.")
    if not isinstance(item, Mapping):
        return item, {**options}
    unknown = next((key for key in item if key != "prompt" and key not in DEFAULTS), None)
    if unknown is not None:
        raise UsageError(f"{shown(unknown)} is no setting of a prompt.", f"Known: prompt, {', '.join(DEFAULTS)}.")
    prompt: Any = item.get("prompt")
    if not _is_item(prompt) or isinstance(prompt, Mapping):
        raise UsageError(f"prompt is {shown(prompt)}.", "It must be text or token ids.")
    return prompt, {**options, **row_settings(item)}
