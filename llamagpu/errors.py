"""Errors: each has a message, a reason, a hint and an exit code."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NoReturn, Self

INTERRUPTED = 130  # the exit code after Ctrl-C


def shown(value: Any) -> str:
    """A value in an error message, kept short."""
    try:
        return f"{value!r:.60}"
    except ValueError:  # Python refuses to write integers of thousands of digits
        return "a number with thousands of digits"


class LlamaGPUError(Exception):
    """The base of every error this library raises on purpose.

    ``what`` is one line, the message; ``why`` and ``hint`` are optional further lines. The command line ends with
    ``exit_code``.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", hint: str = ""):
        super().__init__("\n".join(line for line in (what, why, hint) if line))
        self.what, self.why, self.hint = what, why, hint

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
