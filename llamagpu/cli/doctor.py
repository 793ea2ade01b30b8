"""``llamagpu doctor``: the adapters, which one is chosen and why, and every kernel checked on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamagpu.cli.doctor_report import markdown
from llamagpu.cli.options import (
    device_option,
    dtype_option,
    json_option,
    kv_dtype_option,
    model_option,
    revision_option,
)
from llamagpu.cli.output import note, progress_bar, write, write_json
from llamagpu.errors import LlamaGPUError

if TYPE_CHECKING:
    from llamagpu.gpu import Device, Tuning
    from llamagpu.kernels.survey import Survey
    from llamagpu.model import Prepared

_REPORT = Path("llamagpu-doctor.md")


@click.command()
@model_option
@revision_option
@device_option
@dtype_option
@kv_dtype_option
@click.option("--variants", is_flag=True, help="Check every variant of the kernels, not only those in use.")
@click.option(
    "--report", type=click.Path(path_type=Path), default=_REPORT, show_default=True, help="A report for an issue."
)
@json_option
def doctor(
    model: str | None,
    revision: str | None,
    device: str,
    dtype: str,
    kv_dtype: str,
    variants: bool,
    report: Path,
    as_json: bool,
) -> None:
    """Check this machine: GPU adapters, the chosen one, its limits, and every kernel against its reference.

    The kernels run on their own cases, and on cases of the model: its formats, head size, masks and activations. The
    exit code is 1 if a kernel gives wrong numbers. Cases that exceed the memory are counted as not run.
    """
    from llamagpu import gpu
    from llamagpu.model import check_dtypes, find_model, prepare

    dtype, kv_dtype = check_dtypes(dtype, kv_dtype)
    prepared = prepare(find_model(model, revision), dtype)
    adapters = gpu.list_adapters()
    if not as_json:
        write(gpu.version() + "\nadapters:\n" + "".join(f"  {a.index}: {a}  {a.driver}\n" for a in adapters))
    with gpu.open(device) as opened:
        facts = _facts(opened) | {"model": prepared.name, "dtype": dtype}
        facts["adapters"] = [{"index": a.index, "name": str(a), "driver": a.driver} for a in adapters]
        if not as_json:
            write(_describe(facts))
        found = []
        for outcome in _surveys(opened, prepared, kv_dtype, variants, quiet=as_json):
            found.append(outcome)
            if not as_json:
                write(_line(outcome))
    facts["kernels"] = [_as_dict(s) for s in found]
    _save(report, markdown(facts, found), quiet=as_json)
    if as_json:
        write_json(facts)
    _judge(facts, found, report)


def _facts(opened: Device) -> dict[str, Any]:
    from llamagpu import gpu
    from llamagpu.version import __version__

    adapter, memory = opened.adapter, opened.memory
    return {
        "versions": f"llamagpu {__version__}, {gpu.version()}",
        "chosen": adapter.index,
        "adapter": str(adapter),
        "driver": adapter.driver,
        "reason": opened.reason,
        "features": sorted(opened.features),
        "limits": {
            "binding_bytes": memory.max_binding,
            "buffer_bytes": memory.max_buffer,
            "workgroups": memory.max_workgroups,
            "free_memory_bytes": opened.ledger.free_bytes(),
            "subgroup_size": opened.subgroup_size,
        },
        "tuning": asdict(opened.tuning),
        "tuning_from": "measured" if opened.measured else "built-in",
        "tuning_path": str(gpu.tuning_path()) if opened.measured else None,
    }


def _describe(facts: dict[str, Any]) -> str:
    limits = facts["limits"]
    free = limits["free_memory_bytes"]
    memory = "not known" if free is None else f"{free / 1e9:.1f} GB"
    lines = [
        f"chosen: {facts['chosen']}, because {facts['reason']}",
        f"features: {', '.join(facts['features']) or 'none'}",
        f"limits: binding {limits['binding_bytes'] / 1e6:,.0f} MB, buffer {limits['buffer_bytes'] / 1e6:,.0f} MB, "
        f"free memory {memory}",
        f"tuning: {facts['tuning_path'] or 'built-in'}",
        "  " + ", ".join(f"{k}={v}" for k, v in facts["tuning"].items() if k != "lanes"),
        *(_lanes_line(tuned) for tuned in facts["tuning"]["lanes"]),
    ]
    return "\n".join(lines) + "\n"


def _lanes_line(tuned: dict[str, Any]) -> str:
    cut = ", ".join(f"{k}={v}" for k, v in tuned["cut"].items())
    return f"  {tuned['format']} {tuned['rows']} × {tuned['columns']}: {cut}"


# --- the kernels -----------------------------------------------------------------------------


def _surveys(device: Device, prepared: Prepared, kv_dtype: str, every_variant: bool, quiet: bool) -> Iterator[Survey]:
    """The kernels' own cases in every tuning in question, then the cases of the model."""
    from llamagpu import gpu

    tunings = [device.tuning]
    if every_variant:
        tunings = gpu.variants(device.features, device.subgroup_size)
    # The divisions of products were chosen for models' matrices; here they are checked on the kernels' own cases.
    cuts = dict.fromkeys(tuned.cut for tuned in device.tuning.lanes)
    tunings += [replace(device.tuning, all_lanes=cut) for cut in cuts]
    read: dict[str, set[str]] = {}  # fields of the tuning that each kernel reads
    for tuning in tunings:
        if not quiet:
            how = ", ".join(f"{k}={v}" for k, v in vars(tuning).items()) if len(tunings) > 1 else ""
            write(f"kernels:{' ' if how else ''}{how}\n")
        yield from _own_cases(device, tuning, tunings[0], read)
    if not quiet:
        write(f"kernels as {prepared.name} uses them, dtype {prepared.layout.dtype}:\n")
    yield from _model_cases(device, prepared, kv_dtype)


