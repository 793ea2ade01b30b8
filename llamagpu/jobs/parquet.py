"""Parquet files, by pyarrow (extra ``parquet``)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.jobs.rows import vector_type

_ROWS = 1024  # read or written at once


def import_pyarrow() -> tuple[ModuleType, ModuleType]:
    """pyarrow and pyarrow.parquet.

    Raises:
        UsageError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            "Parquet files need pyarrow.", "It is not installed.", 'Install it: pip install "llamagpu[parquet]"'
        ) from None
    return pyarrow, pyarrow.parquet


class ParquetFile:
    """A file to read.

    Raises:
        UsageError: it is not a Parquet file.
    """

    def __init__(self, path: Path):
        self._path = path
        pyarrow, parquet = import_pyarrow()
        self._broken = (pyarrow.ArrowException, OSError)
        try:
            self._file = parquet.ParquetFile(path)
        except self._broken as e:
            raise self._unreadable(e) from None

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._file.schema_arrow.names)

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def rows(self, columns: Collection[str], first: int) -> Iterator[dict[str, Any]]:
        """The rows after the first ``first`` ones, with those of the columns that exist."""
        groups, begin = range(self._file.metadata.num_row_groups), 0
        while groups and begin + (size := self._file.metadata.row_group(groups[0]).num_rows) <= first:
            groups, begin = groups[1:], begin + size
        if not groups:
            return
        skip = first - begin
        try:
            wanted = [name for name in self.columns if name in columns]
            for batch in self._file.iter_batches(_ROWS, row_groups=list(groups), columns=wanted):
                yield from batch.slice(min(skip, batch.num_rows)).to_pylist()
                skip -= min(skip, batch.num_rows)
        except (*self._broken, UnicodeDecodeError) as e:
            raise self._unreadable(e) from None

    def _unreadable(self, error: Exception) -> UsageError:
        return UsageError(f"{self._path} cannot be read as Parquet.", str(error).splitlines()[0])


def arrow_type(name: str) -> Any:
    """An Arrow type by its name, such as ``int64``, or ``float32[384]`` for a list of that length."""
    pyarrow, _ = import_pyarrow()
    vector = vector_type(name)
    return pyarrow.type_for_alias(name) if vector is None else pyarrow.list_(pyarrow.from_numpy_dtype(vector[0]))


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], columns: Mapping[str, str]) -> None:
    """Write rows to a new file; columns that a row lacks are null there."""
    pyarrow, parquet = import_pyarrow()
    schema = pyarrow.schema([(name, arrow_type(kind)) for name, kind in columns.items()])
    try:
        with parquet.ParquetWriter(path, schema) as writer:
            part: list[dict[str, Any]] = []
            for row in rows:
                part.append(row)
                if len(part) == _ROWS:
                    writer.write_table(pyarrow.Table.from_pylist(part, schema))
                    part = []
            if part:
                writer.write_table(pyarrow.Table.from_pylist(part, schema))
    except (pyarrow.ArrowException, OSError) as e:
        raise LlamaGPUError(f"{path} could not be written.", str(e)) from None
