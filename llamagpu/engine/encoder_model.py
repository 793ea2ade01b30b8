"""Encoders as sessions: a loaded encoder, its tokenizer, and the engine that runs packs of texts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llamagpu import gpu
from llamagpu.engine.arguments import adapter_name, whole_in
from llamagpu.engine.bound import Bindings, Bound, check_bindings, named_tensors
from llamagpu.engine.bound_encoder import EncoderBinder
from llamagpu.engine.encoding import EncoderEngine
from llamagpu.engine.session import Loaded
from llamagpu.engine.texts import Texts
from llamagpu.errors import UnsupportedModelError, UsageError, shown
from llamagpu.model import check_dtypes, find_model
from llamagpu.model.bound import encoder_arguments
from llamagpu.model.encoder import Encoder
from llamagpu.model.encoder_config import ENCODERS, is_encoder, parse_encoder
from llamagpu.model.encoder_layout import EncoderLayout
from llamagpu.model.encoder_sizes import plan_encoder
from llamagpu.model.estimate import MemoryUse
from llamagpu.model.find import open_source
from llamagpu.model.fit import Load
from llamagpu.model.weights import Progress
from llamagpu.text import Tokenizer


class EncoderModel(Loaded):
    """A loaded encoder with its tokenizer; behind ``Embedder``, and the base of ``CrossEncoder``.

    Args:
        model: a directory or a hub id.
        device, dtype, revision, progress, recover, max_memory: as ``LLM`` takes them.
        max_length: the most tokens of a text, special ones included; None is the model's.
        ignored: patterns of tensors that are not the encoder's.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | int | gpu.Device = "auto",
        dtype: Any = "auto",
        revision: str | None = None,
        max_length: int | None = None,
        progress: Progress | None = None,
        recover: bool = True,
        ignored: tuple[str, ...] = (),
        max_memory: int | str | None = None,
    ):
        dtype, _ = check_dtypes(dtype, "auto")
        name = device if isinstance(device, gpu.Device) else adapter_name(device)
        self.directory = find_model(model, revision, fit=Load(name, max_memory, dtype))
        self.source = source = open_source(self.directory)
        if not is_encoder(source.config()):
            kind = shown(source.config().get("model_type"))
            raise UnsupportedModelError(
                f"{source.name} is not an encoder ({kind}).",
                f"Supported: {', '.join(sorted(ENCODERS))}.",
                "Generate text with LLM, or choose another model.",
            )
        self.config, self.name = parse_encoder(source.config()), source.name
        layout = EncoderLayout(self.config, source, dtype, ignored)
        most = self.config.positions
        most = most if max_length is None else min(most, whole_in("max_length", max_length, 3))
        tokenizer = Tokenizer(source.tokenizer_file(), source.tokenizer_config(), self.config.vocab_size)
        self._layout, self._longest = layout, most
        need = partial(plan_encoder, layout, longest=most)
        self._binders: dict[tuple[str, ...], EncoderBinder] = {}
        self._load(name, partial(self._make, progress), recover, max_memory, need)
        self.texts = Texts(tokenizer, self._engine, most, self.config.type_vocab_size)
        self.closed = False

    @property
    def max_length(self) -> int:
        """The most tokens of a text, special ones included."""
        return self.texts.max_length

    @property
    def dtype(self) -> str:
        """The dtype of the weights as it was asked for."""
        return self._layout.dtype

    def bind(self, modes: tuple[str, ...], bindings: Bindings, tensors: Mapping[str, gpu.Tensor]) -> Bound:
        """Bind tensors; see ``Embedder.bind``. ``modes`` are those of the pooled vector."""
        named = named_tensors(bindings, tensors)
        check_bindings(named, encoder_arguments(self.config.hidden_size), self.device, self.max_length)
        if "pooled" in named and len(modes) > 1:
            raise UsageError("pooled cannot be bound.", f"The model pools in {len(modes)} ways.", "Bind hidden_states.")
        return Bound(self._binders.setdefault(modes, EncoderBinder(self.device, self._encoder, modes)), named)

    @property
    def memory(self) -> MemoryUse:
        """The bytes that the device's buffers take now, the estimate of this model's, and their limit."""
        return MemoryUse.of(self.device, self._encoder.sizes)

    def _make(self, progress: Progress | None) -> None:
        self._encoder = self._loaded(progress)
        self._engine = EncoderEngine(self.device, self._encoder)

    def _loaded(self, progress: Progress | None = None) -> Encoder:
        sizes = plan_encoder(self._layout, gpu.device_capacity(self.device), self._longest)
        return Encoder(self.device, self.config, self._layout, self.device.tuning, progress, sizes)

    def _remake(self) -> None:
        self._encoder = self._loaded()
        self._engine.restart(self._encoder)
        for binder in self._binders.values():
            binder.restart(self._encoder)

    def fail(self, error: Exception) -> None:
        """End all calls with an error, for good; on the device thread."""
        self._engine.fail(error)
        for binder in self._binders.values():
            binder.close(error)

    def _end(self) -> None:
        for binder in self._binders.values():
            binder.close()
        self._engine.close()
