"""Inputs of jobs: JSON Lines, text with a row on every line, and Parquet. They are read as they are needed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from llamagpu.errors import LlamaGPUError, UsageError, shown
from llamagpu.jobs.parquet import ParquetFile
from llamagpu.jobs.rows import Job, Row, missing_column

STANDARD = "-"  # standard input or output
JSON_LINES = (".jsonl", ".ndjson")
_TEXT = (".txt", ".text")
_BOM = b"\xef\xbb\xbf"
_FORMATS = "JSON Lines (.jsonl, .ndjson), text with a row on every line (.txt), or Parquet (.parquet)"


class Input(Protocol):
    """An input. ``name`` is its name in messages."""

    name: str

    def scan(self, job: Job) -> tuple[str | None, int | None]:
        """The SHA-256 of the content and the number of rows; None twice if it can be read only once, as a pipe.

        Raises:
            UsageError: the input cannot be read, or has no column that the job needs.
        """

    def rows(self, job: Job, first: int) -> Iterator[Row]:
        """The rows after the first ``first`` ones."""


def open_input(path: str | Path | Input) -> Input:
    """An input by the end of its name; ``-`` is JSON Lines from standard input, which is read once. An open one stays.

    Raises:
        UsageError: there is no such file, or its format is not known.
    """
    if not isinstance(path, (str, Path)):
        return path
    if str(path) == STANDARD:
        return _Lines(None, is_json=True)
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if not path.exists():
        raise UsageError(f"There is no input file {path}.", f"An input is {_FORMATS}.", "Check the path.")
    if path.is_dir():
        raise UsageError(f"{path} is a directory.", f"An input is one file: {_FORMATS}.")
    if suffix == ".parquet":
        return _Parquet(path)
    if suffix in (*JSON_LINES, *_TEXT) or not path.is_file():  # a pipe has no suffix
        return _Lines(path, is_json=suffix not in _TEXT)
    raise UsageError(f"The format of {path.name} is not known.", f"An input is {_FORMATS}.", "Convert or rename it.")


def standard_lines() -> Input:
    """Text from standard input with a row on every line, which is read once."""
    return _Lines(None, is_json=False)


class Texts:
    """Rows of texts that are in memory.

    Args:
        name: what they are, in messages.
    """

    def __init__(self, texts: Sequence[str], name: str = "the texts"):
        self.name, self._texts = name, list(texts)

    def scan(self, job: Job) -> tuple[str | None, int | None]:
        """See ``Input.scan``."""
        return hashlib.sha256(json.dumps(self._texts).encode()).hexdigest(), len(self._texts)

    def rows(self, job: Job, first: int) -> Iterator[Row]:
        """See ``Input.rows``."""
        for number, text in enumerate(self._texts[first:], start=first + 1):
            yield Row(number, {job.inputs[0]: text}, str(number))


class _Lines:
    """A file with a row on every line, or standard input. Empty lines at the end are no rows."""

    def __init__(self, path: Path | None, is_json: bool):
        self.name = "standard input" if path is None else path.name
        self._path, self._json = path, is_json

    def scan(self, job: Job) -> tuple[str | None, int | None]:
        """See ``Input.scan``."""
        if self._path is None or not self._path.is_file():
            return None, None
        digest, rows = hashlib.sha256(), 0
        with self._open() as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                if line.strip():
                    rows = number
        return digest.hexdigest(), rows

    def rows(self, job: Job, first: int) -> Iterator[Row]:
        """See ``Input.rows``."""
        empty: list[int] = []
        with self._open() as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(_BOM)
                if not line.strip():
                    empty.append(number)
                    continue
                yield from (self._row(n, b"", job) for n in empty if n > first)
                empty.clear()
                if number > first:
                    yield self._row(number, line, job)

    def _open(self) -> Any:
        try:
            file: BinaryIO = sys.stdin.buffer if self._path is None else self._path.open("rb")
        except OSError as e:
            raise UsageError(f"The input {self.name} cannot be read.", e.strerror or str(e)) from None
        return nullcontext(file) if self._path is None else file

    def _row(self, number: int, line: bytes, job: Job) -> Row:
        return Row(number, self._values(line, job.inputs[0]), str(number))

    def _values(self, line: bytes, column: str) -> dict[str, Any] | LlamaGPUError:
        try:
            text = line.decode("utf-8").rstrip("\r\n")
            values = json.loads(text) if self._json and text else {column: text}
        except UnicodeDecodeError as e:
            return UsageError("The line is not UTF-8 text.", str(e))
        except (ValueError, RecursionError) as e:
            return UsageError("The line is not JSON.", str(e))
        if self._json and not text:
            return UsageError("The line is empty.", "It must be a JSON object.")
        if not isinstance(values, dict):
            return UsageError("The line is not a JSON object.", f"It is {shown(values)}.")
        return values


class _Parquet:
    """A Parquet file."""

    def __init__(self, path: Path):
        self.name, self._path = path.name, path

    @cached_property
    def _file(self) -> ParquetFile:
        return ParquetFile(self._path)

    def scan(self, job: Job) -> tuple[str | None, int | None]:
        """See ``Input.scan``."""
        if not set(job.inputs) & set(self._file.columns):
            raise missing_column(job.inputs, self._file.columns)
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), len(self._file)

    def rows(self, job: Job, first: int) -> Iterator[Row]:
        """See ``Input.rows``."""
        read = self._file.rows({*job.inputs, *job.settings}, first)
        for number, values in enumerate(read, start=first + 1):
            yield Row(number, values, str(number))