def _own_cases(device: Device, tuning: Tuning, first: Tuning, read: dict[str, set[str]]) -> Iterator[Survey]:
    """The kernels' own cases, of those kernels that read a field in which the tuning differs from the first."""
    from llamagpu import kernels
    from llamagpu.kernels.survey import survey

    changed = {"all"} | {name for name, value in vars(tuning).items() if value != getattr(first, name)}
    chosen = [k for k in kernels.REGISTRY.values() if read.get(k.name, {"all"}) & changed]
    for number, kernel in enumerate(chosen, 1):
        with progress_bar(f"checking {kernel.name}", "kernels") as progress:  # gone before the line is written
            if progress is not None:
                progress(number, len(chosen))
            cases = (*kernel.cases, *kernels.random_dims(kernel, 4))
            found = survey(kernel, device, [(dims, tuning) for dims in cases])
        read.setdefault(kernel.name, found.fields)
        yield found


def _model_cases(device: Device, prepared: Prepared, kv_dtype: str) -> Iterator[Survey]:
    from llamagpu import kernels
    from llamagpu.kernels.survey import survey
    from llamagpu.model.cases import model_cases
    from llamagpu.model.sizes import kv_format

    cases = model_cases(prepared.layout, kv_format(prepared.layout, kv_dtype), device.tuning)
    cases = [c for c in cases if c.kernel in kernels.REGISTRY]
    groups = list(dict.fromkeys((c.kernel, c.variant) for c in cases))
    for number, (name, variant) in enumerate(groups, 1):
        with progress_bar(f"checking {name}", "variants") as progress:
            if progress is not None:
                progress(number, len(groups))
            mine = [(c.dims, c.tuning) for c in cases if (c.kernel, c.variant) == (name, variant)]
            found = survey(kernels.REGISTRY[name], device, mine, variant)
        yield found


def _line(s: Survey) -> str:
    state = ("ok" if s.passed else "-") if s.ok else "WRONG"
    ran = s.passed + len(s.failures)
    error = f", error {s.worst:.1e} of {s.tolerance:.0e}" if ran else ""
    line = f"  {state:6} {s.kernel:18} {s.passed} of {s.cases}{error}, {s.seconds:.1f} s  {s.variant}".rstrip() + "\n"
    if s.skipped:
        dims = "; ".join(f.dims for f in s.skipped)
        line += f"         {len(s.skipped)} not run ({s.skipped[0].reason}) {dims}\n"
    return line + (f"         {s.failures[0].dims}: {s.failures[0].reason}\n" if s.failures else "")


# --- the outcome -----------------------------------------------------------------------------


def _as_dict(s: Survey) -> dict[str, Any]:
    out = {k: v for k, v in asdict(s).items() if k != "fields"}
    return out | {"ok": s.ok}


def _save(path: Path, text: str, quiet: bool) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        note(f"The report cannot be written to {path}: {e.strerror or e}")
    else:
        if not quiet:
            write(f"report: {path}\n")


def _judge(facts: dict[str, Any], found: list[Survey], report: Path) -> None:
    """Raise an error if a kernel failed."""
    bad = [s for s in found if not s.ok]
    if not bad:
        return
    failed, cases = sum(len(s.failures) for s in bad), sum(s.cases for s in found)
    first = bad[0].failures[0]
    raise LlamaGPUError(
        f"{failed} of {cases} kernel checks failed: {', '.join(dict.fromkeys(s.name for s in bad))}.",
        f"{facts['adapter']} with the driver {facts['driver'] or 'unknown'} computes wrong results, or a kernel has a "
        f"bug. The first: {first.dims}: {first.reason}",
        f"Update the driver, or choose another adapter with --device; please report it with the text of {report.name}.",
    )
