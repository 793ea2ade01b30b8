"""The journal of a job: its rows so far, which survive a kill; and the checks of an output's path."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.jobs.parquet import import_pyarrow
from llamagpu.jobs.readers import JSON_LINES, STANDARD

_SYNC_SECONDS = 1.0


def check_output(path: str | Path, arrays: bool = False) -> Path:
    """The path of an output, its format and directory checked; ``-`` is JSON Lines on standard output.

    Args:
        arrays: whether it may be .npy, which holds the vectors of a job that has one column of them.

    Raises:
        UsageError: the format is not known, the directory does not exist, or the file cannot be written.
    """
    path = Path(path).expanduser()
    if is_stream(path):
        return path
    suffix = path.suffix.lower()
    if path.is_dir():
        raise UsageError(f"The output {path} is a directory.", "It must be a file.")
    if suffix not in (*JSON_LINES, ".parquet", *[".npy"] * arrays):
        known = f"An output is .jsonl{', .npy' * arrays} or .parquet."
        raise UsageError(f"The format of {path.name} is not known.", known, "Rename it.")
    if suffix == ".parquet":
        import_pyarrow()
    if not path.parent.is_dir():
        raise UsageError(f"There is no directory {path.parent} for the output.", "", "Make it first.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"The output {path} cannot be written.", "Permission denied.")
    return path


def is_stream(path: Path) -> bool:
    """Whether an output is standard output, a pipe or a device, which keep nothing to resume."""
    return str(path) == STANDARD or (path.exists() and not path.is_file() and not path.is_dir())


class Journal:
    """Rows as JSON Lines: in order, appended one by one, each of them at once.

    A kill can only tear the last row, and ``recover`` cuts it then.

    Args:
        vectors: columns whose bytes follow the line of each row without an error, with their dtypes and lengths.
    """

    def __init__(self, path: Path, vectors: Mapping[str, tuple[np.dtype[Any], int]] | None = None):
        self._path, self._vectors = path, dict(vectors or {})
        self._attached = sum(dtype.itemsize * length for dtype, length in self._vectors.values())
        self.rows, self.errors, self.resumed = 0, 0, 0
        self._file: BinaryIO | FileIO | None = None
        self._stream = is_stream(path)
        self._synced = time.monotonic()

    def recover(self) -> None:
        """Count the rows of an earlier run, and cut a torn last row.

        Raises:
            UsageError: a line is not the row that belongs there.
        """
        if not self._path.exists():
            return
        whole = 0
        with self._path.open("r+b") as file:
            for line in file:
                number = self.rows + 1
                if not (line.startswith((b'{"row": %d, ' % number, b'{"row": %d}' % number)) and line.endswith(b"}\n")):
                    if line.endswith(b"}\n") or file.read(1):  # it is not torn, or not the last one
                        raise UsageError(
                            f"Row {number} of {self._path.name} is not row {number} of this job.",
                            "Something else has changed the file.",
                            "Restore it, or give --overwrite to start anew.",
                        )
                    break
                is_error = line.startswith(b'{"row": %d, "error": ' % number)
                attached = 0 if is_error else self._attached
                if len(file.read(attached)) < attached:
                    break
                whole += len(line) + attached
                self.rows = number
                self.errors += is_error
            file.truncate(whole)
        self.resumed = self.rows

    def append(self, values: Mapping[str, Any]) -> None:
        """Write the next row.

        Raises:
            LlamaGPUError: the disk is full, or the file cannot be written.
        """
        shown, attached = {"row": self.rows + 1, **values}, b""
        if "error" not in values:
            attached = b"".join(shown.pop(n).astype(dtype).tobytes() for n, (dtype, _) in self._vectors.items())
        line = json.dumps(shown, ensure_ascii=False, default=np.ndarray.tolist) + "\n"
        with self._reporting():
            self._write(line.encode() + attached)
            if time.monotonic() - self._synced >= _SYNC_SECONDS:
                self._sync()
        self.rows += 1
        self.errors += "error" in values

    def _write(self, data: bytes) -> None:
        """Write at once. The file has no buffer, so that closing it after an error writes nothing more."""
        if self._file is None:
            standard = str(self._path) == STANDARD
            self._file = sys.stdout.buffer if standard else self._path.open("ab", buffering=0)
        while data:
            data = data[self._file.write(data) :]
        self._file.flush()

    def _sync(self) -> None:
        if self._file is not None and not self._stream:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn an error of the system into ours; that of a closed pipe ends the command quietly."""
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as e:
            name = "Standard output" if str(self._path) == STANDARD else f"The output {self._path}"
            kept = "" if self._stream else f"The first {self.rows} rows are kept. Run it again to continue."
            raise LlamaGPUError(f"{name} could not be written.", e.strerror or str(e), kept) from None

    def end(self) -> None:
        """Wait until all rows are on the disk.

        Raises:
            LlamaGPUError: the system reports an error.
        """
        with self._reporting():
            self._sync()

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None and file is not sys.stdout.buffer:
            file.close()

    def read(self) -> Iterator[dict[str, Any]]:
        """All rows, with their vectors as arrays."""
        if self._path.exists():
            with self._path.open("rb") as file:
                for line in file:
                    row = json.loads(line)
                    if "error" not in row:
                        for name, (dtype, length) in self._vectors.items():
                            row[name] = np.frombuffer(file.read(dtype.itemsize * length), dtype)
                    yield row
