"""Reading a tensor without waiting: the copy is queued at once, the wait comes with the result."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from typing import Any

from llamagpu.gpu.dtypes import Array
from llamagpu.gpu.gate import Slot
from llamagpu.gpu.ledger import Part
from llamagpu.gpu.memory import Memory


class Readback:
    """Values on their way to the host, as they were when the read was queued. ``Tensor.numpy_async`` makes one.

    ``result()`` waits for them; ``await`` does so without blocking the event loop. Later writes to the tensor do not
    change them.
    """

    def __init__(self, memory: Memory, parts: tuple[Part, ...], unpack: Callable[[list[bytes]], Array]):
        self._memory, self._parts, self._unpack = memory, parts, unpack
        self._lock = threading.Lock()
        self._values: Array | None = None
        self._slots: list[Slot] = memory.call(lambda: [memory.copy_out(part) for part in parts])

    def result(self) -> Array:
        """The values; waits until the GPU has copied them.

        Raises:
            DeviceLostError: the device was lost or closed before.
        """
        with self._lock:  # several threads may wait for one result
            if self._values is None:
                self._values = self._unpack(self._memory.call(self._read))
                self._slots.clear()
            return self._values

    def _read(self) -> list[bytes]:
        pairs = zip(self._slots, self._parts, strict=True)
        return [self._memory.read_slot(slot, part.size)[: part.size - part.tail] for slot, part in pairs]

    def __await__(self) -> Generator[Any, None, Array]:
        return asyncio.to_thread(self.result).__await__()
