"""``llamagpu tune``: measure the kernel variants on this adapter and keep the fastest."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict

import click

from llamagpu.cli.options import device_option, dtype_option, json_option, model_option, revision_option
from llamagpu.cli.output import note, write, write_json
from llamagpu.errors import LlamaGPUError


@click.command()
@model_option
@revision_option
@click.option("--shape", help="Use the matrices of smollm2-135m, tinyllama-1.1b, llama-3.2-1b or llama-3.2-3b.")
@dtype_option
@device_option
@json_option
def tune(model: str | None, revision: str | None, shape: str | None, dtype: str, device: str, as_json: bool) -> None:
    """Measure the kernel variants on this adapter for a model's matrices, and use the fastest in all later runs.

    The choice is stored in the user's cache directory, or in LLAMAGPU_CACHE, for this adapter, driver and version.
    LLAMAGPU_TUNING=built-in ignores it.
    """
    from llamagpu import gpu
    from llamagpu.model import prepare_model
    from llamagpu.model.tuner import difference
    from llamagpu.model.tuner import tune as measure

    prepared = prepare_model(model, shape, dtype, revision)
    path = gpu.tuning_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as e:  # before anything is measured
        hint = "Set LLAMAGPU_CACHE to another directory."
        raise LlamaGPUError(f"The tuning cannot be kept in {path}.", str(e), hint) from None
    start = time.perf_counter()
    with gpu.open(device) as opened:
        built_in = gpu.default_tuning(opened.adapter.kind, opened.features, opened.subgroup_size)
        chosen = measure(opened, prepared.layout, note if sys.stderr.isatty() else None)
        gpu.store_tuning(opened.adapter, chosen)
        adapter = str(opened.adapter)
    seconds = time.perf_counter() - start
    if as_json:
        write_json({"gpu_info": adapter, "tuning": asdict(chosen), "took_s": seconds, "kept_in": str(path)})
        return
    changed = f"changed choices: {difference(chosen, [built_in])}"
    write((changed if chosen != built_in else "the built-in choices are the fastest") + "\n")
    note(f"{adapter} · {seconds:.1f} s · kept in {path}")
