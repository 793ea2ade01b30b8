"""``llamagpu perplexity``: how well a model predicts a text."""

from __future__ import annotations

import codecs
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from llamagpu.cli.options import json_option, load_options, model_options
from llamagpu.cli.output import note, open_model, progress_bar, write, write_json
from llamagpu.errors import UsageError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@model_options
@click.option(
    "--window", type=click.IntRange(2), help="Tokens that the model sees at a time. [default: 512, or the context]"
)
@click.option(
    "--stride", type=click.IntRange(1), help="Tokens from a window's start to the next. [default: half a window]"
)
@click.option("--bytes", "most", type=int, help="Read only this many bytes of the text.")
@json_option
def perplexity(
    file: Path, window: int | None, stride: int | None, most: int | None, as_json: bool, **options: Any
) -> None:
    """Measure the perplexity of a model on the text in FILE (- is standard input), in overlapping windows."""
    text = _read(file, most)
    with open_model(load_options(options)) as llm:
        from llamagpu.engine.perplexity import perplexity as measure

        window = min(512, llm.context) if window is None else window
        stride = max(1, window // 2) if stride is None else stride
        with progress_bar("measuring", "tokens") as progress:
            found = measure(llm, llm.tokenize(text), window=window, stride=stride, progress=progress)
        sizes = llm.sizes
        if as_json:
            write_json(asdict(found) | {"model": llm.name, "weight_bytes": sizes.weights})
            return
        write(f"{found.perplexity:.4f}\n")
        note(
            f"{found.nats_per_token:.5f} nats/token over {found.tokens} tokens, window {window}, stride {stride} · "
            f"weights {sizes.weights / 1e6:.2f} MB · {llm.device.adapter}"
        )


def _read(file: Path, most: int | None) -> str:
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as e:
        raise UsageError(f"The text file {file} cannot be read.", e.strerror or str(e)) from None
    if most is not None and most < 1:
        raise UsageError(f"--bytes is {most}.", "It must be at least 1.")
    try:
        decoder = codecs.getincrementaldecoder("utf-8")()
        return decoder.decode(data[:most], final=most is None or most >= len(data))  # a cut may split a character
    except UnicodeDecodeError as e:
        raise UsageError("The text is not UTF-8.", str(e), "Convert it, for example with iconv.") from None
