"""Runs of an encoder over bound tensors."""

from __future__ import annotations

from collections.abc import Mapping

from llamagpu.errors import DeviceLostError
from llamagpu.gpu import Device, Tensor
from llamagpu.model.bound_encoder import BoundText
from llamagpu.model.encoder import Encoder


class EncoderBinder:
    """Binds tensors to an encoder; see ``Binder``. Its methods are called from any thread, ``close`` on the device
    thread.

    Args:
        modes: of the pooled vector.
    """

    def __init__(self, device: Device, encoder: Encoder, modes: tuple[str, ...]):
        self._thread, self._encoder, self._modes = device.thread, encoder, modes
        self._bound: set[BoundText] = set()
        self._closed: Exception | None = None

    def bind(self, tensors: Mapping[str, Tensor]) -> BoundText:
        """Prepare runs over checked tensors.

        Raises:
            DeviceLostError: the model is closed.
        """

        def bind() -> BoundText:
            self._check_open()
            made = BoundText(self._encoder, tensors, self._modes if "pooled" in tensors else ())
            self._bound.add(made)
            return made

        return self._thread.call(bind)

    def run(self, made: BoundText) -> None:
        """Submit a run, and wait for nothing."""

        def run() -> None:
            self._check_open()
            if made not in self._bound:
                raise DeviceLostError("The bound tensors were lost with their device.", "", "Bind new ones.")
            made.commands.run()

        self._thread.call(run)

    def unbind(self, made: BoundText) -> None:
        """Free the words of a text, also while Python collects garbage."""

        def free() -> None:
            if made in self._bound:
                self._bound.remove(made)
                made.free()

        try:
            self._thread.post(free)
        except DeviceLostError:
            pass  # the device freed everything

    def restart(self, encoder: Encoder) -> None:
        """Bind to an encoder that was loaded again. What was bound is lost."""
        self._encoder = encoder
        self._bound.clear()

    def close(self, error: Exception | None = None) -> None:
        """Free everything that is bound. Later calls raise the error."""
        self._closed = error or DeviceLostError("This model is closed.", "", "Load it again.")
        for made in self._bound:
            made.free()
        self._bound.clear()

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed
