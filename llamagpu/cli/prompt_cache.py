"""``--prompt-cache``: prompts of earlier runs, kept in a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llamagpu.cli.output import ClosedPipe, Interrupted
from llamagpu.errors import UsageError

if TYPE_CHECKING:
    from llamagpu.engine import LLM

prompt_cache_option = click.option(
    "--prompt-cache",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Begin with the prompts that FILE keeps, if it is there, and keep those of this run in it.",
)


def check_prompt_cache(path: Path | None) -> None:
    """Refuse a file that cannot be written, before a model is loaded.

    Raises:
        UsageError: see above.
    """
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise UsageError(f"{path} cannot be a prompt cache.", "It is a directory, or in one that does not exist.")


@contextmanager
def prompt_cache(llm: LLM, path: Path | None) -> Iterator[None]:
    """Load the file if it is there, and save it at the end of the block, also after Ctrl-C. A file that cannot be used
    ends the command: it may be another model's, or no prompt cache at all, and is not overwritten."""
    if path is None:
        yield
        return
    if path.exists():
        llm.load_cache(path)
    try:
        yield
    except (Interrupted, ClosedPipe):
        llm.save_cache(path)
        raise
    llm.save_cache(path)
