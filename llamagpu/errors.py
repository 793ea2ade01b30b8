"""What can go wrong, in the user's words: what happened, why, and what to do; each with its exit code."""

from __future__ import annotations

INTERRUPTED = 130  # the exit code after Ctrl-C


class LlamaGPUError(Exception):
    """The base of every error this library raises on purpose.

    ``what`` is one line, ``why`` and ``hint`` (what to do) are optional further lines.
    ``exit_code`` is what the command line ends with.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", hint: str = ""):
        super().__init__("\n".join(line for line in (what, why, hint) if line))
        self.what, self.why, self.hint = what, why, hint


class UsageError(LlamaGPUError, ValueError):
    """An argument is out of its range, or a combination makes no sense."""

    exit_code = 2


class ContextFullError(UsageError):
    """The prompt is longer than the context."""


class ModelNotFoundError(LlamaGPUError, FileNotFoundError):
    """The model, or a file that it needs, is not there, or the hub cannot be reached."""

    exit_code = 3

    def __str__(self) -> str:  # OSError would print its errno tuple
        return "\n".join(line for line in (self.what, self.why, self.hint) if line)


class UnsupportedModelError(LlamaGPUError):
    """The model asks for arithmetic that is not implemented, or its files contradict one another."""

    exit_code = 4


class NoAdapterError(LlamaGPUError):
    """No GPU adapter, or none that matches the request."""

    exit_code = 5


class OutOfMemoryError(LlamaGPUError):
    """The request does not fit the adapter or the machine."""

    exit_code = 6


class DeviceLostError(LlamaGPUError):
    """The device was lost, destroyed, closed, or does not answer."""

    exit_code = 6


class KernelError(LlamaGPUError):
    """A shader did not compile or a dispatch was refused: a bug in a kernel, or in its caller."""
