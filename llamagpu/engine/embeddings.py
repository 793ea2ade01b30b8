"""``encode``: vectors of texts by a loaded model, with sentence-transformers' names."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llamagpu.engine.arguments import out_of_range, whole_in
from llamagpu.engine.texts import Batch, Texts
from llamagpu.errors import UsageError, shown
from llamagpu.gpu.thread import wait
from llamagpu.model.packs import Floats
from llamagpu.model.sentence_transformers import Pipeline, normalized

log = logging.getLogger("llamagpu")
Precision = Literal["float32", "int8", "binary"]


class Vectors(np.ndarray):
    """Vectors of texts: [dimension] of one, [texts, dimension] of several.

    Attributes:
        cut_tokens: of each text, the tokens that were cut off its end; empty in slices and results of operations.
    """

    cut_tokens: tuple[int, ...] = ()

    @property
    def cut(self) -> int:
        """Texts that were cut."""
        return sum(tokens > 0 for tokens in self.cut_tokens)

    def one(self) -> Vectors:
        """The vector of a single text."""
        vector: Vectors = self[0]
        vector.cut_tokens = self.cut_tokens
        return vector


@dataclass(frozen=True)
class _Given:
    """Items of one batch: those that are text (``kept``), on their way; and the number of all."""

    batch: Batch
    kept: list[int]
    count: int

    @property
    def cut_tokens(self) -> list[int]:
        """Tokens that were cut off each item."""
        out = [0] * self.count
        for i, text in zip(self.kept, self.batch.texts, strict=True):
            out[i] = text.cut
        return out


@dataclass(frozen=True)
class _Form:
    """The form of the vectors that a call asked for."""

    normalize: bool
    dimension: int | None
    precision: Precision

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, "float32", "int8", "binary")
        if self.dimension is not None:
            whole_in("truncate_dim", self.dimension, 1)


class Embeddings:
    """Vectors of texts by one model; the base of ``Embedder``, and behind ``LLM.embed``.

    Attributes:
        pipeline: what follows the model: pooling, dense layers, normalization; and its prompts.
    """

    def __init__(self, pipeline: Pipeline, texts: Texts):
        self.pipeline, self._texts = pipeline, texts

    @property
    def max_length(self) -> int:
        """The most tokens of a text, special ones included."""
        return self._texts.max_length

    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int = 32,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        normalize_embeddings: bool = False,
        show_progress_bar: bool | None = None,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        convert_to_numpy: bool = True,
        too_long: Literal["cut", "error"] = "cut",
        errors: Literal["raise", "skip"] = "raise",
    ) -> Any:
        """Vectors of texts: of a string, float32 [dimension]; of a list, [texts, dimension] in its order; of another
        iterable, an iterator of vectors, which reads ahead as far as keeps the device busy.

        Args:
            batch_size: texts that are tokenized and queued together; the device makes its own packs.
            prompt_name, prompt: a prompt of the model, or a text, that is put before every text.
            show_progress_bar: on standard error; None shows it if the log level is INFO or lower.
            truncate_dim: the first elements of every vector (Matryoshka).
            precision: ``int8`` (normalized, times 127) or ``binary`` (signs, packed: uint8 [dimension / 8]).
            convert_to_numpy: False gives a list of vectors for a list.
            too_long: texts of more tokens than ``max_length`` are cut, with a warning and with ``cut_tokens`` of the
                result (``Vectors``), or are an error.
            errors: ``skip`` gives NaN (0 in int8 and binary) for items that are not text, with a warning.

        Raises:
            UsageError: an item is not text, or an argument is not allowed.
            NotFinite: the model computed a NaN or an infinity.
        """
        form = _Form(normalize_embeddings, truncate_dim, precision)
        given = [sentences] if isinstance(sentences, str) else sentences
        batches = self._batches(given, batch_size, self._prompt(prompt_name, prompt), too_long, errors)
        if not isinstance(given, (list, tuple, np.ndarray)):
            return (vector for one in batches for vector in self._finish(one, form))
        out = self._gather(batches, form, len(given), show_progress_bar)
        return out.one() if given is not sentences else out if convert_to_numpy else list(out)

    def _gather(self, batches: Iterator[_Given], form: _Form, total: int, shown: bool | None) -> Vectors:
        """The vectors of all batches, with what was cut."""
        empty = self._finish(_Given(self._texts.submit([], self.pipeline.pooling), [], 0), form)
        found, cut = [empty], list[int]()
        with _progress(total, shown) as show:
            for one in batches:
                found.append(self._finish(one, form))
                cut += one.cut_tokens
                show(len(cut))
        out = np.concatenate(found).view(Vectors)
        out.cut_tokens = tuple(cut)
        return out

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

    def _batches(self, given: Iterable[Any], size: Any, before: str, too_long: Any, errors: Any) -> Iterator[_Given]:
        """Every batch, in order."""
        whole_in("batch_size", size, 1)
        _one_of("too_long", too_long, "cut", "error")
        _one_of("errors", errors, "raise", "skip")
        return self._queued(iter(given), size, before, too_long, errors)

    def _queued(self, items: Iterator[Any], size: int, before: str, too_long: str, errors: str) -> Iterator[_Given]:
        """Every batch. The next ones are queued while it is on its way."""
        ahead: deque[_Given] = deque()
        first, cut, skipped, more = 0, 0, 0, True
        while more or ahead:
            while more and (len(ahead) < 2 or sum(g.batch.tokens for g in ahead) < self._texts.ahead):
                given = list(islice(items, size))
                more = len(given) == size
                if given:
                    ahead.append(self._queue(given, first, before, too_long, errors))
                    first += len(given)
            if ahead:
                oldest = ahead.popleft()
                cut += sum(text.cut > 0 for text in oldest.batch.texts)
                skipped += oldest.count - len(oldest.kept)
                yield oldest
        if cut:
            log.warning("%d of %d texts were cut to %d tokens", cut, first, self.max_length)
        if skipped:
            log.warning("%d of %d items are not text; their vectors are NaN", skipped, first)

    def _queue(self, given: list[Any], first: int, before: str, too_long: str, errors: str) -> _Given:
        kept = [i for i, text in enumerate(given) if isinstance(text, str)]
        if len(kept) < len(given) and errors != "skip":
            bad = next(i for i, text in enumerate(given) if not isinstance(text, str))
            raise UsageError(
                f"Item {first + bad} is {shown(given[bad])}, not text.", "", 'errors="skip" leaves such items out.'
            )
        batch = self._texts.submit([before + self._prepared(given[i]) for i in kept], self.pipeline.pooling)
        cut = sum(text.cut > 0 for text in batch.texts)
        if cut and too_long == "error":
            raise UsageError(f"{cut} texts have more than {self.max_length} tokens.", "", "Shorten them, or cut them.")
        return _Given(batch, kept, len(given))

    def _prepared(self, text: str) -> str:
        """A text as the model wants it."""
        return text.lower() if self.pipeline.lower_case else text

    def _finish(self, given: _Given, form: _Form) -> npt.NDArray[Any]:
        """The vectors of a batch, in the form that was asked for; waits for the device."""
        made = self.pipeline.finish(wait(given.batch.vectors))
        made = made if form.dimension is None else made[:, : form.dimension]
        again = form.dimension is not None and None in self.pipeline.steps
        made = normalized(made) if form.normalize or again else made
        whole = form.precision == "float32"
        out = np.full((given.count, made.shape[1]), np.nan if whole else 0, np.float32)
        out[given.kept] = made
        if form.precision == "binary":
            return np.packbits(out > 0, axis=1)
        return out if whole else np.round(normalized(out) * 127).astype(np.int8)


@contextmanager
def _progress(total: int, shown: bool | None) -> Iterator[Callable[[int], None]]:
    """A function that shows the number of finished texts."""
    if not (log.isEnabledFor(logging.INFO) if shown is None else shown):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), redirect_stdout=False) as bar:
        task = bar.add_task("encoding", total=total)
        yield lambda done: bar.update(task, completed=done)


def _one_of(name: str, value: Any, *allowed: str) -> None:
    if value not in allowed:
        raise out_of_range(name, value, " or ".join(allowed))
