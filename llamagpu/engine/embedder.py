"""Embeddings of texts: an encoder, its tokenizer and sentence-transformers' pipeline as one object."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llamagpu import gpu
from llamagpu.engine.arguments import adapter_name, whole_in
from llamagpu.engine.encoding import EncoderEngine
from llamagpu.engine.session import Loaded
from llamagpu.errors import UnsupportedModelError, UsageError, shown
from llamagpu.gpu.thread import wait
from llamagpu.model import check_dtypes, find_model
from llamagpu.model.encoder import Encoded, Encoder
from llamagpu.model.encoder_config import ENCODERS, is_encoder, parse_encoder
from llamagpu.model.encoder_layout import EncoderLayout
from llamagpu.model.find import open_source
from llamagpu.model.sentence_transformers import normalized, read_pipeline
from llamagpu.model.weights import Progress
from llamagpu.text import Tokenizer

log = logging.getLogger("llamagpu")
Floats = npt.NDArray[np.float32]
Precision = Literal["float32", "int8", "binary"]
_AHEAD = 2  # batches that are submitted before the oldest one is read


@dataclass(frozen=True)
class _Batch:
    """Texts on their way: the vectors to come, the texts that are there, and the number that was cut."""

    vectors: Future[Floats]
    kept: list[int]
    count: int
    cut: int


class EncoderModel(Loaded):
    """A loaded encoder with its tokenizer; the base of ``Embedder`` and ``CrossEncoder``.

    Args:
        model: a directory or a hub id.
        device, dtype, revision, progress: as ``LLM`` takes them.
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
        ignored: tuple[str, ...] = (),
    ):
        dtype, _ = check_dtypes(dtype, "auto")
        self.directory = find_model(model, revision)
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
        self.max_length = most if max_length is None else min(most, whole_in("max_length", max_length, 3))
        self._tokenizer = Tokenizer(source.tokenizer_file(), source.tokenizer_config(), self.config.vocab_size)
        name = device if isinstance(device, gpu.Device) else adapter_name(device)
        self._encoder = self._load(name, lambda: self.device.call(partial(self._make, layout, progress)))
        self._engine = EncoderEngine(self.device, self._encoder)
        self.closed = False

    def _make(self, layout: EncoderLayout, progress: Progress | None) -> Encoder:
        return Encoder(self.device, self.config, layout, self.device.tuning, progress)

    def _end(self) -> None:
        self._engine.close()

    def _submit(self, texts: Sequence[str | tuple[str, str]], modes: tuple[str, ...]) -> tuple[Future[Floats], int]:
        """Tokenize texts and queue them; the vectors to come, and the number of texts that were cut."""
        found = self._tokenizer.encode_pairs(texts, self.max_length)
        encoded = [
            Encoded(tuple(ids), tuple(min(t, max(0, self.config.type_vocab_size - 1)) for t in types), cut)
            for ids, types, cut in found
        ]
        return self._engine.submit(encoded, modes), sum(e.cut > 0 for e in encoded)


