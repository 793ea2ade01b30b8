"""Encoders that are loaded with their tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from llamagpu import gpu
from llamagpu.engine.arguments import adapter_name, whole_in
from llamagpu.engine.bound import Bindings, Bound, check_bindings, named_tensors
from llamagpu.engine.encoder_session import EncoderSession
from llamagpu.engine.remote import RemoteSession, elsewhere, remote_arguments
from llamagpu.engine.texts import Texts
from llamagpu.errors import Unique, UnsupportedModelError, UsageError, shown
from llamagpu.model import check_dtypes, find_model
from llamagpu.model.bound import encoder_arguments
from llamagpu.model.encoder_config import ENCODERS, is_encoder, parse_encoder
from llamagpu.model.estimate import MemoryUse
from llamagpu.model.find import open_source
from llamagpu.model.fit import Load
from llamagpu.model.weights import Progress
from llamagpu.text import Tokenizer


class EncoderModel(Unique):
    """A loaded encoder with its tokenizer; behind ``Embedder``, and the base of ``CrossEncoder``.

    Args:
        model: a directory or a hub id.
        device, dtype, revision, progress, recover, isolate, max_memory: as ``LLM`` takes them.
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
        isolate: bool = False,
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
        most = self.config.positions
        most = most if max_length is None else min(most, whole_in("max_length", max_length, 3))
        tokenizer = Tokenizer(source.tokenizer_file(), source.tokenizer_config(), self.config.vocab_size)
        options: dict[str, Any] = {"device": name, "dtype": dtype, "max_length": most, "ignored": ignored}
        options |= {"recover": recover, "max_memory": max_memory}
        self.dtype = dtype
        self._session: EncoderSession | RemoteSession
        if isolate:
            self._session = RemoteSession(remote_arguments(self.directory, "encoder", options), progress)
        else:
            self._session = EncoderSession(source, progress=progress, **options)
        self.texts = Texts(tokenizer, self._session.packs(), most, self.config.type_vocab_size)

    @property
    def device(self) -> gpu.Device:
        """The device that the model is on; of an isolated model its ``adapter`` alone is known."""
        return cast(gpu.Device, self._session.device)

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._session.closed

    def close(self) -> None:
        """Free the memory. Running calls end with an error; closing twice is harmless."""
        self._session.close()

    @property
    def max_length(self) -> int:
        """The most tokens of a text, special ones included."""
        return self.texts.max_length

    def bind(self, modes: tuple[str, ...], bindings: Bindings, tensors: Mapping[str, gpu.Tensor]) -> Bound:
        """Bind tensors; see ``Embedder.bind``. ``modes`` are those of the pooled vector."""
        if isinstance(self._session, RemoteSession):
            raise elsewhere("bind")
        named = named_tensors(bindings, tensors)
        check_bindings(named, encoder_arguments(self.config.hidden_size), self.device, self.max_length)
        if "pooled" in named and len(modes) > 1:
            raise UsageError("pooled cannot be bound.", f"The model pools in {len(modes)} ways.", "Bind hidden_states.")
        return Bound(self._session.binder(modes), named)

    @property
    def memory(self) -> MemoryUse:
        """The bytes that the device's buffers take now, the estimate of this model's, and their limit."""
        return MemoryUse.of(self.device, self._session.sizes)
