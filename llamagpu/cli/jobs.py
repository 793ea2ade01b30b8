"""The options of commands that process a data set, and running them with progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from llamagpu.cli.output import Interrupted, note, progress_bar
from llamagpu.errors import UsageError

if TYPE_CHECKING:
    from llamagpu.engine import LLM, CrossEncoder, Embedder
    from llamagpu.jobs import Input, Job, Summary

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound="LLM | Embedder | CrossEncoder")
STANDARD = "-"  # standard input or output


@dataclass(frozen=True)
class JobOptions:
    """The options of a job."""

    input: str | Input
    output: str
    column: str | None
    errors: str
    overwrite: bool

    def refuse(self, given: dict[str, Any]) -> None:
        """Refuse arguments, by name, that mean nothing for a data set."""
        for name, value in given.items():
            if value:
                raise UsageError(f"--input and {name} exclude one another.", "The data set holds the prompts.")


def job_options(column: str, formats: str = ".jsonl, .parquet, or -. [default: -]") -> Callable[[F], F]:
    """Add the options of a job to a command.

    Args:
        column, formats: what the help says of the column and of the output.
    """
    choice = click.Choice(["stop", "skip"])
    options = (
        click.option("--input", help="A data set: JSON Lines, text (.txt, a row a line), Parquet, or - (JSON Lines)."),
        click.option("--output", help=f"Where its results go: {formats}"),
        click.option("--column", help=f"Its column with the {column}"),
        click.option("--errors", type=choice, help="Stop at a bad row, or write the reason and go on. [default: stop]"),
        click.option("--overwrite", is_flag=True, help="Delete an earlier --output and start anew."),
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def take_job_options(options: dict[str, Any], otherwise: Callable[[], Input] | None = None) -> JobOptions | None:
    """Remove the options of ``job_options`` from a command's options, and return them; None without an input.

    Args:
        otherwise: gives the input if there is no --input.
    """
    found = {name: options.pop(name) for name in ("input", "output", "column", "errors", "overwrite")}
    if found["input"] is None and otherwise is not None:
        found["input"] = otherwise()
    if found["input"] is not None:
        return JobOptions(**found | {"output": found["output"] or STANDARD, "errors": found["errors"] or "stop"})
    extra = next((name for name, value in found.items() if value), None)
    if extra is not None:
        raise UsageError(f"--{extra} needs --input.", "It belongs to a job over a data set.")
    return None


def texts_or_lines(texts: Sequence[str], missing: UsageError) -> Input:
    """The arguments of a command, or else lines of standard input; a terminal is an error."""
    from llamagpu.jobs import Texts, standard_lines

    if texts:
        return Texts(texts, "the arguments")
    if sys.stdin.isatty():
        raise missing
    return standard_lines()


def run_job(options: JobOptions, load: Callable[[], M], make: Callable[[M], Job], *, arrays: bool = False) -> int:
    """Run a job with a model; the exit code. Paths are checked before the model is loaded.

    Args:
        arrays: whether the output may be .npy.
    """
    from llamagpu import jobs

    jobs.open_input(options.input)
    jobs.check_output(options.output, arrays)
    model = load()
    with model:
        start = time.perf_counter()
        try:
            with row_progress() as progress:
                done = jobs.run(
                    make(model),
                    options.input,
                    options.output,
                    errors=options.errors,
                    overwrite=options.overwrite,
                    progress=progress,
                )
        except KeyboardInterrupt:
            if STANDARD not in (options.input, options.output):
                note("The rows so far are kept. Run the same command again to continue.")
                raise Interrupted from None
            raise
        seconds = time.perf_counter() - start
        note(f"{_counts(done)} in {seconds:.1f} s · {model.device.adapter}")
    return 1 if done.rows and done.errors == done.rows else 0


@contextmanager
def row_progress() -> Iterator[Callable[[int, int | None], None]]:
    """A function that shows the rows done on a terminal, if their number is known."""
    with progress_bar("", "rows") as show:

        def progress(done: int, total: int | None) -> None:
            if show is not None and total is not None:
                show(done, total)

        yield progress


def _counts(done: Summary) -> str:
    earlier = f", {done.resumed:,} of them by an earlier run" if done.resumed else ""
    failed = f", {done.errors:,} with an error" if done.errors else ""
    return f"{done.rows:,} rows{earlier}{failed}"
