"""``llamagpu models``: the models in the hub's cache, and published ones that can be downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamagpu.cli.options import device_option, json_option, revision_option
from llamagpu.cli.output import write, write_json
from llamagpu.errors import NoAdapterError, UsageError

if TYPE_CHECKING:
    from llamagpu.gpu import Device

_HEADINGS = ("model", "revision", "architecture", "parameters", "dtype", "on disk", "fits")
_KNOWN = (
    "published models, by architecture. Each architecture is tested against transformers with random weights; these\n"
    "weights themselves were not run by this project. Some ask for their terms to be accepted and for HF_TOKEN:"
)


@click.command()
@click.option("--update", metavar="MODEL", help="Download a hub model, or a newer commit of it, and print its path.")
@revision_option
@device_option
@json_option
def models(update: str | None, revision: str | None, device: str, as_json: bool) -> None:
    """List the models in the hub's cache, and published models to download.

    A model is downloaded when a command first names it (-m owner/name), and opened from the cache from then on, without
    a request to the hub. --update asks the hub for a newer commit. An interrupted download continues where it stopped.

    "fits" compares the memory of weights, cache and activations, for up to 4096 tokens, with the adapter's free memory:
    "yes" as stored, or with the --dtype that is named.

    To remove models, use the hub's own command line: hf cache rm (or huggingface-cli delete-cache).
    """
    if update is not None:
        _update(update, revision, as_json)
        return
    if revision is not None:
        raise UsageError("--revision is of no use here.", "It says what --update downloads.")
    from llamagpu import gpu

    try:
        with gpu.open(device) as opened:
            report = _report(opened)
    except NoAdapterError:
        if device != "auto":
            raise
        report = _report(None)
    if as_json:
        write_json(report)
    else:
        write(_describe(report))


def _update(model: str, revision: str | None, as_json: bool) -> None:
    from llamagpu.model import find_model

    if Path(model).expanduser().exists():
        raise UsageError(f"{model} is a path here, not a hub model.", "--update takes a hub id such as owner/name.")
    path = find_model(model, revision, refresh=True)
    if as_json:
        write_json({"model": model, "path": str(path)})
    else:
        write(f"{path}\n")


def _report(device: Device | None) -> dict[str, Any]:
    from llamagpu.model.cached import cached_models
    from llamagpu.model.hub.cache import cache_folder
    from llamagpu.model.hub.known import KNOWN

    return {"cache": str(cache_folder()), "models": cached_models(device), "published": KNOWN}


def _describe(report: dict[str, Any]) -> str:
    rows, lines = report["models"], [f"models in {report['cache']}:"]
    if rows:
        table = [_HEADINGS, *(_cells(row) for row in rows)]
        widths = [max(len(cells[i]) for cells in table) for i in range(len(_HEADINGS) - 1)]
        for cells in table:
            lines.append("  " + "  ".join([*(c.ljust(w) for c, w in zip(cells, widths, strict=False)), cells[-1]]))
    else:
        lines.append("  none")
    lines += ["", _KNOWN]
    width = max(len(architecture) for architecture in report["published"])
    for architecture, ids in report["published"].items():
        lines += [f"  {(architecture if i == 0 else '').ljust(width)}  {name}" for i, name in enumerate(ids)]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """The columns of a model."""
    parameters = "" if row["parameters"] is None else _number(row["parameters"])
    dtype = " ".join(row["stored"] or ())
    architecture = row["architecture"] or ""
    return row["model"], row["revision"][:7], architecture, parameters, dtype, _size(row["bytes"]), _state(row)


def _state(row: dict[str, Any]) -> str:
    """Whether a model fits, or why it cannot be opened."""
    if row["reason"] is not None:
        return f"not supported: {row['reason']}"
    if row["missing"]:
        begun = f", {_size(row['partial_bytes'])} of it downloaded" if row["partial_bytes"] else ""
        more = f" and {len(row['missing']) - 1} more" if len(row["missing"]) > 1 else ""
        return f"incomplete: lacks {row['missing'][0]}{more}{begun}"
    if row["fits"] is None:
        return "no adapter"
    if not row["fits"]:
        return "no"
    return "yes" if row["fits"][0] == "auto" else f"with --dtype {row['fits'][0]}"


def _number(count: int) -> str:
    return f"{count / 1e9:,.2f} B" if count >= 1e9 else f"{count / 1e6:,.1f} M"


def _size(size: int) -> str:
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= u or n == "kB")
    return f"{size / unit:,.1f} {name}"
