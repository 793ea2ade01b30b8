"""The staging buffers that results come back through, kept for the next time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamagpu.gpu.gate import Slot

if TYPE_CHECKING:
    from llamagpu.gpu.device import Device

_KEPT = 8
_KEPT_BYTES = 65536  # larger ones are freed at once


class Staging:
    """A pool of slots. On the device thread."""

    def __init__(self, device: Device):
        self._device = device
        self._slots: list[Slot] = []

    def take(self, size: int) -> Slot:
        """A slot of at least ``size`` bytes; give it back after reading."""
        for i, slot in enumerate(self._slots):
            if size <= slot.buffer.size:
                return self._slots.pop(i)
        return Slot(self._device.allocate(size, "staging"))

    def give(self, slot: Slot) -> None:
        """Take a slot back."""
        if slot.buffer.size > _KEPT_BYTES or len(self._slots) >= _KEPT:
            self._device.free(slot.buffer)
        else:
            self._slots.append(slot)
