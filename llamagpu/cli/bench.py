"""``llamagpu bench``: prompt and generation speed, also as shares of the adapter's rates."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import psutil

from llamagpu.cli.options import (
    device_option,
    kv_dtype_option,
    max_memory_option,
    model_option,
    revision_option,
    shape_option,
)
from llamagpu.cli.output import note, progress_bar, write
from llamagpu.errors import UsageError

if TYPE_CHECKING:
    from llamagpu.bench import Run, Subject


def numbers(_context: Any, option: click.Parameter, value: str) -> list[int]:
    """A comma-separated list of whole numbers."""
    try:
        out = [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers such as 128,4096.") from None
    least = 1 if option.name == "batch" else 0
    if min(out) < least:
        raise click.BadParameter(f"{min(out)} is below {least}.")
    return out


@click.command()
@model_option
@revision_option
@shape_option
@click.option("-p", "--n-prompt", default="512", show_default=True, callback=numbers, help="Prompt lengths; 0 is none.")
@click.option("-n", "--n-gen", default="128", show_default=True, callback=numbers, help="New tokens; 0 is none.")
@click.option("-d", "--n-depth", default="0", show_default=True, callback=numbers, help="Tokens before the new ones.")
@click.option("-b", "--batch", default="1", show_default=True, callback=numbers, help="Sequences in a batch.")
@click.option(
    "-r", "--repetitions", type=click.IntRange(1), default=5, show_default=True, help="Repetitions of each test."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw a chart (.svg, .png, .pdf).")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["md", "csv", "json", "jsonl"]),
    default="md",
    show_default=True,
    help="Format of the results.",
)
@click.option("--dtype", default="auto", show_default=True, help="Dtypes of the weights, such as float16,int8,int4.")
@kv_dtype_option
@click.option("--context", type=int, help="Most tokens of a sequence. [default: up to 4096, or as the tests need]")
@device_option
@max_memory_option
def bench(
    model: str | None,
    shape: str | None,
    n_prompt: list[int],
    n_gen: list[int],
    n_depth: list[int],
    batch: list[int],
    repetitions: int,
    plot: Path | None,
    output: str,
    dtype: str,
    **options: Any,
) -> None:
    """Measure tokens a second of prompts (pp) and of generation (tg), in llama-bench's terms.

    Options take lists separated by commas; every combination is a test. Each result is also given as a share of the
    adapter's copy and multiply-add rates and of the model's bare matrix products, which are measured in the same run.
    """
    from llamagpu.bench import plots, report
    from llamagpu.kernels.kv_write import PAGE

    plots.check_plot(plot)
    tests: list[tuple[int, int, int, int]] = [(p, 0, 0, 1) for p in n_prompt if p]
    tests += [(0, n, d, b) for n in n_gen if n for d in n_depth for b in batch]
    if not tests:
        raise UsageError("There is nothing to measure.", "Both --n-prompt and --n-gen are 0.", "Set one of them.")
    most = max((p + 1 if p else max(d, 1) + n + b + 1) for p, n, d, b in tests)
    if options["context"] is None and most > 4096:
        options["context"] = most
    options["at_once"] = max(b * (p + 1 if p else max(d, 1) + n + b + PAGE) for p, n, d, b in tests)
    records = _measure(model, shape, dtype.split(","), tests, repetitions, options)
    if plot is not None:
        plots.bench_chart(records, plot)
    write(report.as_text(records, output))
    note(report.details(records))


def _measure(
    model: str | None,
    shape: str | None,
    dtypes: list[str],
    tests: list[tuple[int, int, int, int]],
    repetitions: int,
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    """The tests of every dtype."""
    from llamagpu.bench import measure, report
    from llamagpu.bench import yardsticks as bench_yardsticks

    records: list[dict[str, Any]] = []
    with progress_bar("", "tests") as progress:

        def show(begun: int, name: str) -> None:
            if progress is not None:
                progress(begun, len(dtypes) * len(tests), name)

        for dtype in dtypes:
            show(len(records), f"loading, {dtype}")
            with measure.open_subject(model, shape, dtype=dtype, **options) as subject:
                for p, n, d, b in tests:  # refuse a test before any runs
                    measure.check_fits(subject, p or max(d, 1) + n + b, b)
                subject.generate([subject.prompt(8)], 1)
                first = None if records else time.time() - psutil.Process().create_time()
                show(len(records), "the adapter's yardsticks")
                sticks = bench_yardsticks(subject.device)
                for test in tests:
                    show(len(records) + 1, f"{measure.test_name(*test)}, {dtype}")
                    records.append(report.record(subject, _one(subject, test, repetitions), sticks, first))
    return records


def _one(subject: Subject, test: tuple[int, int, int, int], repetitions: int) -> Run:
    from llamagpu.bench import measure

    prompt, gen, depth, batch = test
    if prompt:
        return measure.run_prompt(subject, prompt, repetitions)
    return measure.run_generation(subject, gen, depth, batch, repetitions)
