"""``llamagpu generate``: continue a text."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamagpu.cli.jobs import job_options, run_job, take_job_options
from llamagpu.cli.options import (
    adapter_option,
    adapter_scale_option,
    choose_adapter,
    load_options,
    model_options,
    shape_options,
    speculate_option,
    take_shape,
)
from llamagpu.cli.output import (
    Interrupted,
    note,
    open_model,
    progress_bar,
    write,
    write_json,
)
from llamagpu.cli.prompt_cache import check_prompt_cache, prompt_cache, prompt_cache_option
from llamagpu.errors import UsageError

if TYPE_CHECKING:
    from llamagpu.engine import LLM, Result, Stream

_LONG_PROMPT = 512  # tokens, one chunk of the engine; longer prompts show progress
_UNTIL_FULL = 2**31 - 1  # more tokens than any context has


@click.command()
@click.argument("text", metavar="[PROMPT]", required=False)
@click.option("-p", "--prompt", help="The prompt, instead of the argument.")
@click.option("-f", "--file", type=click.Path(path_type=Path), help="Read the prompt from a file; - is standard input.")
@model_options
@speculate_option
@adapter_option("The first is used; rows of --input may name others.")
@adapter_scale_option
@click.option(
    "-n", "--max-tokens", type=int, default=256, show_default=True, help="Most new tokens; -1 is as many as fit."
)
@click.option(
    "-t", "--temperature", type=float, default=0.0, show_default=True, help="0 always takes the likeliest token."
)
@click.option("--top-k", type=int, default=0, show_default=True, help="Draw from the k likeliest tokens; 0 is all.")
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Draw from the likeliest tokens whose probabilities add up to p.",
)
@click.option(
    "--min-p", type=float, default=0.0, show_default=True, help="Drop tokens below this share of the likeliest one."
)
@click.option(
    "--repetition-penalty",
    type=float,
    default=1.0,
    show_default=True,
    help="Penalty for tokens in prompt or text; 1 is none.",
)
@click.option(
    "--presence-penalty", type=float, default=0.0, show_default=True, help="Penalty for tokens already in the text."
)
@click.option(
    "--frequency-penalty", type=float, default=0.0, show_default=True, help="The same, once for each occurrence."
)
@click.option("--seed", type=int, help="Seed of the draws, to repeat a text. [default: random; with --input: 0]")
@click.option("--stop", multiple=True, help="End before this text; can be given several times.")
@click.option("--ignore-eos", is_flag=True, help="Continue when the model ends its text.")
@shape_options
@click.option("--echo", is_flag=True, help="Print the prompt before the text.")
@prompt_cache_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of the text.")
@job_options("prompts or messages. [default: prompt, or else messages]")
def generate(text: str | None, prompt: str | None, file: Path | None, echo: bool, as_json: bool, **options: Any) -> int:
    """Continue PROMPT and print the new text as it comes.

    Without PROMPT, or if it is -, the prompt is read from standard input. The last line break of a file or of standard
    input is removed. Statistics go to standard error.

    With --input, continue every prompt of a data set. A job that was stopped or killed continues where it ended.
    """
    job = take_job_options(options)
    kept = options.pop("prompt_cache")
    given = {"a prompt": text or prompt, "--file": file, "--echo": echo, "--json": as_json, "--prompt-cache": kept}
    load = load_options(options)
    options |= take_shape(options)
    choose_adapter(load, options)
    check_prompt_cache(kept)
    if options["max_tokens"] == -1:
        options["max_tokens"] = _UNTIL_FULL
    if job is not None:
        job.refuse(given)
        _validate(options)
        from llamagpu.jobs import Generation

        load["isolate"] = True  # a long job survives its driver
        return run_job(job, lambda: open_model(load), lambda llm: Generation(llm, job.column, **options))
    if echo and as_json:
        raise UsageError("--echo and --json exclude one another.", "The JSON object holds the new text alone.")
    source = _prompt(text, prompt, file)
    _validate(options)
    with open_model(load) as llm, prompt_cache(llm, kept):
        _print(llm, source, options, echo, as_json)
    return 0


def _print(llm: LLM, source: str, options: dict[str, Any], echo: bool, as_json: bool) -> None:
    """Generate one text and print it."""
    stream = llm.stream(source, **options)
    try:
        with _prompt_progress(stream):
            first = next(stream, "")
        if as_json:
            facts = {"model": llm.name, "adapter": str(llm.device.adapter), "memory": asdict(llm.memory)}
            write_json(stream.result.as_dict() | facts)
            return
        write(source + first if echo else first)
        for piece in stream:
            write(piece)
        write("" if stream.result.text.endswith("\n") else "\n")
        note(_statistics(stream.result, llm))
    except KeyboardInterrupt:
        write("\n")  # leave the terminal at the start of a line
        raise Interrupted from None
    finally:
        stream.close()


def _validate(options: dict[str, Any]) -> None:
    """Refuse bad values before a model is loaded."""
    from llamagpu.engine.params import sampling_params

    sampling_params(**options)


@contextmanager
def _prompt_progress(stream: Stream) -> Iterator[None]:
    """Show the progress of a long prompt until the block ends."""
    if stream.prompt_tokens[1] <= _LONG_PROMPT:
        yield
        return
    with progress_bar("prompt", "tokens") as show:
        ended = threading.Event()

        def follow() -> None:
            while show is not None:
                show(*stream.prompt_tokens)
                if ended.wait(0.1):
                    return

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _prompt(text: str | None, prompt: str | None, file: Path | None) -> str:
    given = sum(x is not None for x in (text, prompt, file))
    hint = "Give one: an argument, --prompt, --file or standard input.", 'Try: llamagpu generate "Once upon a time"'
    if given > 1:
        raise UsageError("More than one prompt was given.", *hint)
    words = prompt if text in (None, "-") else text
    if words is not None:
        data = words.encode("utf-8", "surrogateescape")
    else:
        data = b"" if not given and sys.stdin.isatty() else _read(file)
    if not given and not data:
        raise UsageError("No prompt was given.", *hint)
    try:
        source = data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UsageError("The prompt is not UTF-8 text.", str(e), "Convert it, for example with iconv.") from None
    if not source:
        raise UsageError("The prompt is empty.", "There is nothing to continue.", "Give at least one character.")
    return source


def _read(file: Path | None) -> bytes:
    """A file, or standard input, without the line break that editors and echo put at the end."""
    try:
        data = sys.stdin.buffer.read() if file is None or str(file) == "-" else file.read_bytes()
    except OSError as e:
        raise UsageError(f"The prompt file {file or '-'} cannot be read.", e.strerror or str(e)) from None
    return data[:-2] if data.endswith(b"\r\n") else data.removesuffix(b"\n")


def _statistics(result: Result, llm: LLM) -> str:
    t, made = result.timings, result.completion_tokens
    rate = f", {(made - 1) / t.decode_s:.1f} tokens/s" if made > 1 and t.decode_s else ""
    reason = "the context is full" if result.context_full else result.finish_reason
    seed = "" if result.seed is None else f" · seed {result.seed}"
    cached = f" ({result.cached_tokens} cached)" if result.cached_tokens else ""
    prompt = f"prompt {result.prompt_tokens} tokens{cached} in {t.prefill_s:.2f} s"
    return f"{prompt} · {made} tokens{rate} · {reason}{seed} · {llm.device.adapter}"
