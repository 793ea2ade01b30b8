"""Sessions of encoders: a loaded encoder, and the engine that runs packs of texts."""

from __future__ import annotations

from functools import partial

from llamagpu import gpu
from llamagpu.engine.bound_encoder import EncoderBinder
from llamagpu.engine.encoding import EncoderEngine
from llamagpu.engine.session import Loaded
from llamagpu.model.encoder import Encoder
from llamagpu.model.encoder_config import parse_encoder
from llamagpu.model.encoder_layout import EncoderLayout
from llamagpu.model.encoder_sizes import EncoderSizes, plan_encoder
from llamagpu.model.sources import Source
from llamagpu.model.weights import Progress


class EncoderSession(Loaded):
    """An encoder on a device.

    Args:
        source: of its files.
        dtype: of its weights.
        device, progress, recover, max_memory: as ``Session`` takes them.
        max_length: the most tokens of a text; None is the model's.
        ignored: patterns of tensors that are not the encoder's.
    """

    def __init__(
        self,
        source: Source,
        dtype: str,
        device: str | gpu.Device,
        *,
        max_length: int | None = None,
        ignored: tuple[str, ...] = (),
        progress: Progress | None = None,
        recover: bool = True,
        max_memory: int | str | None = None,
    ):
        config = parse_encoder(source.config())
        self._layout = layout = EncoderLayout(config, source, dtype, ignored)
        need = partial(plan_encoder, layout, longest=max_length)
        self._binders: dict[tuple[str, ...], EncoderBinder] = {}

        def load() -> None:
            self.encoder = self._made(need(gpu.device_capacity(self.device)), progress)
            self.engine = EncoderEngine(self.device, self.encoder)

        self._load(device, load, recover, max_memory, need)
        self.closed = False

    @property
    def sizes(self) -> EncoderSizes:
        """The bytes of weights, cache and activations, and the chosen size of a pack."""
        return self.encoder.sizes

    def packs(self) -> EncoderEngine:
        """What embeds texts."""
        return self.engine

    def binder(self, modes: tuple[str, ...]) -> EncoderBinder:
        """What binds tensors; ``modes`` are those of the pooled vector."""
        return self._binders.setdefault(modes, EncoderBinder(self.device, self.encoder, modes))

    def _made(self, sizes: EncoderSizes, progress: Progress | None = None) -> Encoder:
        return Encoder(self.device, self._layout.config, self._layout, self.device.tuning, progress, sizes)

    def _remake(self) -> None:
        self.encoder = self._made(self.encoder.sizes)
        self.engine.restart(self.encoder)
        for binder in self._binders.values():
            binder.restart(self.encoder)

    def fail(self, error: Exception) -> None:
        """End all calls with an error, for good; on the device thread."""
        self.engine.fail(error)
        for binder in self._binders.values():
            binder.close(error)

    def _end(self) -> None:
        for binder in self._binders.values():
            binder.close()
        self.engine.close()
