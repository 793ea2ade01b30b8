"""``llamagpu quantize``: write a quantised copy of a model."""

from __future__ import annotations

from pathlib import Path

import click

from llamagpu.cli.output import note, progress_bar, write_json


@click.command()
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--bits", type=int, default=8, show_default=True, help="4 or 8.")
@click.option(
    "--group-size", type=int, default=64, show_default=True, help="Weights that share a scale: 32, 64 or 128."
)
@click.option("--revision", help="The hub id's revision.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def quantize(model: str, out: Path, bits: int, group_size: int, revision: str | None, as_json: bool) -> None:
    """Quantise MODEL (a directory or a hub id) into the new directory OUT, in MLX's layout."""
    from llamagpu.model import find_model, prepare
    from llamagpu.model.quantize import quantize_checkpoint

    prepared = prepare(find_model(model, revision))
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
        note(f"not quantised, as {group_size} does not divide their rows: {', '.join(written.unquantized)}")
