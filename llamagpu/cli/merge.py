"""``llamagpu merge``: write a copy of a model with a LoRA adapter merged into its weights."""

from __future__ import annotations

from pathlib import Path

import click

from llamagpu.cli.options import json_option, revision_option
from llamagpu.cli.output import note, progress_bar, write_json


@click.command()
@click.argument("model")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--scale", type=float, default=1.0, show_default=True, help="A factor of the adapter's change.")
@revision_option
@json_option
def merge(model: str, adapter: Path, out: Path, scale: float, revision: str | None, as_json: bool) -> None:
    """Write MODEL (a directory or a hub id) with the LoRA ADAPTER merged into it to the new directory OUT.

    ADAPTER is a directory that PEFT wrote, or a GGUF file. The weights keep their dtype.
    """
    from llamagpu.engine.params import adapter_params
    from llamagpu.model import find_model, prepare
    from llamagpu.model.merge import merge_checkpoint

    _, factor = adapter_params(None, scale)
    prepared = prepare(find_model(model, revision))
    with progress_bar("writing") as progress:
        merged = merge_checkpoint(prepared, adapter, out, factor, progress)
    if as_json:
        write_json({"path": str(out), "bytes": merged.nbytes, "changed": merged.changed})
        return
    note(f"{out}: {merged.nbytes / 1e6:,.1f} MB, {merged.changed} matrices changed")
