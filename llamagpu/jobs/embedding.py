"""The jobs of encoders: vectors of texts, and scores of documents for queries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from llamagpu.engine import CrossEncoder, Embedder
from llamagpu.errors import UsageError
from llamagpu.jobs.rows import Batches, Outcome, Row, text_of

T = TypeVar("T")
BATCH_SIZE = 64
_IN_PROGRESS = 1024  # texts: the device packs thousands of tokens, and more must be tokenized while it works


class Embedding(Batches):
    """The vector of every row's text. Each is the same as alone, bit for bit.

    The output column ``embedding`` is a vector of float32, or of the precision's dtype; ``cut_tokens`` has the number
    of tokens that were cut off the text.

    Args:
        embedder: the model.
        column: holds the text.
        batch_size: texts that are tokenized together; 1,024 texts are in progress.
        normalize, prompt_name, prompt, truncate_dim, precision, too_long: as ``Embedder.encode`` takes them. With
            ``too_long="error"`` a text of too many tokens is a bad row.

    Raises:
        UsageError: a setting is out of its range.
    """

    def __init__(
        self,
        embedder: Embedder,
        column: str = "text",
        *,
        batch_size: int = BATCH_SIZE,
        normalize: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        precision: Any = "float32",
        too_long: Any = "cut",
    ):
        if too_long not in ("cut", "error"):
            raise UsageError(f"too_long is {too_long!r:.60}.", "It is cut or error.")
        settings = {
            "normalize_embeddings": normalize,
            "prompt_name": prompt_name,
            "prompt": prompt,
            "truncate_dim": truncate_dim,
            "precision": precision,
        }
        example = embedder.encode("text", batch_size, **settings)  # checks the settings, and shows the dtype and length
        super().__init__(
            self._vectors,
            name="embed",
            inputs=(column,),
            columns={"embedding": f"{example.dtype}[{len(example)}]", "cut_tokens": "int64"},
            identity=_identity(embedder, column, settings | {"too_long": too_long}),
            size=batch_size,
            ahead=_ahead(batch_size),
        )
        self._embedder, self._given = embedder, settings | {"too_long": too_long, "batch_size": batch_size}

    def run(self, rows: Iterable[Row]) -> Generator[Outcome]:
        """See ``Job.run``. It reads 1,024 rows ahead."""
        with _warnings_once():
            yield from super().run(rows)

    def _vectors(self, batch: list[dict[str, Any]]) -> list[Outcome]:
        def encode(texts: list[str]) -> list[Outcome]:
            found = self._embedder.encode(texts, **self._given)
            pairs = zip(np.asarray(found), found.cut_tokens, strict=True)
            return [{"embedding": vector, "cut_tokens": cut} for vector, cut in pairs]

        return _outcomes(batch, lambda row: text_of(self.inputs, row), encode)


class Ranking(Batches):
    """The score of every row's document for a query, in the order of the rows.

    The output column ``score`` is a float32. Higher is better; scores of a model compare within one query.

    Args:
        encoder: a model with one label.
        query: the query of all rows; without it each row has its own, in the column ``query``.
        column: holds the document.
        batch_size: pairs that are tokenized together; 1,024 pairs are in progress.
        activation: as ``CrossEncoder.predict`` takes it.

    Raises:
        UsageError: a setting is out of its range, or the model has several labels.
    """

    def __init__(
        self,
        encoder: CrossEncoder,
        query: str | None = None,
        column: str = "document",
        *,
        batch_size: int = BATCH_SIZE,
        activation: Any = "auto",
    ):
        if encoder.num_labels != 1:
            labels = f"{encoder.name} has {encoder.num_labels} labels."
            raise UsageError(labels, "Ranking needs one.", "Use CrossEncoder.predict.")
        encoder.predict(("text", "text"), batch_size, activation=activation)  # checks the settings
        if query is not None:
            text_of(("query",), {"query": query})
        super().__init__(
            self._scores,
            name="rank",
            inputs=(column,),
            settings=("query",) if query is None else (),
            columns={"score": "float32"},
            identity=_identity(encoder, column, {"query": query, "activation": activation}),
            size=batch_size,
            ahead=_ahead(batch_size),
        )
        self._encoder, self._query = encoder, query
        self._given = {"activation": activation, "batch_size": batch_size}

    def _scores(self, batch: list[dict[str, Any]]) -> list[Outcome]:
        def pair(row: dict[str, Any]) -> tuple[str, str]:
            query = text_of(("query",), row) if self._query is None else self._query
            return query, text_of(self.inputs, row)

        def predict(pairs: list[tuple[str, str]]) -> list[Outcome]:
            return [{"score": score} for score in self._encoder.predict(pairs, **self._given).tolist()]

        return _outcomes(batch, pair, predict)


def _outcomes(
    batch: list[dict[str, Any]],
    take: Callable[[dict[str, Any]], T],
    run: Callable[[list[T]], list[Outcome]],
) -> list[Outcome]:
    """The outcomes of a batch's rows: ``take`` gives a row's input, or raises a ``UsageError`` that is its outcome."""
    taken: list[T | UsageError] = []
    for row in batch:
        try:
            taken.append(take(row))
        except UsageError as e:
            taken.append(e)
    good = [value for value in taken if not isinstance(value, UsageError)]
    found = iter(run(good) if good else ())
    return [value if isinstance(value, UsageError) else next(found) for value in taken]


def _ahead(batch_size: int) -> int:
    return max(2, _IN_PROGRESS // batch_size)


def _identity(model: Embedder | CrossEncoder, column: str, settings: dict[str, Any]) -> dict[str, Any]:
    """See ``Job.identity``."""
    facts = {"fingerprint": model.fingerprint, "dtype": model.dtype}
    given = {name: value for name, value in settings.items() if value is not None}
    return {"model": facts | {"max_length": model.max_length}, "columns": [column], "settings": given}


class _Once(logging.Filter):
    """Lets one warning of a kind pass."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        new = record.msg not in self._seen
        self._seen.add(record.msg)
        return new


@contextmanager
def _warnings_once() -> Iterator[None]:
    """Show each kind of warning once: the embedder warns of cut texts in every batch."""
    log, once = logging.getLogger("llamagpu"), _Once()
    log.addFilter(once)
    try:
        yield
    finally:
        log.removeFilter(once)
