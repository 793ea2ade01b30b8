"""``Embedder``: a model that gives vectors of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamagpu import gpu
from llamagpu.engine.arguments import adapter_name
from llamagpu.engine.bound import Bindings, Bound
from llamagpu.engine.embeddings import Embeddings
from llamagpu.engine.encoder_model import EncoderModel
from llamagpu.engine.language_model import LanguageModel
from llamagpu.errors import Unique
from llamagpu.model import check_dtypes, find_model
from llamagpu.model.encoder_config import is_encoder
from llamagpu.model.estimate import MemoryUse
from llamagpu.model.find import open_source
from llamagpu.model.fingerprint import encoder_fingerprint
from llamagpu.model.fit import Load
from llamagpu.model.sentence_transformers import read_pipeline
from llamagpu.model.weights import Progress


class DecoderModel(LanguageModel):
    """A decoder without the matrix that makes logits."""

    _head = False


class Embedder(Embeddings, Unique):
    """Vectors of texts, by an encoder or by a decoder (Qwen3-Embedding, E5-Mistral).

        with Embedder("sentence-transformers/all-MiniLM-L6-v2") as embedder:
            vectors = embedder.encode(["A cat.", "A dog."], normalize_embeddings=True)

    Directories of sentence-transformers are read whole: pooling, dense layers, normalization, prompts, the most tokens.
    Calls from several threads run together, each with the results of a lone one, bit for bit.

    Args:
        model: a directory, a hub id, or a GGUF file.
        device, dtype, revision, progress, recover, isolate, max_memory: as ``LLM`` takes them.
        pooling: cls, mean, max, last, weightedmean or mean_sqrt_len, in place of the model's own. An encoder without
            ``modules.json`` has mean, as sentence-transformers has it; a decoder needs one of them.
        max_seq_length: the most tokens of a text, special ones included; None is the model's, and of a decoder at most
            4,096.

    Raises:
        UsageError: an argument is out of its range, or a decoder has no pooling.
        LlamaGPUError: the model cannot be loaded; see ``LLM``.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | int | gpu.Device = "auto",
        dtype: Any = "auto",
        revision: str | None = None,
        pooling: str | None = None,
        max_seq_length: int | None = None,
        progress: Progress | None = None,
        recover: bool = True,
        isolate: bool = False,
        max_memory: int | str | None = None,
    ):
        place = device if isinstance(device, gpu.Device) else adapter_name(device)
        load = Load(place, max_memory, check_dtypes(dtype, "auto")[0], context=max_seq_length, head=False)
        directory = find_model(model, revision, fit=load)
        encoder = is_encoder(open_source(directory).config())
        pipeline = read_pipeline(directory, pooling, "mean" if encoder else None)
        most = max_seq_length or pipeline.max_length
        options: dict[str, Any] = {"device": device, "dtype": dtype, "max_memory": max_memory}
        options |= {"progress": progress, "recover": recover, "isolate": isolate}
        self._model: EncoderModel | DecoderModel
        if encoder:
            self._model = EncoderModel(directory, max_length=most, **options)
            super().__init__(pipeline, self._model.texts)
        else:
            self._model = DecoderModel(directory, context=most, **options)
            super().__init__(pipeline, self._model.texts())

    def __repr__(self) -> str:
        return f"<Embedder {self.name} on {self.device.adapter}{' closed' if self._model.closed else ''}>"

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def device(self) -> gpu.Device:
        """The device that the model is on."""
        return self._model.device

    @property
    def dtype(self) -> str:
        """The dtype of the weights as it was asked for."""
        return self._model.dtype

    @property
    def fingerprint(self) -> str:
        """A hash of the model's files and of its pooling, the same on every machine. It ignores dtypes."""
        return encoder_fingerprint(self._model.source, self.pipeline)

    @property
    def memory(self) -> MemoryUse:
        """The bytes that the device's buffers take now, the estimate of this model's, and their limit."""
        return self._model.memory

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._model.closed

    def bind(self, bindings: Bindings = (), /, **tensors: gpu.Tensor) -> Bound:
        """Bind tensors on the model's device to its input and outputs, for runs that move nothing to the host; see
        ``LLM.bind``, which also describes the errors and a decoder's outputs.

        Args:
            input_ids: u32 [n] or [1, n], n up to ``max_length``, with the special tokens; of token type 0.
            hidden_states: f32 [n, hidden_size], the last layer's vectors (transformers' ``last_hidden_state``).
            pooled: f32 [1, hidden_size], of encoders: the pooled vector, before dense layers and normalization.
        """
        if isinstance(self._model, EncoderModel):
            return self._model.bind(self.pipeline.pooling, bindings, tensors)
        return self._model.bind(bindings, **tensors)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text as ``encode`` makes them, with special tokens, cut to ``max_length``."""
        return list(self._texts.tokenize([self._prepared(text)])[0].ids)

    def close(self) -> None:
        """Free the memory. Running calls end with an error; closing twice is harmless."""
        self._model.close()
