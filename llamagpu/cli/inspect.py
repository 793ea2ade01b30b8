"""``llamagpu inspect``: a model's config and memory needs, from its headers."""

from __future__ import annotations

from typing import Any

import click

from llamagpu.cli.options import device_option, json_option, revision_option
from llamagpu.cli.output import write, write_json
from llamagpu.errors import UsageError


@click.command()
@click.argument("named", metavar="[MODEL]", required=False)
@click.option(
    "-m", "--model", help="A directory, GGUF file or hub id, instead of the argument. [default: the bundled model]"
)
@revision_option
@device_option
@click.option("--tensors", is_flag=True, help="List every tensor.")
@json_option
def inspect(
    named: str | None, model: str | None, revision: str | None, device: str, tensors: bool, as_json: bool
) -> None:
    """Show MODEL's architecture, parameters and tensors, and the memory it needs by dtype and context.

    MODEL is a directory, a GGUF file or a hub id. The needs are compared with the adapter's memory. Only headers are
    read or downloaded.
    """
    from llamagpu import gpu
    from llamagpu.errors import NoAdapterError
    from llamagpu.model.inspect import inspect_model

    if named is not None and model is not None:
        raise UsageError("MODEL was given twice.", "The argument and --model mean the same.", "Leave one of them out.")
    model = model if named is None else named
    try:
        with gpu.open(device) as opened:
            report = inspect_model(model, revision, opened)
    except NoAdapterError:
        if device != "auto":
            raise
        report = inspect_model(model, revision, None)
    if not tensors:
        report.pop("tensor_list")
    if as_json:
        write_json(report)
    else:
        write(_describe(report))


def _describe(report: dict[str, Any]) -> str:
    c = report["config"]
    lines = [
        f"{report['model']}: {c['model_type']}, {report['parameters']:,} parameters in {report['tensors']} tensors "
        f"({', '.join(report['stored'])})",
        f"  {c['num_hidden_layers']} layers, hidden {c['hidden_size']}, intermediate {c['intermediate_size']}, "
        f"{c['num_attention_heads']} heads over {c['num_key_value_heads']} of {c['head_dim']}, "
        f"vocabulary {c['vocab_size']}{', tied head' if c['tie_word_embeddings'] else ''}",
        f"  context up to {c['max_position_embeddings']}{_describe_layers(c['layers'])}",
        "memory in MB, weights by dtype:",
    ]
    lines += [f"  {dtype:9} {size / 1e6:12,.1f}" for dtype, size in report["weight_bytes"].items()]
    lines.append("cache and activations by context:")
    for row in report["contexts"]:
        kv = f"{row['kv_bytes']['float32'] / 1e6:,.1f} (float32) or {row['kv_bytes']['float16'] / 1e6:,.1f} (float16)"
        lines.append(f"  {row['context']:9,} {kv}, activations {row['activation_bytes'] / 1e6:,.1f}")
    adapter = report["adapter"]
    if adapter is None:
        lines.append("adapter: none found")
    else:
        free = adapter["free_bytes"]
        memory = "not known" if free is None else f"{free / 1e6:,.0f} MB"
        lines.append(f"adapter: {adapter['name']}, free memory {memory}")
        lines.append(
            f"  a binding ({adapter['binding_bytes'] / 1e6:,.0f} MB) holds a layer's float32 cache of up to "
            f"{adapter['most_tokens']:,} tokens"
        )
        for dtype, context in adapter["largest_context"].items():
            lines.append(f"  {dtype:9} " + (f"fits with a context of {context:,}" if context else "does not fit"))
    for t in report.get("tensor_list", []):
        lines.append(f"  {t['name']}  {t['dtype']} {t['shape']}")
    return "\n".join(lines) + "\n"


def _describe_layers(layers: list[dict[str, Any]]) -> str:
    """Rotary embeddings and windows, each with the number of its layers if they differ."""
    found: list[str] = []
    for layer in layers:
        rope, window = layer["rope"], layer["window"]
        found.append("no rope" if rope is None else f"rope {rope['rope_type']} (theta {rope['rope_theta']:g})")
        found[-1] += "" if window is None else f", window {window}"
    counts = {text: found.count(text) for text in dict.fromkeys(found)}
    return "".join(f", {text}" if len(counts) == 1 else f"; {n} layers {text}" for text, n in counts.items())