class Embedder(EncoderModel):
    """Vectors of texts.

        with Embedder("sentence-transformers/all-MiniLM-L6-v2") as embedder:
            vectors = embedder.encode(["A cat.", "A dog."], normalize_embeddings=True)

    Directories of sentence-transformers are read whole: pooling, dense layers, normalization, prompts, the most tokens.
    Calls from several threads run together, each with the results of a lone one, bit for bit.
    """

    def __init__(self, model: str | Path, *, max_seq_length: int | None = None, **options: Any):
        self.pipeline = read_pipeline(find_model(model, options.get("revision")))
        super().__init__(model, max_length=max_seq_length or self.pipeline.max_length, **options)

    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int = 32,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        too_long: Literal["cut", "error"] = "cut",
        errors: Literal["raise", "skip"] = "raise",
    ) -> Any:
        """Vectors of texts: of a string, float32 [dimension]; of a list, [texts, dimension] in its order; of another
        iterable, an iterator of vectors, which reads ahead by a few batches.

        Args:
            batch_size: texts that are tokenized and queued together; the device makes its own packs.
            prompt_name, prompt: a prompt of the model, or a text, that is put before every text.
            truncate_dim: the first elements of every vector (Matryoshka).
            precision: ``int8`` (normalized, times 127) or ``binary`` (signs, packed: uint8 [dimension / 8]).
            too_long: texts of more tokens than ``max_length`` are cut, with a warning, or are an error.
            errors: ``skip`` gives NaN for items that are not text, with a warning, instead of an error.

        Raises:
            UsageError: an item is not text, or an argument is not allowed.
        """
        _check(batch_size, precision, truncate_dim)
        before = self._prompt(prompt_name, prompt)
        texts = [sentences] if isinstance(sentences, str) else sentences
        batches = self._batches(iter(texts), batch_size, before, too_long, errors)
        done = (self._finish(b, normalize_embeddings, truncate_dim, precision) for b in batches)
        if isinstance(sentences, str):
            return next(done)[0]
        if isinstance(sentences, (list, tuple, np.ndarray)):
            found = list(done)
            return np.concatenate(found) if found else np.empty((0, 0), np.float32)
        return (vector for vectors in done for vector in vectors)

    def similarity(self, a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
        """Similarities of all pairs, float32 [a, b], by the model's function (cosine, dot, euclidean, manhattan); the
        last two are negative distances."""
        x, y = (np.atleast_2d(np.asarray(v, np.float32)) for v in (a, b))
        kind = self.pipeline.similarity
        if kind == "cosine":
            return np.asarray(normalized(x) @ normalized(y).T)
        if kind == "dot":
            return np.asarray(x @ y.T)
        difference = x[:, None] - y[None]
        return np.asarray(-(np.abs(difference).sum(-1) if kind == "manhattan" else np.linalg.norm(difference, axis=-1)))

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return prompt
        name = name or self.pipeline.default_prompt
        if name is None:
            return ""
        if name not in self.pipeline.prompts:
            known = ", ".join(self.pipeline.prompts) or "none"
            raise UsageError(f"The model has no prompt {shown(name)}.", f"Its prompts: {known}.")
        return self.pipeline.prompts[name]

    def _batches(
        self, texts: Iterator[Any], size: int, before: str, too_long: str, errors: str
    ) -> Iterator[tuple[Floats, list[int], int]]:
        """Pooled vectors of each batch, the places of its texts, and its size. Batches are queued ahead."""
        ahead: deque[_Batch] = deque()
        first, cut, skipped = 0, 0, 0
        more = True
        while more or ahead:
            while more and len(ahead) < _AHEAD:
                given = list(islice(texts, size))
                more = len(given) == size
                if given:
                    ahead.append(self._queue(given, first, before, too_long, errors))
                    first += len(given)
            if ahead:
                batch = ahead.popleft()
                cut, skipped = cut + batch.cut, skipped + batch.count - len(batch.kept)
                yield wait(batch.vectors), batch.kept, batch.count
        if cut:
            log.warning("%d of %d texts were cut to %d tokens", cut, first, self.max_length)
        if skipped:
            log.warning("%d of %d items are not text; their vectors are NaN", skipped, first)

    def _queue(self, given: list[Any], first: int, before: str, too_long: str, errors: str) -> _Batch:
        kept = [i for i, text in enumerate(given) if isinstance(text, str)]
        if len(kept) < len(given) and errors != "skip":
            bad = next(i for i, text in enumerate(given) if not isinstance(text, str))
            raise UsageError(
                f"Item {first + bad} is {shown(given[bad])}, not text.", "", 'errors="skip" leaves such items out.'
            )
        lower = self.pipeline.lower_case
        texts = [before + (given[i].lower() if lower else given[i]) for i in kept]
        vectors, cut = self._submit(texts, self.pipeline.pooling)
        if cut and too_long == "error":
            raise UsageError(f"{cut} texts have more than {self.max_length} tokens.", "", "Shorten them, or cut them.")
        return _Batch(vectors, kept, len(given), cut)

    def _finish(
        self, batch: tuple[Floats, list[int], int], normalize: bool, dimension: int | None, precision: Precision
    ) -> npt.NDArray[Any]:
        pooled, kept, count = batch
        made = self.pipeline.finish(pooled)
        made = made if dimension is None else made[:, :dimension]
        made = normalized(made) if normalize or (dimension is not None and None in self.pipeline.steps) else made
        out = np.full((count, made.shape[1]), np.nan, np.float32)
        out[kept] = made
        if precision == "binary":
            return np.packbits(out > 0, axis=1)
        return out if precision == "float32" else np.round(normalized(out) * 127).astype(np.int8)


def _check(batch_size: Any, precision: Any, truncate_dim: Any) -> None:
    whole_in("batch_size", batch_size, 1)
    if precision not in ("float32", "int8", "binary"):
        raise UsageError(f"precision is {shown(precision)}.", "It is float32, int8 or binary.")
    if truncate_dim is not None:
        whole_in("truncate_dim", truncate_dim, 1)
