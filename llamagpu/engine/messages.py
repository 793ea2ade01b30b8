"""Messages between a process that holds a model and the process that uses it: pickled objects over two pipes.

To the model: ``Open``, then ``Submit``, ``Cancel`` and ``Encode``; the end of the pipe ends it. From the model:
``Opened`` or ``Refused``, then ``Event``, and at any time ``Progressed`` and ``Logged``.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from llamagpu.engine.counters import Counters
from llamagpu.engine.request import Request
from llamagpu.errors import LlamaGPUError
from llamagpu.model.packs import Encoded
from llamagpu.text.guide import Outline


@dataclass(frozen=True)
class Open:
    """Load a model, with the arguments of its session, and the level of the log."""

    arguments: Mapping[str, Any]
    log_level: int


@dataclass(frozen=True)
class Opened:
    """The model is loaded. ``facts`` holds what its user must know of it."""

    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Refused:
    """The model cannot be loaded."""

    error: Exception


@dataclass(frozen=True)
class Submit:
    """A request of a decoder, the tokens that were made for it before, and the outline of its guide, which stays."""

    id: int
    request: Request
    made: Sequence[int] = ()
    outline: Outline | None = None


@dataclass(frozen=True)
class Cancel:
    """End a request early."""

    id: int


@dataclass(frozen=True)
class Encode:
    """Texts whose pooled vectors are wanted."""

    id: int
    texts: Sequence[Encoded]
    modes: tuple[str, ...]


@dataclass(frozen=True)
class Event:
    """An event of a request with ``Events.cached`` and the counters of a decoder, or the vectors or the error of an
    ``Encode``."""

    id: int
    event: Any
    cached: int | None = None
    counters: Counters | None = None


@dataclass(frozen=True)
class Progressed:
    """Bytes loaded, and bytes in all."""

    done: int
    total: int


@dataclass(frozen=True)
class Logged:
    """A record of the log."""

    level: int
    text: str


class Channel:
    """Two pipes. Any thread may send; one receives."""

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]):
        self._incoming, self._outgoing = incoming, outgoing
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        """Send a message. If the other process has ended, nothing happens: ``receive`` will tell."""
        data = pickle.dumps(message)
        try:
            with self._lock:
                self._outgoing.write(data)
                self._outgoing.flush()
        except (OSError, ValueError):  # ValueError: the pipe was closed here
            pass

    def receive(self) -> Any:
        """Wait for a message.

        Raises:
            EOFError: the other process has ended, or has closed its pipe.
        """
        try:
            return pickle.load(self._incoming)
        except (OSError, ValueError, pickle.UnpicklingError) as e:
            raise EOFError from e

    def finish(self) -> None:
        """Close both pipes, after the other process has ended."""
        self.close()
        self._incoming.close()

    def close(self) -> None:
        """Close the outgoing pipe, which ends the other process."""
        with self._lock:
            try:
                self._outgoing.close()
            except OSError:
                pass


def sendable(error: BaseException) -> Exception:
    """An error that can be pickled: one of ours as it is, another one by its name and text."""
    if isinstance(error, LlamaGPUError):
        return error
    return LlamaGPUError(f"{type(error).__name__}: {error}")
