"""The options that commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from llamagpu.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

model_option = click.option(
    "-m", "--model", help="A model directory, GGUF file or hub id. [default: the bundled model]"
)
revision_option = click.option("--revision", help="Branch, tag or commit of the hub model. [default: main]")
shape_option = click.option(
    "--shape", help="Random weights instead: smollm2-135m, tinyllama-1.1b, llama-3.2-1b or llama-3.2-3b."
)
device_option = click.option(
    "--device",
    default="auto",
    show_default="LLAMAGPU_DEVICE, or auto",
    help="Adapter: number, kind, backend or name. auto takes a discrete GPU before an integrated one before a software "
    "adapter, of those that can hold the model.",
)


def _bytes(_context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    from llamagpu.gpu import parse_bytes

    return parse_bytes(value, option.opts[0])


max_memory_option = click.option(
    "--max-memory", metavar="SIZE", callback=_bytes, help="Most memory to take on the adapter, such as 4GB or 512MB."
)
dtype_option = click.option(
    "--dtype",
    default="auto",
    show_default=True,
    help="Dtype of the weights: auto, float32, float16, bfloat16, int8 or int4.",
)
kv_dtype_option = click.option(
    "--kv-dtype", default="auto", show_default=True, help="Dtype of the KV cache: auto, float32 or float16."
)
speculate_option = click.option(
    "--speculate",
    metavar="DRAFT",
    help="Guess tokens ahead and verify them together, which changes no token. DRAFT is prompt (look-up in the text so "
    "far) or a smaller model of the same vocabulary.",
)


def _adapters(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """The paths of adapters by name. Without a name, an adapter has that of its folder or file."""
    from llamagpu.errors import UsageError

    out: dict[str, str] = {}
    for value in values:
        name, given, path = value.partition("=")
        if not given or "/" in name or "\\" in name:  # the sign belongs to a path
            name, path = Path(value).resolve().stem if value.endswith(".gguf") else Path(value).resolve().name, value
        if name in out:
            raise UsageError(f"Two adapters have the name {name}.", "", "Give others: --adapter NAME=PATH.")
        out[name] = path
    return out


def adapter_option(use: str) -> Callable[[F], F]:
    """The option of LoRA adapters; ``use`` says which of them is used."""
    return click.option(
        "--adapter",
        "adapters",
        metavar="[NAME=]PATH",
        multiple=True,
        callback=_adapters,
        help=f"A LoRA adapter: a directory that PEFT wrote, or a GGUF file; can be given several times. {use}",
    )


adapter_scale_option = click.option(
    "--adapter-scale", type=float, default=1.0, show_default=True, help="A factor of the adapter's change."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def model_options(command: F) -> F:
    """The options of every command that loads a model."""
    context = click.option("--context", type=int, help="Most tokens of prompt and text together. [default: up to 4096]")
    options = (model_option, revision_option, device_option, max_memory_option, dtype_option, kv_dtype_option, context)
    for option in reversed(options):
        command = option(command)
    return command


def encoder_options(command: F) -> F:
    """The options of commands that load an encoder."""
    model = click.option("-m", "--model", required=True, help="A directory of an encoder, or a hub id.")
    most = click.option(
        "--max-length",
        type=click.IntRange(3),
        help="Most tokens of a text, with special ones. [default: the model's]",
    )
    for option in (most, dtype_option, device_option, revision_option, model):
        command = option(command)
    return command


def encoder_load_options(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of ``encoder_options`` from a command's options, and return them."""
    return {k: options.pop(k) for k in ("model", "revision", "device", "dtype", "max_length")}


def shape_options(command: F) -> F:
    """The options that say what a text must look like; ``take_shape`` reads them."""
    path = click.Path(path_type=Path)
    options = (
        click.option("--schema", type=path, help="Write JSON that is valid by the JSON schema in this file."),
        click.option("--json-object", is_flag=True, help="Write a JSON object."),
        click.option("--regex", help="Write a text that matches this regular expression."),
        click.option("--choice", multiple=True, help="Write one of these texts; given several times."),
        click.option("--grammar", type=path, help="Write a text of the grammar (Lark) in this file."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def take_shape(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of ``shape_options`` from a command's options, and return those of generation.

    Raises:
        UsageError: a file cannot be read.
    """
    schema, grammar, choices = options.pop("schema"), options.pop("grammar"), options.pop("choice")
    given = {
        "json_schema": None if schema is None else read_text(schema, "schema"),
        "json_object": options.pop("json_object") or None,
        "regex": options.pop("regex"),
        "choices": list(choices) or None,
        "grammar": None if grammar is None else read_text(grammar, "grammar"),
    }
    return {name: value for name, value in given.items() if value is not None}


def read_text(file: Path, kind: str) -> str:
    """The text of a file that an option names.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise UsageError(f"The {kind} {file} cannot be read.", why, "Give the path of a text file in UTF-8.") from None


def load_options(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of loading from a command's options, and return them."""
    names = ("model", "revision", "device", "max_memory", "dtype", "kv_dtype", "context", "speculate", "adapters")
    return {k: options.pop(k) for k in names if k in options}


def choose_adapter(load: Mapping[str, Any], options: dict[str, Any]) -> None:
    """Use the first adapter of the options of loading in those of generation.

    Raises:
        UsageError: there is a scale, but no adapter.
    """
    if not load["adapters"] and options["adapter_scale"] != 1:
        raise UsageError("--adapter-scale needs an adapter.", "None is loaded.", "Give one: --adapter PATH.")
    options["adapter"] = next(iter(load["adapters"]), None)
