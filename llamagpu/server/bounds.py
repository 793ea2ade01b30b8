"""Bounds of what a body may hold, so that no body within its bytes keeps the server from its other work.

A body of 8 MB can have millions of items. A check that reported every wrong one of them would take minutes and
gigabytes, so checks end at the first.
"""

from __future__ import annotations

from collections.abc import Collection, Sized
from itertools import islice
from typing import Annotated, Any, TypeVar

from pydantic import FailFast, WithJsonSchema
from pydantic_core import PydanticCustomError

from llamagpu.server.errors import BAD_REQUEST, RequestError

T = TypeVar("T")


class _FirstWrong(FailFast):
    """``FailFast`` that can be a part of a union in every Python."""

    __hash__ = object.__hash__


Items = Annotated[list[T], _FirstWrong()]
Texts = Items[str]
# The engine checks keys and values one after another.
Biases = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "additionalProperties": {"type": "number"}})]

MOST_BIASES = 300_000  # no vocabulary has more
MOST_TOKENIZED = 1_000_000  # characters or ids, outside of generations: the tokenizer holds 400 bytes for each
_MOST_STOPS, _MOST_STOP = 64, 1000  # strings that end a text, and characters of one: the text is searched for them
_MOST_STOP_IDS = 4096


def check_most(name: str, given: Sized | None, most: int, what: str) -> None:
    """Refuse a field with more items than a bound.

    Raises:
        RequestError: it has more.
    """
    if given is not None and len(given) > most:
        raise RequestError(
            BAD_REQUEST, f"{name} has {len(given):,} {what}.", f"At most {most:,} are taken.", param=name
        )


def check_stops(stop: str | list[str] | None, ids: list[int] | None) -> None:
    """See ``check_most``, for what ends a text."""
    stops = [stop] if isinstance(stop, str) else stop or []
    check_most("stop", stops, _MOST_STOPS, "strings")
    check_most("stop", max(stops, key=len, default=None), _MOST_STOP, "characters in a string")
    check_most("stop_token_ids", ids, _MOST_STOP_IDS, "ids")


def text_alone(given: Any) -> Any:
    """A field as it is, unless it holds token ids: those of another tokenizer would be taken for other words."""
    if isinstance(given, list) and given and isinstance(given[0], (int, list)):
        why = "it has token ids, which another tokenizer may have made."
        raise PydanticCustomError("token_ids", f"{why} Send text (LangChain: check_embedding_ctx_length=False)")
    return given


def without_further(data: Any, fields: Collection[str]) -> Any:
    """A body with its known fields and only the first of the unknown ones, which is the one that its error tells."""
    if not isinstance(data, dict):
        return data
    unknown = islice((name for name in data if name not in fields), 1)
    return {name: data[name] for name in (*unknown, *fields) if name in data}


def check_likely(name: str, value: int) -> None:
    """Refuse a number of likeliest tokens that the engine does not give."""
    if not 0 <= value <= 20:
        raise RequestError(BAD_REQUEST, f"{name} is {value}.", "It must be from 0 to 20.", param=name)
