"""Rows, and jobs: what a job must provide."""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from llamagpu.errors import DeviceLostError, LlamaGPUError, UsageError, shown

Outcome = dict[str, Any] | LlamaGPUError  # the columns of an output row, or why there are none


@dataclass(frozen=True)
class Row:
    """A row of the input.

    Attributes:
        number: from 1; in files of lines, the line.
        values: its columns by name, or why they cannot be read.
        key: what its random draws depend on besides the job's seed.
    """

    number: int
    values: dict[str, Any] | LlamaGPUError
    key: str


class Job(Protocol):
    """A function of rows.

    Attributes:
        name: in messages and in the state of a job.
        inputs: columns of which a row needs one. Lines of a text file have the first one alone.
        settings: further columns that it reads.
        columns: the columns of its output, with their Arrow types, or ``float32[384]`` for vectors of a length.
    """

    name: str
    inputs: tuple[str, ...]
    settings: tuple[str, ...]
    columns: Mapping[str, str]

    def identity(self) -> dict[str, Any]:
        """What the results depend on besides the input, as JSON values: a job is resumed only if it is the same."""

    def run(self, rows: Iterable[Row]) -> Generator[Outcome]:
        """The outcome of every row, in order. It reads ahead as far as it needs, and no further."""


class Batches:
    """A job from a function of batches.

    Args:
        function: takes the columns of up to ``size`` rows, and returns as many outcomes. If it raises one of our
            errors, but for a lost device, each row is tried alone, so that a bad row does not spoil the others.
        name, inputs, settings, columns, identity: see ``Job``.
        ahead: batches in progress at once, each in a thread; 0 runs one after the other in the caller's thread.
    """

    def __init__(
        self,
        function: Callable[[list[dict[str, Any]]], Sequence[Outcome]],
        *,
        name: str,
        inputs: tuple[str, ...],
        columns: Mapping[str, str],
        settings: tuple[str, ...] = (),
        identity: Mapping[str, Any] | None = None,
        size: int = 32,
        ahead: int = 0,
    ):
        self.name, self.inputs, self.settings = name, inputs, settings
        self.columns: Mapping[str, str] = dict(columns)
        self._function, self._size, self._identity = function, size, dict(identity or {})
        self._ahead = ahead

    def identity(self) -> dict[str, Any]:
        """See ``Job.identity``."""
        return dict(self._identity)

    def run(self, rows: Iterable[Row]) -> Generator[Outcome]:
        """See ``Job.run``."""
        pool = ThreadPoolExecutor(self._ahead, "llamagpu-batch") if self._ahead else None
        begun: deque[Callable[[], list[Outcome]]] = deque()
        remaining = iter(rows)
        try:
            while batch := list(itertools.islice(remaining, self._size)):
                todo = partial(self._outcomes, batch)
                begun.append(todo if pool is None else partial(_result, pool.submit(todo)))
                if len(begun) > self._ahead:
                    yield from begun.popleft()()
            while begun:
                yield from begun.popleft()()
        finally:
            if pool is not None:  # what still runs ends with the model at the latest
                pool.shutdown(wait=False, cancel_futures=True)

    def _outcomes(self, batch: list[Row]) -> list[Outcome]:
        """The outcomes of a batch's rows, some of which could not be read."""
        good = [row.values for row in batch if not isinstance(row.values, LlamaGPUError)]
        found = iter(self._tried(good) if good else ())
        return [row.values if isinstance(row.values, LlamaGPUError) else next(found) for row in batch]

    def _tried(self, batch: list[dict[str, Any]]) -> Sequence[Outcome]:
        try:
            return self._function(batch)
        except DeviceLostError:
            raise
        except LlamaGPUError as e:
            return [e] if len(batch) == 1 else [self._tried([one])[0] for one in batch]


def _result(future: Future[list[Outcome]]) -> list[Outcome]:
    """Wait for a thread's result. It wakes often, so that Ctrl-C works on every platform."""
    while not wait([future], timeout=0.2).done:
        pass
    return future.result()


def value_of(names: Sequence[str], row: Mapping[str, Any]) -> tuple[str, Any]:
    """The first of the columns ``names`` that is in a row and not null, and its value.

    Raises:
        UsageError: there is none.
    """
    found = next((name for name in names if row.get(name) is not None), None)
    if found is not None:
        return found, row[found]
    null = next((name for name in names if name in row), None)
    raise missing_column(names, row) if null is None else UsageError(f"The column {null} is null.", "It needs a value.")


def text_of(names: Sequence[str], row: Mapping[str, Any]) -> str:
    """The text in the first of the columns ``names`` that is in a row and not null; it may be empty.

    Raises:
        UsageError: there is none, or its value is not text.
    """
    name, value = value_of(names, row)
    if not isinstance(value, str):
        raise UsageError(f"The column {name} is {shown(value)}.", "It must be text.")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can write half of a character
        raise UsageError(f"The column {name} is not text.", "It holds half of a Unicode character.") from None
    return value


def vector_type(kind: str) -> tuple[np.dtype[Any], int] | None:
    """The dtype and the length of vectors of a type such as ``float32[384]``; None for types of other values."""
    found = re.fullmatch(r"(\w+)\[(\d+)\]", kind)
    return None if found is None else (np.dtype(found[1]), int(found[2]))


def vectors(columns: Mapping[str, str]) -> dict[str, tuple[np.dtype[Any], int]]:
    """The columns that hold vectors, with their dtypes and lengths."""
    return {name: found for name, kind in columns.items() if (found := vector_type(kind)) is not None}


def missing_column(names: Sequence[str], present: Iterable[str]) -> UsageError:
    """The error for a row or a file without any of the columns ``names``."""
    found = ", ".join(map(str, itertools.islice(present, 20)))
    return UsageError(
        f"There is no column {' or '.join(names)}.",
        f"The columns are: {found or 'none'}.",
        "Name the column with --column.",
    )
