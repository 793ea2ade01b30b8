"""Writing results and errors, and progress on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from llamagpu.errors import LlamaGPUError

if TYPE_CHECKING:
    from llamagpu.engine import LLM

M = TypeVar("M")
_SHOW_PROGRESS_FROM = 50_000_000  # bytes; less is done at once


class ClosedPipe(Exception):
    """The reader of standard output closed the pipe. (click would turn the OSError into exit code 1.)"""


class Interrupted(Exception):
    """Ctrl-C, after the line on the terminal was ended. (click would end it again.)"""


def write(text: str) -> None:
    """Text to standard output, at once."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise ClosedPipe from None
    except OSError as e:
        raise LlamaGPUError("Standard output could not be written.", e.strerror or str(e)) from None
    except UnicodeEncodeError:  # a terminal that is not UTF-8
        sys.stdout.buffer.write(text.encode(sys.stdout.encoding or "ascii", "replace"))
        sys.stdout.flush()


def write_json(value: Any) -> None:
    """One JSON value and a line break to standard output."""
    write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def note(text: str) -> None:
    """A line for people, to standard error."""
    click.echo(text, err=True)


@contextmanager
def progress_bar(doing: str, unit: str = "") -> Iterator[Callable[..., None] | None]:
    """A function that shows (done, total) on standard error, in bytes or ``unit``; None if that is not a terminal.

    A third argument replaces ``doing``.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    count = TextColumn(f"{{task.completed:,}} of {{task.total:,}} {unit}") if unit else DownloadColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count)
    # Standard output is left alone: it carries results, and may be a file.
    bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
    task = bar.add_task(doing, total=0)

    def show(done: int, total: int, now: str = doing) -> None:
        if unit or total >= _SHOW_PROGRESS_FROM:
            bar.update(task, description=escape(now), completed=done, total=total)
            bar.start()  # not earlier: it erases the line, and the hub's library may show a bar there

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


def open_model(options: dict[str, Any]) -> LLM:
    """Load a model, with progress if it takes a while."""
    from llamagpu.engine import LLM

    return load_with_progress(LLM, options)


def load_with_progress(kind: Callable[..., M], options: dict[str, Any]) -> M:
    """Load a model of a kind, such as ``Embedder``, with progress if it takes a while."""
    with progress_bar("loading") as progress:
        return kind(options.pop("model"), **options, progress=progress)


def error_lines(what: str, why: str = "", hint: str = "") -> str:
    """The text of an error: what happened, why, and a hint."""
    return "\n".join([f"error: {what}", *(f"  {line}" for part in (why, hint) if part for line in part.splitlines())])
