"""``llamagpu rank``: documents by their score for a query."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from llamagpu.cli.jobs import JobOptions, job_options, row_progress, run_job, take_job_options, texts_or_lines
from llamagpu.cli.options import encoder_load_options, encoder_options, json_option
from llamagpu.cli.output import load_with_progress, note, write, write_json
from llamagpu.errors import UsageError

if TYPE_CHECKING:
    from llamagpu.engine import CrossEncoder
    from llamagpu.jobs import Input, Ranking


@click.command()
@click.argument("query", required=False)
@click.argument("documents", metavar="[DOCUMENT]...", nargs=-1)
@encoder_options
@click.option("-k", "--top-k", type=click.IntRange(1), help="Print only the best documents. [default: all]")
@click.option(
    "--activation",
    type=click.Choice(["auto", "sigmoid", "identity"]),
    default="auto",
    show_default=True,
    help="What follows the model's last layer; auto is the model's own.",
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Pairs that are tokenized together."
)
@job_options(
    "documents. [default: document]",
    "their scores, in the order of the rows: .jsonl, .parquet, or -. [default: print the best first]",
)
@json_option
def rank(query: str | None, documents: tuple[str, ...], top_k: int | None, as_json: bool, **options: Any) -> int:
    """Print rank, score and text of every DOCUMENT, or of every line of standard input, the best for QUERY first.

    With --input, rank the documents of a data set. With --output, write the score of every row instead; a job that was
    stopped or killed continues where it ended. Without QUERY, every row has a query of its own, in its column query.
    """
    load = encoder_load_options(options)
    if documents and options["input"] is not None:
        raise UsageError("--input and documents exclude one another.", "The data set holds the documents.")
    if query is None and options["input"] is None:
        raise UsageError("No query was given.", "", 'Try: llamagpu rank -m MODEL "a query" "a document"')
    prints = query is not None and options["output"] is None
    if not prints and (top_k or as_json):
        raise UsageError("--top-k and --json need a QUERY and exclude --output.", "A job writes all scores.")
    missing = UsageError("No document was given.", "Give documents, standard input or --input.")
    job = take_job_options(options, lambda: texts_or_lines(documents, missing))
    assert job is not None
    load["isolate"] = isinstance(job.input, str)  # a long job survives its driver

    def open_encoder() -> CrossEncoder:
        from llamagpu.engine import CrossEncoder

        return load_with_progress(CrossEncoder, load)

    def make(encoder: CrossEncoder) -> Ranking:
        from llamagpu.jobs import Ranking

        return Ranking(encoder, query, job.column or "document", **options)

    if not prints:
        return run_job(job, open_encoder, make)
    from llamagpu.jobs import open_input

    source = open_input(job.input)
    with open_encoder() as encoder:
        facts = {"query": query, "model": encoder.name, "adapter": str(encoder.device.adapter)}
        _print(_best(make(encoder), source, job, top_k), facts if as_json else None)
    return 0


def _print(best: list[dict[str, Any]], facts: dict[str, Any] | None) -> None:
    """A line for every document, or one JSON object with ``facts``."""
    if facts is not None:
        write_json(facts | {"documents": best})
    else:
        write("".join(f"{d['rank']}\t{d['score']:.6f}\t{' '.join(d['document'].split())}\n" for d in best))


def _best(ranking: Ranking, source: Input, job: JobOptions, top_k: int | None) -> list[dict[str, Any]]:
    """Rank, score, row and text of the best documents; equal scores keep the order of the rows."""
    from llamagpu.jobs import results

    failed = 0
    _, total = source.scan(ranking)

    def scored() -> Iterator[tuple[float, int, str]]:
        nonlocal failed
        with row_progress() as progress:
            for row, values in results(ranking, source, job.errors):
                progress(row.number, total)
                if isinstance(row.values, dict) and "score" in values:
                    yield values["score"], row.number, row.values[ranking.inputs[0]]
                else:
                    failed += 1

    found = scored()
    order = sorted(found, key=_order) if top_k is None else heapq.nsmallest(top_k, found, key=_order)
    if failed:
        note(f"{failed:,} rows have no score")
    return [
        {"rank": place, "score": score, "row": row, "document": text}
        for place, (score, row, text) in enumerate(order, start=1)
    ]


def _order(found: tuple[float, int, str]) -> tuple[float, int]:
    return -found[0], found[1]
