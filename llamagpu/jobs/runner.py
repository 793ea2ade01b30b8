"""Running a job: input to output, in order, from where an earlier run ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.jobs.output import Journal, check_output, is_stream
from llamagpu.jobs.readers import Input, open_input
from llamagpu.jobs.rows import Job, Row, vectors
from llamagpu.jobs.target import Target

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Summary:
    """Rows of an output in all, those with an error, and those that an earlier run had written."""

    rows: int
    errors: int
    resumed: int


def run(
    job: Job,
    input: str | Path | Input,
    output: str | Path,
    *,
    errors: str = "stop",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Run a job on every row of a file, and write the results in the same order. A job that was killed continues after
    the last row that it wrote. The memory that it takes does not depend on the number of rows.

    Args:
        input: JSON Lines, text or Parquet, by the end of its name; ``-`` is JSON Lines from standard input.
        output: JSON Lines or Parquet, or .npy for a job that has one column of vectors; ``-`` is JSON Lines on standard
            output. With ``-`` nothing can be resumed.
        errors: ``stop`` ends the job at a bad row; ``skip`` writes the reason as the row's ``error``.
        overwrite: start anew, and delete an earlier output first.
        progress: called with (rows done, rows in all, or None if that is not known).

    Raises:
        UsageError: a path or a format is wrong, the output is not this job's, or a row is bad.
        LlamaGPUError: the output cannot be written, or the device was lost.
    """
    check_errors(errors)
    source, path = open_input(input), check_output(output, arrays=len(vectors(job.columns)) == 1)
    if isinstance(input, (str, Path)):
        _require_other(path, Path(input).expanduser())
    digest, total = source.scan(job)
    if is_stream(path):
        journal = Journal(path)
        _process(job, source, journal, errors, total, progress)
        return Summary(journal.rows, journal.errors, journal.resumed)
    target = Target(path, job.columns)
    with target.locked():
        identity = None if digest is None else {"job": job.name, "input": {"sha256": digest}, **job.identity()}
        if target.begin(identity, overwrite):
            _process(job, source, target.journal, errors, total, progress)
            target.finish()
    return Summary(target.journal.rows, target.journal.errors, target.journal.resumed)


def _require_other(output: Path, input: Path) -> None:
    """Refuse to write into the input."""
    if output.exists() and input.exists() and output.samefile(input):
        raise UsageError(f"The output {output} is the input.", "It would be overwritten.", "Give another output.")


def _process(
    job: Job, source: Input, journal: Journal, errors: str, total: int | None, progress: Progress | None
) -> None:
    """Append the outcomes of the rows that the journal lacks."""
    with closing(journal), closing(results(job, source, errors, journal.rows)) as found:
        for _, values in found:
            journal.append(values)
            if progress is not None:
                progress(journal.rows, total)
        journal.end()


def results(job: Job, source: Input, errors: str = "stop", first: int = 0) -> Generator[tuple[Row, dict[str, Any]]]:
    """The rows of an input after the first ``first`` ones, with their results: columns by name, or an ``error``.

    Args:
        errors: as ``run`` takes it.

    Raises:
        LlamaGPUError: a row is bad, or the device was lost.
    """
    waiting: deque[Row] = deque()

    def noted(rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            waiting.append(row)
            yield row

    with closing(job.run(noted(source.rows(job, first)))) as outcomes:
        for outcome in outcomes:
            row = waiting.popleft()
            if isinstance(outcome, LlamaGPUError) and errors == "stop":
                raise error_at(outcome, row.number, source.name)
            yield row, {"error": error_text(outcome)} if isinstance(outcome, LlamaGPUError) else outcome


def check_errors(errors: str) -> None:
    """Refuse another way to treat bad rows than ``stop`` and ``skip``."""
    if errors not in ("stop", "skip"):
        raise UsageError(f"errors is {errors!r:.60}.", "It must be stop or skip.")


def error_at(error: LlamaGPUError, number: int, name: str) -> LlamaGPUError:
    """The error that ends a job at a bad row of ``name``."""
    hint = 'With errors="skip" (--errors skip) the row gets the reason in place of a result, and the others go on.'
    return type(error)(f"Row {number} of {name}: {error.what}", error.why, hint)


def error_text(error: LlamaGPUError) -> str:
    """The error of a row that is skipped."""
    return " ".join(part for part in (error.what, error.why) if part)
