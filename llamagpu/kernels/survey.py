"""Surveys: all cases of a kernel in a variant, run on a device, with what failed and what did not run."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from llamagpu.errors import KernelError, LlamaGPUError, OutOfMemoryError
from llamagpu.gpu import Device, Tuning
from llamagpu.kernels.check import check, dims_text, programs
from llamagpu.kernels.entry import Dims, Kernel


@dataclass(frozen=True)
class Failure:
    """A case that failed, or did not run: its dims and seed, the reason, and the linked programs."""

    dims: str
    seed: int
    reason: str
    programs: tuple[str, ...] = ()


@dataclass
class Survey:
    """The outcome of a kernel's cases in one variant.

    Attributes:
        variant: a text, "" for the kernel's own cases.
        passed, cases: n of m; cases that did not run are in ``skipped`` and count as not passed.
        worst: the largest error of the cases that ran, in units of its scale.
        fields: the fields of the tuning that the kernel read.
    """

    kernel: str
    variant: str
    tolerance: float
    cases: int = 0
    passed: int = 0
    worst: float = 0.0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    skipped: list[Failure] = field(default_factory=list)
    fields: set[str] = field(default_factory=set)

    @property
    def ok(self) -> bool:
        """Whether no case failed."""
        return not self.failures

    @property
    def name(self) -> str:
        """Kernel and variant."""
        return f"{self.kernel} ({self.variant})" if self.variant else self.kernel


def survey(kernel: Kernel, device: Device, cases: Iterable[tuple[Dims, Tuning]], variant: str = "") -> Survey:
    """Run cases of a kernel, each in its tuning. A case that does not fit the memory is skipped."""
    start, out = time.perf_counter(), Survey(kernel.name, variant, kernel.tolerance)
    for dims, tuning in cases:
        out.cases += 1
        try:
            report = check(kernel, device, dims, tuning=tuning)
        except (OutOfMemoryError, MemoryError) as e:
            reason = e.what if isinstance(e, OutOfMemoryError) else "The host's memory is full."
            out.skipped.append(Failure(dims_text(dims), 0, reason))
            continue
        except KernelError as e:
            out.failures.append(Failure(dims_text(dims), 0, str(e)))
            continue
        out.worst = max(out.worst, report.error)
        out.fields |= report.tuning_fields
        if report.ok:
            out.passed += 1
        else:
            reason = report.text
            out.failures.append(Failure(dims_text(dims), 0, reason, _labels(kernel, device, dims, tuning)))
    out.seconds = time.perf_counter() - start
    return out


def _labels(kernel: Kernel, device: Device, dims: Dims, tuning: Tuning) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(p.label for p in programs(kernel, device, dims, tuning)))
    except LlamaGPUError:
        return ()
