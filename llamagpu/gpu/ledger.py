"""Every GPU buffer, by purpose: what memory figures, leak tests and budgets read."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

from llamagpu.errors import OutOfMemoryError, UsageError


@dataclass(eq=False)
class Buffer:
    """One GPU buffer under the ledger's eye. ``freed`` buffers must not be submitted (the driver aborts)."""

    handle: Any
    size: int
    purpose: str
    freed: bool = False


@dataclass
class Ledger:
    """Bytes held, by purpose. ``limit`` bytes, where known, are refused beforehand rather than lost later."""

    limit: int | None = None
    buffers: weakref.WeakSet[Buffer] = field(default_factory=weakref.WeakSet)  # what nobody holds is gone
    peak: int = 0
    _local: threading.local = field(default_factory=threading.local)
    _lock: threading.RLock = field(default_factory=threading.RLock)  # buffers come and go on several threads

    @contextmanager
    def tracking(self) -> Iterator[list[Buffer]]:
        """A list of every buffer that the calling thread allocates inside the block."""
        outer, self._local.made = getattr(self._local, "made", None), []
        try:
            yield self._local.made
        finally:
            self._local.made = outer

    def live(self) -> list[Buffer]:
        """The buffers that are held."""
        with self._lock:
            return list(self.buffers)

    def held(self, purpose: str | None = None) -> int:
        """Bytes in live buffers, of one purpose or of all."""
        return sum(b.size for b in self.live() if purpose in (None, b.purpose))

    def by_purpose(self) -> dict[str, int]:
        """Bytes in live buffers for every purpose."""
        out: dict[str, int] = {}
        for b in self.live():
            out[b.purpose] = out.get(b.purpose, 0) + b.size
        return out

    def free_bytes(self) -> int | None:
        """What may still be allocated, where the machine can say."""
        return None if self.limit is None else max(0, self.limit - self.held())

    def check(self, size: int, purpose: str) -> None:
        """Raises OutOfMemoryError if ``size`` more bytes pass the limit."""
        free = self.free_bytes()
        if free is not None and size > free:
            raise OutOfMemoryError(
                f"{size / 1e6:,.1f} MB for {purpose} do not fit: {free / 1e6:,.1f} MB of memory are free.",
                f"This process already holds {self.held() / 1e6:,.1f} MB on the adapter.",
                "Use a smaller model, dtype or context, or free memory.",
            )

    def add(self, buffer: Buffer) -> Buffer:
        with self._lock:
            self.buffers.add(buffer)
        made = getattr(self._local, "made", None)
        if made is not None:
            made.append(buffer)
        self.peak = max(self.peak, self.held())
        return buffer

    def remove(self, buffer: Buffer) -> None:
        buffer.freed = True
        with self._lock:
            self.buffers.discard(buffer)


def memory_limit(kind: str) -> int | None:
    """Bytes that buffers may take: host memory where the adapter shares it, unknown on a discrete GPU.

    A software driver overcommits, so nothing else would stop an allocation before the kernel kills the process.
    ``LLAMAGPU_MEMORY_LIMIT`` (bytes) overrides.
    """
    override = os.environ.get("LLAMAGPU_MEMORY_LIMIT")
    if override:
        if not override.isdigit() or int(override) == 0:
            raise UsageError(f"LLAMAGPU_MEMORY_LIMIT is {override!r}.", "It must be a number of bytes from 1.")
        return int(override)
    if kind == "discrete":
        return None
    return int(psutil.virtual_memory().available * 0.9)
