"""The messages of a conversation: dropping the oldest to fit the context, saving and loading."""

from __future__ import annotations

import json
from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamagpu.errors import ContextFullError, UsageError

if TYPE_CHECKING:
    from llamagpu.engine import LLM

Message = dict[str, str]
_ROLES = ("system", "user", "assistant")
_ROOM = 64  # tokens kept free for an answer; a quarter of the context if it is small


def fit(llm: LLM, messages: list[Message], template_args: dict[str, Any] | None = None) -> list[Message]:
    """Drop the oldest turns, as few as possible, so that an answer to the last message has room.

    System messages and the last turn always stay, so the result may still be too long.
    """
    begins = sorted({0, *(i for i, m in enumerate(messages) if m["role"] == "user")})  # a file may begin with an answer
    most = llm.context - min(_ROOM, llm.context // 4)

    def kept(turns: int) -> list[Message]:
        return [m for i, m in enumerate(messages) if i >= begins[turns] or m["role"] == "system"]

    def fits(turns: int) -> bool:
        return turns == len(begins) - 1 or _tokens(llm, kept(turns), template_args) <= most

    # Binary search, because each test renders and tokenizes the conversation, which may have thousands of turns.
    return kept(0 if fits(0) else bisect_left(range(len(begins)), True, key=fits))


def _tokens(llm: LLM, messages: list[Message], template_args: dict[str, Any] | None) -> int:
    try:
        return len(llm.apply_chat_template(messages, chat_template_kwargs=template_args))
    except ContextFullError:  # far too long to be tokenized
        return llm.context + 1


def save(messages: list[Message], name: str) -> Path:
    """Write a conversation to a new file, as JSON.

    Raises:
        UsageError: the file exists or cannot be written.
    """
    path = _path(name)
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise UsageError(f"{path} exists; choose another name.") from None
    except (OSError, ValueError) as e:  # ValueError: the name is not allowed
        raise _failed(path, "written", e) from None
    try:
        with file:
            json.dump(messages, file, ensure_ascii=False, indent=2)
    except OSError as e:
        path.unlink(missing_ok=True)
        raise _failed(path, "written", e) from None
    return path


def load(name: str) -> tuple[list[Message], Path]:
    """A conversation that ``save`` wrote.

    Raises:
        UsageError: the file cannot be read, or does not hold a conversation.
    """
    path = _path(name)
    try:
        text = path.read_bytes()
    except (OSError, ValueError) as e:
        raise _failed(path, "read", e) from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(map(_is_message, found)):
        raise UsageError(f"{path} does not hold a conversation written by /save.")
    return found, path


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"role", "content"} or value["role"] not in _ROLES:
        return False
    return isinstance(value["content"], str) and _is_unicode(value["content"])


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode the text: a JSON escape can be half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as e:  # ~user, who has no home directory
        raise UsageError(f"{name} is not the name of a file: {e}") from None


def _failed(path: Path, done: str, error: Exception) -> UsageError:
    return UsageError(f"{path} could not be {done}: {getattr(error, 'strerror', None) or error}")
