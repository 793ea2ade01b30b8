"""The ledger of all GPU buffers by purpose, for memory figures, memory limits and leak tests."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llamagpu.errors import DeviceLostError, KernelError, OutOfMemoryError


def lost_values() -> DeviceLostError:
    """The error for what was made before its device was lost."""
    return DeviceLostError(
        "The values were lost with their GPU device.", "It was opened again since then.", "Make them again."
    )


@dataclass(eq=False)
class Buffer:
    """One GPU buffer. Submitting commands that use a ``freed`` one would abort the process. ``lost`` says that its
    device was lost."""

    handle: Any
    size: int
    purpose: str
    freed: bool = False
    lost: bool = False

    def require_live(self, doing: str) -> None:
        """Raise if the buffer is gone; ``doing`` says what would use it.

        Raises:
            DeviceLostError: its device was lost, and opened again since then.
            KernelError: it was freed.
        """
        if self.lost:
            raise lost_values()
        if self.freed:
            raise KernelError(f"A buffer ({self.purpose}) was freed before {doing}.")


@dataclass(frozen=True)
class Part:
    """A window of one buffer that holds rows ``first`` to ``first + rows`` of a tensor. ``tail`` bytes of guard follow
    the rows inside the window (tests only)."""

    buffer: Buffer
    offset: int
    size: int
    first: int
    rows: int
    tail: int = 0


@dataclass
class Ledger:
    """The live buffers of a device. It refuses allocations beyond ``limit`` bytes; None is an unknown limit."""

    limit: int | None = None
    buffers: weakref.WeakSet[Buffer] = field(default_factory=weakref.WeakSet)  # dropped buffers leave it
    peak: int = 0
    _local: threading.local = field(default_factory=threading.local)
    _lock: threading.RLock = field(default_factory=threading.RLock)  # buffers come and go on several threads

    @contextmanager
    def tracking(self) -> Iterator[list[Buffer]]:
        """A list of every buffer that the calling thread allocates inside the block, but for staging memory."""
        outer, self._local.made = getattr(self._local, "made", None), []
        try:
            yield self._local.made
        finally:
            self._local.made = outer

    def live(self) -> list[Buffer]:
        """The live buffers."""
        with self._lock:
            return list(self.buffers)

    def held(self, purpose: str | None = None) -> int:
        """Bytes in live buffers of one purpose, or of all."""
        return sum(b.size for b in self.live() if purpose in (None, b.purpose))

    def by_purpose(self) -> dict[str, int]:
        """Bytes in live buffers of each purpose."""
        out: dict[str, int] = {}
        for b in self.live():
            out[b.purpose] = out.get(b.purpose, 0) + b.size
        return out

    def free_bytes(self) -> int | None:
        """Bytes that may still be allocated; None if the limit is unknown."""
        return None if self.limit is None else max(0, self.limit - self.held())

    def check(self, size: int, purpose: str) -> None:
        """Raises OutOfMemoryError if ``size`` more bytes exceed the limit."""
        free = self.free_bytes()
        if free is not None and size > free:
            raise OutOfMemoryError(
                f"{size / 1e6:,.1f} MB for {purpose} do not fit: {free / 1e6:,.1f} MB of memory are free.",
                f"This process already holds {self.held() / 1e6:,.1f} MB on the adapter.",
                "Use a smaller model, dtype or context, or free memory.",
            )

    def add(self, buffer: Buffer) -> Buffer:
        """Enter a buffer."""
        with self._lock:
            self.buffers.add(buffer)
        made = getattr(self._local, "made", None)
        if made is not None and buffer.purpose != "staging":  # the device keeps those for all
            made.append(buffer)
        self.peak = max(self.peak, self.held())
        return buffer

    def remove(self, buffer: Buffer) -> None:
        """Take a buffer out and mark it as freed."""
        buffer.freed = True
        with self._lock:
            self.buffers.discard(buffer)
