"""``llamagpu embed``: vectors of texts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from llamagpu.cli.jobs import job_options, run_job, take_job_options, texts_or_lines
from llamagpu.cli.options import encoder_load_options, encoder_options, json_option
from llamagpu.cli.output import load_with_progress, write
from llamagpu.errors import UsageError

if TYPE_CHECKING:
    from llamagpu.engine import Embedder
    from llamagpu.jobs import Embedding, Input

_HINT = "Give texts, standard input or --input.", 'Try: llamagpu embed -m MODEL "A cat."'


@click.command()
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@encoder_options
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls", "max", "last", "weightedmean", "mean_sqrt_len"]),
    help="How token vectors become one. [default: the model's own]",
)
@click.option("--prompt-name", help="Put this prompt of the model before every text.")
@click.option("--prompt", help="Put this text before every text.")
@click.option("--normalize", is_flag=True, help="Give every vector the length 1.")
@click.option("--truncate-dim", type=click.IntRange(1), help="Keep the first elements of every vector (Matryoshka).")
@click.option(
    "--precision",
    type=click.Choice(["float32", "int8", "binary"]),
    default="float32",
    show_default=True,
    help="int8 is 127 times the normalized vector; binary packs the signs into bytes.",
)
@click.option(
    "--too-long",
    type=click.Choice(["cut", "error"]),
    default="cut",
    show_default=True,
    help="Cut texts of too many tokens, or treat them as bad rows.",
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Texts that are tokenized together."
)
@job_options("texts. [default: text]", ".npy, .jsonl, .parquet, or -. [default: -]")
@json_option
def embed(texts: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Print the vector of every TEXT, or of every line of standard input, as a line of JSON.

    With --input, embed every text of a data set. A job that was stopped or killed continues where it ended. An --output
    that ends with .npy is an array with a row for every text.
    """
    load = encoder_load_options(options)
    load |= {"max_seq_length": load.pop("max_length"), "pooling": options.pop("pooling")}
    if texts and options["input"] is not None:
        raise UsageError("--input and texts exclude one another.", "The data set holds the texts.")
    job = take_job_options(options, lambda: texts_or_lines(texts, UsageError("No text was given.", *_HINT)))
    assert job is not None
    load["isolate"] = isinstance(job.input, str)  # a long job survives its driver

    def open_embedder() -> Embedder:
        from llamagpu.engine import Embedder

        return load_with_progress(Embedder, load)

    def make(embedder: Embedder) -> Embedding:
        from llamagpu.jobs import Embedding

        return Embedding(embedder, job.column or "text", **options)

    if not as_json:
        return run_job(job, open_embedder, make, arrays=True)
    if isinstance(job.input, str) or job.output != "-":
        raise UsageError("--json excludes --input and --output.", "It prints one JSON object.")
    with open_embedder() as embedder:
        _print(embedder, make(embedder), job.input, job.errors)
    return 0


def _print(embedder: Embedder, job: Embedding, source: Input, errors: str) -> None:
    """One JSON object with all texts and vectors."""
    from llamagpu.jobs import results

    rows = [
        {"text": row.values[job.inputs[0]] if isinstance(row.values, dict) else None}
        | {name: value.tolist() if hasattr(value, "tolist") else value for name, value in values.items()}
        for row, values in results(job, source, errors)
    ]
    facts = {"model": embedder.name, "adapter": str(embedder.device.adapter), "columns": dict(job.columns)}
    write(json.dumps(facts | {"results": rows}, ensure_ascii=False) + "\n")
