"""``llamagpu profile``: the GPU time of each kernel in a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from llamagpu.cli.options import (
    device_option,
    dtype_option,
    json_option,
    kv_dtype_option,
    max_memory_option,
    model_option,
    revision_option,
    shape_option,
)
from llamagpu.cli.output import note, write, write_json
from llamagpu.errors import UsageError


@click.command()
@model_option
@revision_option
@shape_option
@click.option("-d", "--n-depth", type=click.IntRange(0), default=128, show_default=True, help="Tokens before the step.")
@click.option("-b", "--batch", type=click.IntRange(1, 32), default=1, show_default=True, help="Sequences in the batch.")
@click.option("-p", "--n-prompt", type=click.IntRange(1), help="Profile a prompt of this many tokens instead.")
@click.option("-r", "--repetitions", type=click.IntRange(1), default=5, show_default=True, help="Runs to average.")
@click.option("--trace", type=click.Path(path_type=Path), help="Write a trace file for Chrome's viewer or Perfetto.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw a roofline, shares and a timeline: .svg, .png or .pdf."
)
@dtype_option
@kv_dtype_option
@click.option("--context", type=int, help="Most tokens of a sequence. [default: up to 4096, or as the profile needs]")
@device_option
@max_memory_option
@json_option
def profile(
    model: str | None,
    shape: str | None,
    n_depth: int,
    batch: int,
    n_prompt: int | None,
    repetitions: int,
    trace: Path | None,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show the GPU time of every kernel in a decode step (with -p, in a prompt), from timestamp queries."""
    from llamagpu.bench import measure, plots
    from llamagpu.bench import profile as profiling
    from llamagpu.bench import yardsticks as bench_yardsticks

    plots.check_plot(plot)
    if trace is not None and not trace.parent.is_dir():
        raise UsageError(f"There is no directory {trace.parent} for the trace.", "", "Make it first.")
    if options["context"] is None and n_depth >= 4096:
        options["context"] = n_depth + 1
    with measure.open_subject(model, shape, **options) as subject:
        sticks = bench_yardsticks(subject.device)
        if n_prompt is None:
            found = profiling.profile_step(subject, n_depth, batch, repetitions)
        else:
            found = profiling.profile_prompt(subject, n_prompt, repetitions)
        adapter = str(subject.device.adapter)
    if trace is not None:
        trace.write_text(json.dumps(profiling.trace(found)), encoding="utf-8")
    if plot is not None:
        plots.profile_chart(found, sticks, plot)
    if as_json:
        write_json(profiling.record(found, sticks, adapter))
    else:
        write(profiling.table(found, sticks))
        note(profiling.details(found, sticks, adapter))
