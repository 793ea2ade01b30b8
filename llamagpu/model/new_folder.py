"""Writing a new folder: complete under its name, or not there at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llamagpu.errors import LlamaGPUError, UsageError

_COPIED = (
    "tokenizer*",
    "added_tokens.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "README.md",
    "LICENSE*",
)


def check_new(out: Path, what: str) -> None:
    """Refuse a target that exists, or whose parent does not. ``what`` would be written there.

    Raises:
        UsageError: see above.
    """
    if os.path.lexists(out):
        raise UsageError(f"{out} exists.", "It would be overwritten.", "Choose another directory, or remove it.")
    if not out.parent.is_dir():
        raise UsageError(
            f"There is no directory {out.parent}.", f"The {what} would be written into it.", "Make it first."
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to write into. It gets the name ``out`` at the end of the block, or is removed after an
    error.

    Raises:
        LlamaGPUError: writing failed, for example because the disk is full.
    """
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        yield folder
        folder.chmod(0o755)
        os.rename(folder, out)
    except OSError as e:
        raise LlamaGPUError(
            f"{out} could not be written.",
            e.strerror or str(e),
            "Free some space, or choose another place; partial files were removed.",
        ) from e
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the files of a model directory that a changed copy of its weights needs as well: tokenizer, templates, …"""
    for pattern in _COPIED:
        for path in source.glob(pattern):
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
