"""``llamagpu inspect``: a model's config and memory needs, from its headers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llamagpu.cli.options import (
    device_option,
    dtype_option,
    json_option,
    kv_dtype_option,
    max_memory_option,
    revision_option,
)
from llamagpu.cli.output import write, write_json
from llamagpu.errors import UsageError

if TYPE_CHECKING:
    from llamagpu.model.fit import Load


@click.command()
@click.argument("named", metavar="[MODEL]", required=False)
@click.option(
    "-m", "--model", help="A directory, GGUF file or hub id, instead of the argument. [default: the bundled model]"
)
@revision_option
@device_option
@max_memory_option
@dtype_option
@kv_dtype_option
@click.option("--context", type=int, help="Most tokens of a sequence, or of an encoder's text.")
@click.option("--batch", type=click.IntRange(1), default=1, help="Whole contexts that the cache holds at once.")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@json_option
def inspect(
    named: str | None,
    model: str | None,
    revision: str | None,
    device: str,
    max_memory: int | None,
    context: int | None,
    batch: int,
    tensors: bool,
    as_json: bool,
    **dtypes: str,
) -> None:
    """Show MODEL's architecture, parameters and tensors, and the memory it needs by dtype and context.

    MODEL is a directory, a GGUF file or a hub id. The needs are compared with the adapter's memory. Only headers are
    read or downloaded. The estimate is what the ledger will show for --dtype, --kv-dtype, --context and --batch.
    """
    from llamagpu.model import check_dtypes
    from llamagpu.model.fit import Load

    if named is not None and model is not None:
        raise UsageError("MODEL was given twice.", "The argument and --model mean the same.", "Leave one of them out.")
    if batch > 1 and context is None:
        raise UsageError("--batch needs --context.", "It counts whole contexts.")
    dtype, kv_dtype = check_dtypes(dtypes["dtype"], dtypes["kv_dtype"])
    load = Load(device, max_memory, dtype, kv_dtype, context, at_once=batch * (context or 0))
    report = _report(model if named is None else named, revision, load)
    if not tensors:
        report.pop("tensor_list")
    if as_json:
        write_json(report)
    else:
        write(_describe(report))


def _report(model: str | None, revision: str | None, load: Load) -> dict[str, Any]:
    from llamagpu import gpu
    from llamagpu.errors import NoAdapterError
    from llamagpu.model.inspect import inspect_model

    try:
        with gpu.open(load.device, memory_limit=load.max_memory) as opened:
            return inspect_model(model, revision, opened, load)
    except NoAdapterError:
        if load.device != "auto":
            raise
        return inspect_model(model, revision, None, load)


def _describe(report: dict[str, Any]) -> str:
    c, encoder = report["config"], "layers" not in report["config"]
    heads = "" if encoder else f" over {c['num_key_value_heads']} of {c['head_dim']}"
    tied = "" if encoder or not c["tie_word_embeddings"] else ", tied head"
    most = c["positions"] if encoder else f"{c['max_position_embeddings']}{_describe_layers(c['layers'])}"
    lines = [
        f"{report['model']}: {c['model_type']}, {report['parameters']:,} parameters in {report['tensors']} tensors "
        f"({', '.join(report['stored'])})",
        f"  {c['num_hidden_layers']} layers, hidden {c['hidden_size']}, intermediate {c['intermediate_size']}, "
        f"{c['num_attention_heads']} heads{heads}, vocabulary {c['vocab_size']}{tied}",
        f"  {'texts of' if encoder else 'context'} up to {most}",
        "memory in MB, weights by dtype:",
    ]
    lines += [f"  {dtype:9} {size / 1e6:12,.1f}" for dtype, size in report["weight_bytes"].items()]
    if report["contexts"]:
        lines.append("cache and activations by context:")
    for row in report["contexts"]:
        kv = f"{row['kv_bytes']['float32'] / 1e6:,.1f} (float32) or {row['kv_bytes']['float16'] / 1e6:,.1f} (float16)"
        lines.append(f"  {row['context']:9,} {kv}, activations {row['activation_bytes'] / 1e6:,.1f}")
    lines += _describe_adapter(report["adapter"]) + _describe_estimate(report)
    lines += [f"  {t['name']}  {t['dtype']} {t['shape']}" for t in report.get("tensor_list", [])]
    return "\n".join(lines) + "\n"


def _describe_adapter(adapter: dict[str, Any] | None) -> list[str]:
    if adapter is None:
        return ["adapter: none found"]
    free = adapter["free_bytes"]
    lines = [f"adapter: {adapter['name']}, free memory {'not known' if free is None else f'{free / 1e6:,.0f} MB'}"]
    if adapter["most_tokens"] is not None:
        lines.append(
            f"  a binding ({adapter['binding_bytes'] / 1e6:,.0f} MB) holds a layer's float32 cache of up to "
            f"{adapter['most_tokens']:,} tokens"
        )
    for dtype, context in adapter["largest_context"].items():
        lines.append(f"  {dtype:9} " + (f"fits with up to {context:,} tokens" if context else "does not fit"))
    return lines


def _describe_estimate(report: dict[str, Any]) -> list[str]:
    """The estimate, and why it does not fit, if it does not."""
    e, refusal = report["estimate"], report["refusal"]
    tokens = f"texts of {e['longest']:,} tokens" if "longest" in e else f"a context of {e['context']:,}"
    parts = {"weights": e["weights"], "cache": e["kv"], "activations": e["activations"]}
    parts["other"] = e["params"] + e["staging"]
    listed = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in parts.items())
    lines = [f"estimate for {tokens}: {e['total'] / 1e6:,.1f} MB ({listed})"]
    return lines if refusal is None else [*lines, *(f"  {refusal[k]}" for k in ("what", "why", "hint") if refusal[k])]


def _describe_layers(layers: list[dict[str, Any]]) -> str:
    """Rotary embeddings and windows, each with the number of its layers if they differ."""
    found: list[str] = []
    for layer in layers:
        rope, window = layer["rope"], layer["window"]
        found.append("no rope" if rope is None else f"rope {rope['rope_type']} (theta {rope['rope_theta']:g})")
        found[-1] += "" if window is None else f", window {window}"
    counts = {text: found.count(text) for text in dict.fromkeys(found)}
    return "".join(f", {text}" if len(counts) == 1 else f"; {n} layers {text}" for text, n in counts.items())
