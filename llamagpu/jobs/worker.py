"""Jobs on batches that come as tables, each with its results as further columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from llamagpu.engine.arguments import plain
from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.jobs.parquet import arrow_type, import_pyarrow
from llamagpu.jobs.rows import Job, Outcome, Row
from llamagpu.jobs.runner import check_errors, error_at, error_text

M = TypeVar("M")


class Worker:
    """A job on batches of rows: the base of callable classes for ``map_batches``.

    A call takes a batch, a dictionary of numpy arrays or a ``pyarrow.Table``, which keeps types better. It returns a
    Table with the batch's columns, those of the job and ``error``, which replace others of the same name.

    Args:
        errors: ``stop`` raises an error at a bad row, which ends the job; ``skip`` writes the reason as the row's
            ``error``.
        load: makes the model.
        make: makes the job of a model.

    Raises:
        UsageError: a setting is out of its range, or pyarrow is not installed.
    """

    def __init__(self, errors: str, load: Callable[[], M], make: Callable[[M], Job]):
        import_pyarrow()
        check_errors(errors)
        self._errors = errors
        model = load()
        self._model, self._job = model, make(model)

    def __call__(self, batch: Any) -> Any:
        """The batch with its results, as a ``pyarrow.Table``.

        Raises:
            UsageError: the batch is of another kind, or with ``errors="stop"`` a row is bad.
            DeviceLostError: the device was lost.
        """
        table = _table(batch)
        rows = [Row(number, values, _key(values)) for number, values in enumerate(table.to_pylist(), start=1)]
        outcomes = list(self._job.run(rows))
        if self._errors == "stop":
            for row, outcome in zip(rows, outcomes, strict=True):
                if isinstance(outcome, LlamaGPUError):
                    raise error_at(outcome, row.number, "a batch")
        return _with_results(table, outcomes, {**self._job.columns, "error": "string"})


def _key(values: Mapping[str, Any]) -> str:
    """A row's content. Null columns are left out: Arrow adds them to the rows of some blocks."""
    return json.dumps({k: v for k, v in values.items() if v is not None}, sort_keys=True, default=str)


def _table(batch: Any) -> Any:
    """A batch as a ``pyarrow.Table``."""
    pyarrow, _ = import_pyarrow()
    if isinstance(batch, pyarrow.Table):
        return batch
    if isinstance(batch, Mapping):
        return pyarrow.table({name: plain(values) for name, values in batch.items()})
    raise UsageError(
        f"A batch is a {type(batch).__name__}.",
        "It must be a dictionary of arrays or a pyarrow.Table.",
        'Give map_batches batch_format="pyarrow".',
    )


def _with_results(table: Any, outcomes: list[Outcome], columns: Mapping[str, str]) -> Any:
    """A table with the columns of the results; they replace columns of the same name."""
    pyarrow, _ = import_pyarrow()
    found = [{"error": error_text(o)} if isinstance(o, LlamaGPUError) else o for o in outcomes]
    for name, kind in columns.items():
        values = pyarrow.array([row.get(name) for row in found], arrow_type(kind))
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, values)
        else:
            table = table.append_column(name, values)
    return table
