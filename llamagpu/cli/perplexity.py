"""``llamagpu perplexity``: how well a model predicts a text, and how far it is from another model."""

from __future__ import annotations

import codecs
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamagpu.cli.options import json_option, load_options, model_options
from llamagpu.cli.output import note, open_model, progress_bar, write, write_json
from llamagpu.errors import OutOfMemoryError, UsageError

if TYPE_CHECKING:
    from llamagpu.engine import LLM
    from llamagpu.engine.perplexity import Comparison, Perplexity


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
@click.option("--against", metavar="MODEL", help="Compare the predictions with those of this directory or hub id.")
@click.option("--against-dtype", metavar="DTYPE", help="Dtype of --against, or of the same model without it.")
@json_option
def perplexity(
    file: Path,
    window: int | None,
    stride: int | None,
    most: int | None,
    against: str | None,
    against_dtype: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the perplexity of a model on the text in FILE (- is standard input), in overlapping windows.

    Every token but the first is predicted once: in the first window all, in later ones the new ones. ± is the standard
    error. With --against or --against-dtype, the result also compares the predictions with those of another model that
    has the same vocabulary, or of the same model in another dtype: KL divergence, agreement, ratio of the perplexities.
    """
    text = _read(file, most)
    load = load_options(options)
    other = _other(load, against, against_dtype)
    with ExitStack() as stack:
        llm = stack.enter_context(open_model(dict(load)))
        base = None if other is None else stack.enter_context(_open_beside(llm, other))
        from llamagpu.engine import perplexity as measure

        ids = llm.tokenize(text)
        with progress_bar("measuring", "tokens") as progress:
            if base is None:
                found = measure.perplexity(llm, ids, window=window, stride=stride, progress=progress)
                compared: tuple[str, dict[str, Any]] = "", {}
            else:
                both = measure.compare(llm, base, ids, window=window, stride=stride, progress=progress)
                found, compared = both.model, (_lines(base, both), _comparison_record(base, both))
        _print(llm, found, compared, as_json)


def _other(load: dict[str, Any], against: str | None, dtype: str | None) -> dict[str, Any] | None:
    """The load options of the model to compare with, or None. Checks the vocabularies before anything is loaded."""
    if against is None:
        return None if dtype is None else load | {"dtype": dtype}
    from llamagpu.engine.perplexity import check_same_vocabulary
    from llamagpu.model import find_model, prepare

    check_same_vocabulary(prepare(find_model(load["model"], load["revision"])), prepare(find_model(against)))
    return load | {"model": against, "revision": None, "dtype": dtype or "auto"}


def _open_beside(llm: LLM, options: dict[str, Any]) -> LLM:
    """Load the model to compare with on the first one's device."""
    try:
        return open_model(options | {"device": llm.device})
    except OutOfMemoryError as e:
        held = f"{llm.name} takes {llm.sizes.total / 1e6:,.1f} MB."
        raise OutOfMemoryError("The two models do not fit at once.", f"{held} {e.what}", e.hint) from None


def _print(llm: LLM, found: Perplexity, compared: tuple[str, dict[str, Any]], as_json: bool) -> None:
    """Print the perplexity, and the lines or the record of a comparison."""
    lines, record = compared
    if as_json:
        write_json(_record(llm, found) | record)
        return
    write(f"PPL = {_shown(found.perplexity, found.error)}\n{lines}")
    note(
        f"{found.nats_per_token:.5f} nats/token over {found.tokens} tokens, window {found.window}, stride "
        f"{found.stride} · weights {llm.sizes.weights / 1e6:.2f} MB · {llm.device.adapter}"
    )


def _shown(value: float, error: float | None, digits: int = 4) -> str:
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _lines(base: LLM, found: Comparison) -> str:
    percent = [None if e is None else 100 * e for e in (found.same_top_error, found.rms_change_error)]
    return (
        f"PPL of {base.name} ({base.sizes.weights / 1e6:.2f} MB) = {_shown(found.base.perplexity, found.base.error)}\n"
        f"PPL ratio = {_shown(found.perplexity_ratio, found.perplexity_ratio_error, 5)}\n"
        f"KL divergence = {_shown(found.mean_kl, found.mean_kl_error, 6)} "
        f"(99 %: {found.kl_99:.6f}, 99.9 %: {found.kl_999:.6f}, maximum: {found.max_kl:.6f})\n"
        f"same most likely token = {_shown(100 * found.same_top, percent[0], 2)} %\n"
        f"RMS change of the right token's probability = {_shown(100 * found.rms_change, percent[1], 3)} %\n"
    )


def _record(llm: LLM, found: Perplexity) -> dict[str, Any]:
    return asdict(found) | {"model": llm.name, "weight_bytes": llm.sizes.weights, "memory": asdict(llm.memory)}


def _comparison_record(base: LLM, found: Comparison) -> dict[str, Any]:
    rest = {k: v for k, v in asdict(found).items() if k not in ("model", "base")}
    return {"against": _record(base, found.base)} | rest


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
