"""Sessions: the life cycle of an open device, a model on it, and the engine that runs requests."""

from __future__ import annotations

import logging

from llamagpu import gpu
from llamagpu.engine.engine import Engine
from llamagpu.errors import DeviceLostError, Unique
from llamagpu.model import Model, Prepared, load_model
from llamagpu.model.tuner import tune as measure
from llamagpu.model.weights import Progress

log = logging.getLogger("llamagpu")


class Session(Unique):
    """A prepared model, loaded and ready for requests. Close it, or use it as a context manager.

    Args:
        device: as ``gpu.open`` takes it; an open device is shared, and stays open.
        tune: measure the kernel variants for this model first.
        at_once: the least capacity of the cache, in tokens of all sequences together.
    """

    device: gpu.Device
    model: Model
    engine: Engine

    def __init__(
        self,
        prepared: Prepared,
        device: str | gpu.Device = "auto",
        *,
        context: int | None = None,
        kv_dtype: str = "auto",
        tune: bool = False,
        fused: bool = True,
        progress: Progress | None = None,
        at_once: int = 0,
    ):
        self.closed = True
        self._owns_device = not isinstance(device, gpu.Device)
        self.device = gpu.open(device)
        with self.device.ledger.tracking() as self._buffers:
            try:
                tuning = self._tuned(prepared) if tune else self.device.tuning
                self.model = load_model(prepared, self.device, tuning, context, kv_dtype, progress, fused, at_once)
            except BaseException:
                self._free()
                if self._owns_device:
                    self.device.close()
                raise
        self.engine = Engine(self.device, self.model)
        self.closed = False

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self.close()

    def close(self) -> None:
        """Free the model's memory. Running requests end with an error; closing twice is harmless."""
        if self.closed:
            return
        self.closed = True

        def close() -> None:  # one call, so that an interrupt during the wait cannot skip a part
            self.engine.close()
            self._free()

        try:
            self.device.call(close)
        except DeviceLostError:
            pass  # the device was closed before the model, or belongs to the parent process
        if self._owns_device:
            self.device.close()

    def _free(self) -> None:
        for buffer in self._buffers:
            self.device.free(buffer)
        self._buffers.clear()

    def _tuned(self, prepared: Prepared) -> gpu.Tuning:
        tuning = measure(self.device, prepared.layout)
        try:
            gpu.store_tuning(self.device.adapter, tuning)
        except OSError as e:
            log.warning("the tuning cannot be kept: %s", e)
        return tuning
