"""Rows, and jobs: what a job must provide."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llamagpu.errors import LlamaGPUError, UsageError

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
        columns: the columns of its output, with their Arrow types.
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
        function: takes the columns of up to ``size`` rows, and returns as many outcomes. If it raises a ``UsageError``,
            each row is tried alone, so that a bad row does not spoil the others.
        name, inputs, settings, columns, identity: see ``Job``.
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
    ):
        self.name, self.inputs, self.settings, self.columns = name, inputs, settings, dict(columns)
        self._function, self._size, self._identity = function, size, dict(identity or {})

    def identity(self) -> dict[str, Any]:
        """See ``Job.identity``."""
        return dict(self._identity)

    def run(self, rows: Iterable[Row]) -> Generator[Outcome]:
        """See ``Job.run``."""
        remaining = iter(rows)
        while batch := list(itertools.islice(remaining, self._size)):
            good = [row.values for row in batch if not isinstance(row.values, LlamaGPUError)]
            outcomes = iter(self._outcomes(good) if good else ())
            for row in batch:
                yield row.values if isinstance(row.values, LlamaGPUError) else next(outcomes)

    def _outcomes(self, batch: list[dict[str, Any]]) -> Sequence[Outcome]:
        try:
            return self._function(batch)
        except UsageError as e:
            return [e] if len(batch) == 1 else [self._outcomes([one])[0] for one in batch]


def missing_column(names: Sequence[str], present: Iterable[str]) -> UsageError:
    """The error for a row or a file without any of the columns ``names``."""
    found = ", ".join(map(str, itertools.islice(present, 20)))
    return UsageError(
        f"There is no column {' or '.join(names)}.",
        f"The columns are: {found or 'none'}.",
        "Name the column with --column.",
    )


def plain(value: Any) -> Any:
    """A value of JSON, Arrow or numpy as plain Python; NaN, which pandas writes for a missing number, as None."""
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        value = value.tolist()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple, set, frozenset)) else value
