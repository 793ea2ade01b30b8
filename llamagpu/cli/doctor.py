"""``llamagpu doctor``: the adapters, which one is chosen and why, and every kernel checked on it."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from llamagpu.cli.options import device_option, json_option
from llamagpu.cli.output import progress_bar, write, write_json
from llamagpu.errors import KernelError, LlamaGPUError, OutOfMemoryError

if TYPE_CHECKING:
    from llamagpu.gpu import Device, Tuning
    from llamagpu.kernels.entry import Kernel


@click.command()
@device_option
@click.option("--variants", is_flag=True, help="Check every variant of the kernels, not only those in use.")
@json_option
def doctor(device: str, variants: bool, as_json: bool) -> None:
    """Check this machine: GPU adapters, the chosen one, its limits, and every kernel against its reference.

    The exit code is 1 if a kernel gives wrong numbers. Cases that exceed the memory are skipped and listed.
    """
    from llamagpu import gpu

    adapters = gpu.list_adapters()
    if not as_json:
        write(gpu.version() + "\nadapters:\n" + "".join(f"  {a.index}: {a}  {a.driver}\n" for a in adapters))
    with gpu.open(device) as opened:
        report: dict[str, Any] = {
            "versions": gpu.version(),
            "adapters": [{"index": a.index, "name": str(a), "driver": a.driver} for a in adapters],
            "chosen": opened.adapter.index,
            "reason": opened.reason,
            "features": sorted(opened.features),
            "limits": {
                "binding_bytes": opened.memory.max_binding,
                "buffer_bytes": opened.memory.max_buffer,
                "free_memory_bytes": opened.ledger.free_bytes(),
            },
            "tuning": asdict(opened.tuning),
            "tuning_from": str(gpu.tuning_path()) if opened.measured else "built-in",
        }
        if not as_json:
            write(_describe(report))
        report["kernels"] = _check_kernels(opened, variants, quiet=as_json)
    bad = [k for k in report["kernels"] if not k["ok"]]
    if as_json:
        write_json(report)
    if bad:
        names = ", ".join(sorted({k["kernel"] for k in bad}))
        raise LlamaGPUError(
            f"{len(bad)} of {len(report['kernels'])} kernel checks failed: {names}.",
            "The driver computes wrong results, or a kernel has a bug.",
            "Update the driver, or choose another adapter with --device; please report it.",
        )


def _describe(report: dict[str, Any]) -> str:
    limits = report["limits"]
    free = limits["free_memory_bytes"]
    memory = "not known" if free is None else f"{free / 1e9:.1f} GB"
    lines = [
        f"chosen: {report['chosen']}, because {report['reason']}",
        f"features: {', '.join(report['features']) or 'none'}",
        f"limits: binding {limits['binding_bytes'] / 1e6:,.0f} MB, buffer {limits['buffer_bytes'] / 1e6:,.0f} MB, "
        f"free memory {memory}",
        f"tuning: {report['tuning_from']}",
        "  " + ", ".join(f"{k}={v}" for k, v in report["tuning"].items() if k != "lanes"),
        *(_lanes_line(tuned) for tuned in report["tuning"]["lanes"]),
        "kernels:",
    ]
    return "\n".join(lines) + "\n"


def _lanes_line(tuned: dict[str, Any]) -> str:
    cut = ", ".join(f"{k}={v}" for k, v in tuned["cut"].items())
    return f"  {tuned['format']} {tuned['rows']} × {tuned['columns']}: {cut}"


def _check_kernels(device: Device, every_variant: bool, quiet: bool) -> list[dict[str, Any]]:
    from llamagpu import gpu, kernels

    tunings = [device.tuning]
    if every_variant:
        tunings = gpu.variants(device.features, device.subgroup_size)
    # The divisions of products were chosen for models' matrices; here they are checked on the kernels' own cases.
    cuts = dict.fromkeys(tuned.cut for tuned in device.tuning.lanes)
    tunings += [replace(device.tuning, all_lanes=cut) for cut in cuts]
    read: dict[str, set[str]] = {}  # fields of the tuning that each kernel reads
    out: list[dict[str, Any]] = []
    for tuning in tunings:
        chosen = [k for k in kernels.REGISTRY.values() if read.get(k.name, {"all"}) & _changed(tuning, tunings[0])]
        if len(tunings) > 1 and not quiet:
            write("  " + ", ".join(f"{k}={v}" for k, v in vars(tuning).items()) + "\n")
        for number, kernel in enumerate(chosen, 1):
            with progress_bar(f"checking {kernel.name}", "kernels") as progress:  # gone before the line is written
                if progress is not None:
                    progress(number, len(chosen))
                start = time.perf_counter()
                found, fields = _check_kernel(device, kernel, tuning)
                seconds = time.perf_counter() - start
            read.setdefault(kernel.name, fields)
            out.append(found)
            if not quiet:
                write(_line(kernel, found, seconds))
    return out


def _changed(tuning: Tuning, first: Tuning) -> set[str]:
    """The fields in which a tuning differs from the first; "all" stands for the first itself."""
    return {"all"} | {name for name, value in vars(tuning).items() if value != getattr(first, name)}


def _check_kernel(device: Device, kernel: Kernel, tuning: Tuning) -> tuple[dict[str, Any], set[str]]:
    """Check every case of a kernel, and list the cases skipped because they exceed the memory. Returns the outcome, and
    the fields of the tuning that the kernel read."""
    from llamagpu import kernels

    worst, failure, count, skipped, fields = 0.0, "", 0, [], set[str]()
    for dims in (*kernel.cases, *kernels.random_dims(kernel, 4)):
        try:
            outcome = kernels.check(kernel, device, dims, tuning=tuning)
        except OutOfMemoryError:
            skipped.append(" ".join(f"{k}={v}" for k, v in dims.items()))
            continue
        except KernelError as e:
            count, failure = count + 1, failure or str(e)
            continue
        count, worst, fields = count + 1, max(worst, outcome.error), fields | outcome.tuning_fields
        failure = failure or ("" if outcome.ok else str(outcome))
    found = {"kernel": kernel.name, "ok": not failure, "cases": count, "worst": worst, "failure": failure}
    return found | {"skipped": skipped}, fields


def _line(kernel: Kernel, found: dict[str, Any], seconds: float) -> str:
    state = ("ok" if found["cases"] else "-") if found["ok"] else "WRONG"
    line = f"  {state:6} {kernel.name:18} {found['cases']:2} cases, "
    if found["cases"]:
        line += f"worst error {found['worst']:.1e} of {kernel.tolerance:.0e}, "
    line += f"{seconds:.1f} s\n"
    if found["skipped"]:
        line += f"         {len(found['skipped'])} skipped (memory): {'; '.join(found['skipped'])}\n"
    return line + (f"         {found['failure']}\n" if found["failure"] else "")
