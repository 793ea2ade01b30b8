"""The files of a job's output: the final one, its journal, the state that tells whose they are, and a lock."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from llamagpu.errors import UsageError, shown
from llamagpu.jobs.npy import write_errors, write_vectors
from llamagpu.jobs.output import Journal
from llamagpu.jobs.parquet import write_parquet
from llamagpu.jobs.rows import vectors

_START_ANEW = "Give another output, or --overwrite to start anew."


class Target:
    """An output file ``OUT``. Its state is ``OUT.job``, which stays: a finished job that is started again does nothing.

    JSON Lines are their own journal. Parquet and .npy are written at the end, from the journal ``OUT.partial``, which
    holds vectors as bytes. An .npy has no place for errors; if there are any, they are in ``OUT.errors.jsonl``.
    """

    def __init__(self, path: Path, columns: Mapping[str, str]):
        self._path, self._columns = path, columns
        ends = (".job", ".lock", ".draft", ".errors.jsonl")
        self._state, self._lock, self._draft, self._errors = (_beside(path, end) for end in ends)
        self._suffix = path.suffix.lower()
        self._drafted = self._suffix in (".parquet", ".npy")
        self._partial = _beside(path, ".partial") if self._drafted else path
        self.journal = Journal(self._partial, vectors(columns) if self._drafted else None)
        self._identity: dict[str, Any] | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from the output until the block ends, or this process.

        Raises:
            UsageError: another process has it.
        """
        lock = filelock.FileLock(self._lock)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UsageError(
                f"The output {self._path} is being written.", "Another process runs this job.", "Wait for its end."
            ) from None
        except OSError as e:
            raise UsageError(f"The output {self._path} cannot be written.", e.strerror or str(e)) from None
        try:
            yield
        finally:
            with suppress(OSError):  # Windows does not remove open files
                self._lock.unlink()
            lock.release()

    def begin(self, identity: dict[str, Any] | None, overwrite: bool) -> bool:
        """Recover the rows of an earlier run; False if that run was complete.

        Args:
            identity: what the output depends on; None if the input can be read only once, so that nothing is resumed.

        Raises:
            UsageError: the output exists, and is not that of this job.
        """
        self._identity = identity
        if overwrite:
            for path in (self._state, self._partial, self._path, self._errors):
                path.unlink(missing_ok=True)
        state = self._load()
        if state is None or identity is None:
            self._require_new(identity)
        elif state.get("complete") is True and self._path.exists():
            self._require_same(state["identity"], identity)
            self.journal.rows = self.journal.resumed = state["rows"]
            self.journal.errors = state["errors"]
            return False
        else:
            self.journal.recover()
            if self.journal.rows:
                self._require_same(state["identity"], identity)
        self._store(complete=False)
        return True

    def finish(self) -> None:
        """Make the final file from the journal, and note that the job is complete."""
        if self._drafted:
            self._draft_output()
            _synced(self._draft)
            self._draft.replace(self._path)
        else:
            self._path.touch()
        self._store(complete=True)
        if self._drafted:
            self._partial.unlink(missing_ok=True)

    def _draft_output(self) -> None:
        """Write the output under another name, and the errors beside an .npy."""
        if self._suffix == ".parquet":
            write_parquet(self._draft, self.journal.read(), {"row": "int64", **self._columns, "error": "string"})
            return
        if self.journal.errors:
            write_errors(self._draft, self.journal.read())
            _synced(self._draft)
            self._draft.replace(self._errors)
        [(name, (dtype, length))] = vectors(self._columns).items()
        write_vectors(self._draft, self.journal.read(), (self.journal.rows, length), name, dtype)

    def _require_new(self, identity: dict[str, Any] | None) -> None:
        """Refuse an output that would be mixed with other rows."""
        if any(path.exists() and path.stat().st_size for path in (self._path, self._partial)):
            why = "No job wrote it: there is no state beside it."
            if identity is None:
                why = "Input from a pipe can be read only once, so nothing can be resumed."
            raise UsageError(f"The output {self._path} exists already.", why, _START_ANEW)

    def _require_same(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuse to continue another job's output."""
        changes = _changes(json.loads(json.dumps(before)), json.loads(json.dumps(now)))
        if changes:
            raise UsageError(
                f"The output {self._path} belongs to another job.", f"Changed: {'; '.join(changes[:4])}.", _START_ANEW
            )

    def _load(self) -> dict[str, Any] | None:
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            return state if isinstance(state["identity"], dict) else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UsageError(f"The job's state {self._state} cannot be read.", str(e), _START_ANEW) from None

    def _store(self, complete: bool) -> None:
        """Replace the state in one step."""
        if self._identity is None:
            self._state.unlink(missing_ok=True)
            return
        facts = {"complete": complete, "rows": self.journal.rows, "errors": self.journal.errors} if complete else {}
        self._draft.write_text(json.dumps({"identity": self._identity} | facts, indent=2) + "\n", encoding="utf-8")
        _synced(self._draft)
        self._draft.replace(self._state)


def _beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def _synced(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _changes(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two JSON values, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(k for k in now if k not in before)]
        return [c for k in keys for c in _changes(before.get(k), now.get(k), f"{name} {k}".strip())]
    if before == now:
        return []
    if name.endswith(("sha256", "fingerprint")):
        return [f"the content of the {name.split()[0]}"]
    return [f"{name} was {shown(before)}, is {shown(now)}"]
