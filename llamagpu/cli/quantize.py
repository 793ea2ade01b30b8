"""``llamagpu quantize``: write a quantized copy of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from llamagpu.cli.options import json_option, revision_option
from llamagpu.cli.output import note, progress_bar, write_json
from llamagpu.errors import ModelNotFoundError, UsageError

if TYPE_CHECKING:
    from llamagpu.model import Prepared

_LEAST_SHARE = 0.5  # of the weights' elements: a copy that quantizes less is probably a mistake


@click.command()
@click.argument("paths", metavar="[MODEL] OUT", nargs=-1, required=True)
@click.option("-m", "--model", help="A model directory or a hub id, instead of the argument.")
@click.option("--bits", type=int, default=8, show_default=True, help="4 or 8.")
@click.option(
    "--group-size", type=int, default=64, show_default=True, help="Weights that share a scale: 32, 64 or 128."
)
@click.option("--force", is_flag=True, help="Write the copy even if it quantizes less than half of the weights.")
@revision_option
@json_option
def quantize(
    paths: tuple[str, ...],
    model: str | None,
    bits: int,
    group_size: int,
    force: bool,
    revision: str | None,
    as_json: bool,
) -> None:
    """Write a quantized copy of MODEL (a directory or a hub id) to the new directory OUT, in MLX's layout."""
    from llamagpu.model import find_model, prepare
    from llamagpu.model.quantize import quantize_checkpoint

    source, out = _arguments(paths, model)
    prepared = prepare(find_model(source, revision))
    _check_tokenizer(prepared)
    if not force:
        _check_share(prepared, group_size)
    with progress_bar("writing") as progress:
        written = quantize_checkpoint(prepared, out, bits, group_size, progress)
    before = prepared.layout.nbytes
    if as_json:
        facts = {"path": str(out), "bytes": written.nbytes, "bytes_before": before}
        write_json(facts | {"bits": bits, "group_size": group_size, "unquantized": list(written.unquantized)})
        return
    note(
        f"{out}: {written.nbytes / 1e6:,.1f} MB (before: {before / 1e6:,.1f} MB), {bits} bits in groups of {group_size}"
    )
    if written.unquantized:
        names = ", ".join(written.unquantized)
        note(f"not quantized, because groups of {group_size} do not divide their rows: {names}")


def _arguments(paths: tuple[str, ...], model: str | None) -> tuple[str, Path]:
    """The model and the target."""
    try_this = "Try: llamagpu quantize MODEL OUT, or llamagpu quantize -m MODEL OUT"
    if len(paths) > 2:
        raise UsageError(f"{len(paths)} paths were given.", "There is one MODEL and one OUT.", try_this)
    if len(paths) == 2 and model is not None:
        raise UsageError("MODEL was given twice.", "The argument and --model mean the same.", try_this)
    if len(paths) == 1 and model is None:
        raise UsageError("MODEL or OUT is missing.", "Only one path was given.", try_this)
    return paths[0] if model is None else model, Path(paths[-1])


def _check_tokenizer(prepared: Prepared) -> None:
    """Refuse to copy a tokenizer that cannot be read or belongs to another model."""
    from llamagpu.text import Tokenizer

    source = prepared.source
    try:
        file = source.tokenizer_file()
    except ModelNotFoundError:
        return  # there is nothing to copy
    Tokenizer(file, source.tokenizer_config(), prepared.config.vocab_size)


def _check_share(prepared: Prepared, group_size: int) -> None:
    """Refuse a group size that leaves most of the weights as they are."""
    from llamagpu.model.quantize import GROUP_SIZES, quantized_share

    if group_size not in GROUP_SIZES or quantized_share(prepared, group_size) >= _LEAST_SHARE:
        return
    shares = ", ".join(f"{g}: {quantized_share(prepared, g):.0%}" for g in GROUP_SIZES)
    raise UsageError(
        f"Groups of {group_size} would quantize {quantized_share(prepared, group_size):.0%} of the weights.",
        f"Groups must divide the rows. Share of the weights by group size: {shares}.",
        "Choose another --group-size, or give --force.",
    )
