"""How many sequences of a model run at once, and how many may wait."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

from llamagpu.errors import BusyError, UsageError

_LONGEST_WAIT = 60  # seconds, of Retry-After


class Gate:
    """Places for sequences, given in the order in which they were asked for. On the event loop.

    Args:
        places: sequences that run at once.
        queue: sequences that may wait before further requests are refused.

    Attributes:
        running: sequences that have a place.
        waiting: sequences that were admitted and have none yet.
    """

    def __init__(self, places: int, queue: int):
        self._places, self._queue = places, queue
        self._free = asyncio.Semaphore(places)
        self.running = self.waiting = 0
        self._seconds = 1.0  # that a sequence keeps its place, averaged

    def admit(self, count: int = 1) -> Admission:
        """Let a request in; its sequences count from now on. All of them are let in, or none.

        Raises:
            UsageError: they are more than may ever run and wait together.
            BusyError: they are more than may run and wait beside the others now; ``retry_after`` estimates when there
                is room.
        """
        most = self._places + self._queue
        if count > most:
            raise UsageError(
                f"The request asks for {count} texts.",
                f"{self._places} run at once and {self._queue} may wait.",
                f"Ask for {most} at most, or start the server with a larger --queue.",
            )
        if self.running + self.waiting + count > most:
            raise BusyError.full(self.running, self.waiting, "Send the request again later.", self._retry_after())
        return Admission(self, count)

    def _retry_after(self) -> int:
        return min(max(1, math.ceil(self._seconds * (self.waiting + 1) / self._places)), _LONGEST_WAIT)

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Wait for a place, and keep it for the block."""
        await self._free.acquire()
        self.running += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds += (time.monotonic() - start - self._seconds) / 8
            self.running -= 1
            self._free.release()


class Admission:
    """A request's sequences: they wait in the queue from its admission until each has its place. The end of the block
    takes those out that never asked for one."""

    def __init__(self, gate: Gate, count: int):
        self._gate, self._left = gate, 0
        self._wait(count)

    def _wait(self, more: int) -> None:
        self._left += more
        self._gate.waiting += more

    def __enter__(self) -> Admission:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait(-self._left)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for the place of one sequence, and keep it for the block."""
        async with self._gate.taken():
            self._wait(-1)
            yield
