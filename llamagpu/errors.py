"""Errors: each has a message, a reason, a hint and an exit code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

_MOST = 4000  # characters of each part of a message
# What a terminal obeys or reorders, but for tabs and line breaks, and what no file can hold as UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
INTERRUPTED = 130  # the exit code after Ctrl-C


def shown(value: Any) -> str:
    """A value in an error message, kept short."""
    try:
        return f"{value!r:.60}"
    except ValueError:  # Python refuses to write integers of thousands of digits
        return "a number with thousands of digits"
    except RecursionError:
        return "a deeply nested value"


def printable(text: str) -> str:
    """A text for people, without control characters and not endless: names in it may come from files that nobody should
    trust."""
    text = text if len(text) <= _MOST else f"{text[:_MOST]} …"
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class LlamaGPUError(Exception):
    """The base of every error this library raises on purpose.

    ``what`` is one line, the message; ``why`` and ``hint`` are optional further lines. The command line ends with
    ``exit_code``.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", hint: str = ""):
        self.what, self.why, self.hint = (printable(part) for part in (what, why, hint))
        super().__init__("\n".join(line for line in (self.what, self.why, self.hint) if line))

    def __reduce__(self) -> tuple[Any, ...]:  # Exception would pickle the joined text as ``what``
        return type(self), (self.what, self.why, self.hint)


class UsageError(LlamaGPUError, ValueError):
    """An argument is out of its range, or arguments exclude one another."""

    exit_code = 2


class ContextFullError(UsageError):
    """The prompt is longer than the context."""


class ModelNotFoundError(LlamaGPUError, FileNotFoundError):
    """The model or one of its files is missing, or the hub cannot be reached."""

    exit_code = 3

    def __str__(self) -> str:  # OSError would print its errno tuple
        return "\n".join(line for line in (self.what, self.why, self.hint) if line)


class UnsupportedModelError(LlamaGPUError):
    """The model needs arithmetic that is not implemented, or its files contradict one another."""

    exit_code = 4


class NoAdapterError(LlamaGPUError):
    """No GPU adapter, or none that matches the request."""

    exit_code = 5


class OutOfMemoryError(LlamaGPUError):
    """The request does not fit the adapter or the machine."""

    exit_code = 6


class DeviceLostError(LlamaGPUError):
    """The device was lost, destroyed or closed, or does not answer."""

    exit_code = 6


class BusyError(LlamaGPUError):
    """Too many requests wait.

    Attributes:
        retry_after: seconds after which a request may be taken, if that is known.
    """

    retry_after: int | None = None

    @classmethod
    def full(cls, running: int, waiting: int, hint: str, retry_after: int | None = None) -> BusyError:
        """The error for a full queue."""
        error = cls("The queue is full.", f"{running} requests run and {waiting} wait.", hint)
        error.retry_after = retry_after
        return error


class RoundsError(LlamaGPUError):
    """The model still calls tools after the rounds that ``LLM.run`` was allowed.

    Attributes:
        messages: the conversation so far, with the results of all calls.
    """

    messages: Sequence[dict[str, Any]] = ()

    @classmethod
    def after(cls, rounds: int, messages: Sequence[dict[str, Any]]) -> RoundsError:
        """The error after this many rounds."""
        hint = "Allow more (max_rounds), or read the error's ``messages``."
        error = cls(f"The model still calls tools after {rounds} rounds.", "It has not answered.", hint)
        error.messages = messages
        return error


class KernelError(LlamaGPUError):
    """A kernel was called with tensors that it cannot take, or a shader did not compile."""


class WrongNumbersError(LlamaGPUError):
    """The GPU computed numbers that differ from the reference by more than the tolerance."""


class Unique:
    """Base of objects that own a GPU device or threads. A ``with`` block closes them; copying and pickling them is an
    error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free what the object owns."""
        raise NotImplementedError

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UsageError(
            f"A {type(self).__name__} cannot be copied or pickled.",
            "It owns GPU memory and a running thread.",
            "Pass the object itself, or open another one where it is needed (threads may share one).",
        )
