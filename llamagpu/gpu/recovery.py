"""Recovery from a lost device: it is opened again, and what was on it is made again. On the device thread."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from llamagpu.errors import DeviceLostError, LlamaGPUError
from llamagpu.gpu import native

if TYPE_CHECKING:
    from llamagpu.gpu.device import Device

log = logging.getLogger("llamagpu")
AGAIN_SECONDS = 60.0  # a second loss within this time is final


class Resident(Protocol):
    """Something on a device that can be made again: a model with its engine. Calls are on the device thread."""

    def reload(self) -> None:
        """Make all buffers and plans again, and continue what was running."""

    def fail(self, error: Exception) -> None:
        """End what was running with an error, for good."""


class Recovery:
    """Handles the losses of one device.

    Args:
        enabled: False ends everything at the first loss.

    Attributes:
        losses: those that were recovered from.
    """

    def __init__(self, enabled: bool):
        self._enabled = enabled
        self._device: Callable[[], Device | None] = lambda: None
        self._residents: list[weakref.ref[Resident]] = []
        self._last: float | None = None
        self.losses = 0

    def watch(self, device: Device) -> None:
        """Begin, now that the device is open. Its thread refers to this object, so this one does not hold it."""
        self._device = weakref.ref(device)

    @property
    def residents(self) -> list[Resident]:
        """What is made again, in this order."""
        return [found for ref in self._residents if (found := ref()) is not None]

    def add(self, resident: Resident) -> None:
        """Make something again after a loss, as long as it lives."""
        self._residents = [ref for ref in self._residents if ref() is not None] + [weakref.ref(resident)]

    def remove(self, resident: Resident) -> None:
        """Do not make it again."""
        self._residents = [ref for ref in self._residents if ref() is not resident]

    def handle(self, error: DeviceLostError, step: bool) -> None:
        """React to an error of a call or of a step. A call may have used something that was lost before: that changes
        nothing."""
        device = self._device()
        if device is None or not isinstance(error, native.Lost) or not device.memory.gate.lost():
            if step:
                self._give_up(error)
            return
        begin = time.monotonic()
        if not self._enabled:
            self._give_up(error)
        elif self._last is not None and begin - self._last < AGAIN_SECONDS:
            self._give_up(native.lost(f"It was lost twice within {AGAIN_SECONDS:.0f} seconds: {error.why}"))
        else:
            self._recover(device, error, begin)

    def _recover(self, device: Device, error: DeviceLostError, begin: float) -> None:
        log.warning("the GPU device was lost (%s); it is opened again", error.why.rstrip("."))
        try:
            device.reopen()
        except LlamaGPUError as e:
            self._give_up(native.lost(f"It could not be opened again: {e.what} {e.why}".strip()))
            return
        self._last = begin
        for resident in self.residents:
            try:
                resident.reload()
            except native.Lost as e:
                self.handle(e, step=True)  # it is the second loss
                return
            except Exception as e:  # this one ends, the others go on
                log.warning("a model could not be loaded again: %s", e)
                resident.fail(e)
        self.losses += 1
        log.warning("the GPU device works again after %.1f seconds", time.monotonic() - begin)

    def _give_up(self, error: DeviceLostError) -> None:
        for resident in self.residents:
            resident.fail(error)
