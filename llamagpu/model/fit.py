"""Whether a model fits before it is loaded, or even downloaded: from its headers and the adapters' memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llamagpu.errors import OutOfMemoryError
from llamagpu.gpu import (
    Capacity,
    Device,
    Need,
    adapter_capacity,
    allowed_adapters,
    device_capacity,
    fitting_adapter,
    list_adapters,
)
from llamagpu.model.encoder_config import is_encoder, parse_encoder
from llamagpu.model.encoder_layout import EncoderLayout
from llamagpu.model.encoder_sizes import plan_encoder
from llamagpu.model.estimate import Estimate
from llamagpu.model.model import prepare
from llamagpu.model.sizes import plan_sizes
from llamagpu.model.sources import Source

CLASSIFIERS = (r"classifier\..*", r"pre_classifier\..*")  # tensors that a cross-encoder has beside the encoder
_HEADROOM = 8  # times the stored bytes: float32 weights of 16 bits, and as much again for cache and activations
_SPARE = 500_000_000
_PART = 0.9  # of a GGUF file's bytes that its weights take at least; no type is held in fewer bits
_VOCABULARY = 20_000_000  # bytes of a file that are not weights


@dataclass(frozen=True)
class Load:
    """How a model is to be loaded, as far as its memory depends on it: arguments of ``LLM`` or ``Embedder``.

    Attributes:
        context: the most tokens of a sequence, or of an encoder's text.
        head: whether logits are computed.
        at_once: the least capacity of the cache, in tokens of all sequences together.
    """

    device: str | Device = "auto"
    max_memory: int | str | None = None
    dtype: str = "auto"
    kv_dtype: str = "auto"
    context: int | None = None
    head: bool = True
    fused: bool = True
    at_once: int = 0

    def plan(self, source: Source) -> Callable[[Capacity], Estimate]:
        """A function that plans the model for a capacity, and raises OutOfMemoryError if it does not fit."""
        raw = source.config()
        if is_encoder(raw):
            encoder = EncoderLayout(parse_encoder(raw), source, self.dtype, CLASSIFIERS)
            return lambda capacity: plan_encoder(encoder, capacity, self.context)
        layout = prepare(source, self.dtype, self.head).layout
        context, kv_dtype, fused, at_once = self.context, self.kv_dtype, self.fused, self.at_once
        return lambda capacity: plan_sizes(layout, capacity, context, kv_dtype, fused=fused, at_once=at_once)

    def is_certain(self, stored: int) -> bool:
        """Whether weights of ``stored`` bytes fit without a closer look, because there is memory for many times as
        much. A context of one's own may take any memory."""
        capacity = device_capacity(self.device) if isinstance(self.device, Device) else self._capacity()
        return self.context is None and (capacity.free is None or capacity.free > _HEADROOM * stored + _SPARE)

    def check(self, source: Source) -> None:
        """Raise OutOfMemoryError if no adapter that may be used can hold the model."""
        self._require(self.plan(source))

    def check_size(self, model: str, stored: int) -> None:
        """As ``check``, of a GGUF file of which nothing but its size is known. It takes about as much memory, or a part
        of it in a smaller dtype."""
        least = (_PART if self.dtype == "auto" and self.head else _PART / 4) * stored - _VOCABULARY

        def need(capacity: Capacity) -> None:
            if capacity.free is not None and least > capacity.free:
                raise OutOfMemoryError(
                    f"{model} does not fit: its weights take at least {least / 1e6:,.1f} MB on {capacity.name}.",
                    f"{capacity.free / 1e6:,.1f} MB are free.",
                    "Choose a file with fewer bits, or a smaller model.",
                )

        self._require(need)

    def _require(self, need: Need) -> None:
        if isinstance(self.device, Device):
            need(device_capacity(self.device))
        else:
            fitting_adapter(allowed_adapters(self.device, list_adapters())[0], need, self.max_memory)

    def _capacity(self) -> Capacity:
        """That of the preferred adapter."""
        assert isinstance(self.device, str)
        return adapter_capacity(allowed_adapters(self.device, list_adapters())[0][0], self.max_memory)
