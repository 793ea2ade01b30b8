"""The options of commands that process a data set, and running them with progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from llamagpu.cli.output import note, open_model, progress_bar
from llamagpu.errors import UsageError

if TYPE_CHECKING:
    from llamagpu.engine import LLM
    from llamagpu.jobs import Job, Summary

F = TypeVar("F", bound=Callable[..., Any])
_OPTIONS = (
    click.option(
        "--input", help="A data set: JSON Lines, text (.txt, a row on every line), Parquet, or - (JSON Lines)."
    ),
    click.option("--output", help="Where its results go: .jsonl, .parquet, or -. [default: -]"),
    click.option("--column", help="Its column with the prompts or messages. [default: prompt, or else messages]"),
    click.option(
        "--errors",
        type=click.Choice(["stop", "skip"]),
        help="Stop at a bad row, or write the reason as its error and go on. [default: stop]",
    ),
    click.option("--overwrite", is_flag=True, help="Delete an earlier --output and start anew."),
)


@dataclass(frozen=True)
class JobOptions:
    """The options of a job."""

    input: str
    output: str
    column: str | None
    errors: str
    overwrite: bool

    def refuse(self, given: dict[str, Any]) -> None:
        """Refuse arguments, by name, that mean nothing for a data set."""
        for name, value in given.items():
            if value:
                raise UsageError(f"--input and {name} exclude one another.", "The data set holds the prompts.")


def job_options(command: F) -> F:
    """Add the options of a job to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_job_options(options: dict[str, Any]) -> JobOptions | None:
    """Remove the options of ``job_options`` from a command's options, and return them; None without --input."""
    found = {name: options.pop(name) for name in ("input", "output", "column", "errors", "overwrite")}
    if found["input"] is not None:
        return JobOptions(**found | {"output": found["output"] or "-", "errors": found["errors"] or "stop"})
    extra = next((name for name, value in found.items() if value), None)
    if extra is not None:
        raise UsageError(f"--{extra} needs --input.", "It belongs to a job over a data set.")
    return None


def run_job(options: JobOptions, load: dict[str, Any], make: Callable[[LLM], Job]) -> int:
    """Run a job with a model; the exit code. Paths are checked before the model is loaded."""
    from llamagpu import jobs

    jobs.open_input(options.input)
    jobs.check_output(options.output)
    with open_model(load) as llm:
        start = time.perf_counter()
        with progress_bar("", "rows") as show:

            def progress(done: int, total: int | None) -> None:
                if show is not None and total is not None:
                    show(done, total)

            done = jobs.run(
                make(llm),
                options.input,
                options.output,
                errors=options.errors,
                overwrite=options.overwrite,
                progress=progress,
            )
        seconds = time.perf_counter() - start
        note(f"{_counts(done)} in {seconds:.1f} s · {llm.device.adapter}")
    return 1 if done.rows and done.errors == done.rows else 0


def _counts(done: Summary) -> str:
    earlier = f", {done.resumed:,} of them by an earlier run" if done.resumed else ""
    failed = f", {done.errors:,} with an error" if done.errors else ""
    return f"{done.rows:,} rows{earlier}{failed}"
