"""Checks of kernels against their references, for the tests and ``llamagpu doctor``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llamagpu.gpu import Device, ReadTuning, Tuning
from llamagpu.kernels.entry import Bench, Dims, Kernel


@dataclass(frozen=True)
class Report:
    """The outcome of one case: the largest error in units of its scale, whether nothing was written outside the
    outputs or into their padding (``guards``), and the fields of the tuning that the kernel read."""

    kernel: Kernel
    dims: Dims
    error: float
    guards: bool
    tuning_fields: frozenset[str]

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance and nothing was written outside the output."""
        return self.guards and self.error <= self.kernel.tolerance

    def __str__(self) -> str:
        dims = " ".join(f"{k}={v}" for k, v in self.dims.items())
        guards = "" if self.guards else ", wrote outside its output"
        return f"{self.kernel.name} {dims}: error {self.error:.2e} of {self.kernel.tolerance:.0e}{guards}"


def check(kernel: Kernel, device: Device, dims: Dims, seed: int = 0, tuning: Tuning | None = None) -> Report:
    """Run one case on the device. Every element must be within tolerance × its scale."""
    arrays = kernel.inputs(np.random.default_rng(seed), dims)
    expected = kernel.reference(arrays, dims)
    bench, read = Bench(device), ReadTuning(tuning or device.tuning)
    try:
        with device.using(read):
            got = kernel.run(bench, arrays, dims).numpy().astype(np.float64)
        guards = bench.guards_intact()
    finally:
        bench.free()
    if got.shape != expected.value.shape:
        raise AssertionError(f"{kernel.name}: shape {got.shape}, expected {expected.value.shape}")
    difference = np.abs(got - expected.value)
    allowed = np.maximum(expected.scale, np.finfo(np.float32).tiny)
    flushed = difference <= np.finfo(np.float32).tiny  # WGSL allows subnormal numbers to become 0
    ratio = np.where(flushed, 0.0, difference / allowed)
    error = float(np.max(np.where(np.isfinite(got), ratio, np.inf)))
    return Report(kernel, dims, error, guards, frozenset(read.fields))


def random_dims(kernel: Kernel, count: int, seed: int = 0) -> list[Dims]:
    """Seeded random shapes from the kernel's domain."""
    rng = np.random.default_rng([seed, sum(kernel.name.encode())])
    return [kernel.random(rng) for _ in range(count)]
