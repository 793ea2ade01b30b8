"""Checks of kernels against their references, for the tests and ``llamagpu doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Device, Program, ReadTuning, Tensor, Tuning
from llamagpu.kernels.entry import F64, Bench, Dims, Expected, Kernel, Output, Outputs

T = TypeVar("T")
_TINY = np.finfo(np.float32).tiny
_BLOCK = 1 << 15  # elements that are compared at once, so that what is computed of them stays in the processor's caches


@dataclass(frozen=True)
class Report:
    """The outcome of one case.

    Attributes:
        error: the largest error of all outputs, in units of its scale.
        output: the name of the output with this error, "" if the kernel has only one.
        guards: whether nothing was written outside the outputs or into their padding.
        tuning_fields: the fields of the tuning that the kernel read.
    """

    kernel: Kernel
    dims: Dims
    seed: int
    error: float
    output: str
    guards: bool
    tuning_fields: frozenset[str]

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance and nothing was written outside the output."""
        return self.guards and self.error <= self.kernel.tolerance

    @property
    def text(self) -> str:
        """The error beside the tolerance."""
        where = f" in {self.output}" if self.output else ""
        guards = "" if self.guards else ", wrote outside its output"
        return f"error {self.error:.2e} of {self.kernel.tolerance:.0e}{where}{guards}"

    def __str__(self) -> str:
        return f"{self.kernel.name} {dims_text(self.dims)}: {self.text}"


def dims_text(dims: Dims) -> str:
    """The dims of a case on one line."""
    return " ".join(f"{k}={v}" for k, v in dims.items())


def check(kernel: Kernel, device: Device, dims: Dims, seed: int = 0, tuning: Tuning | None = None) -> Report:
    """Run one case on the device. Every element must be within tolerance × its scale."""
    arrays = kernel.inputs(np.random.default_rng(seed), dims)
    expected = by_name(kernel.reference(arrays, dims))
    bench, read = Bench(device), ReadTuning(tuning or device.tuning)
    try:
        with device.using(read):
            got = host_outputs(kernel.run(bench, arrays, dims))
        guards = bench.guards_intact()
    finally:
        bench.free()
    if got.keys() != expected.keys():
        raise AssertionError(f"{kernel.name}: outputs {sorted(got)}, expected {sorted(expected)}")
    errors = {name: relative_error(got[name], e) for name, e in expected.items()}
    worst = max(errors, key=errors.__getitem__)
    return Report(kernel, dims, seed, errors[worst], worst, guards, frozenset(read.fields))


def host_outputs(outputs: Outputs) -> dict[str, npt.NDArray[Any]]:
    """What a kernel returned, by name; a single output has the name ""."""
    found: Mapping[str, Output] = by_name(outputs)
    return {name: t.numpy() if isinstance(t, Tensor) else t for name, t in found.items()}


def relative_error(got: npt.NDArray[Any], expected: Expected) -> float:
    """The largest error, in units of its scale; infinity if a value is not finite and should be."""
    if got.shape != expected.value.shape:
        raise AssertionError(f"an output has the shape {got.shape}, expected {expected.value.shape}")
    flat = got.reshape(-1), expected.value.reshape(-1), np.broadcast_to(expected.scale, got.shape).reshape(-1)
    blocks = range(0, got.size, _BLOCK)
    return float(np.max([_worst(*(a[begin : begin + _BLOCK] for a in flat)) for begin in blocks]))


def _worst(got: npt.NDArray[Any], value: F64, scale: F64) -> float:
    """The largest error of a block of elements."""
    got = got.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(got - value)
        # WGSL allows subnormal numbers to become 0
        ratio = np.where(difference <= _TINY, 0.0, difference / np.maximum(scale, _TINY))
    return float(np.max(np.where(np.isinf(scale), 0.0, np.where(np.isfinite(got), ratio, np.inf))))


def programs(kernel: Kernel, device: Device, dims: Dims, tuning: Tuning | None = None) -> tuple[Program, ...]:
    """The programs that a case dispatches in a tuning. They are compiled, but do not run."""
    bench = Bench(device)
    arrays = kernel.inputs(np.random.default_rng(0), dims)
    try:
        plan = device.record(lambda: kernel.run(bench, arrays, dims), tuning)
        plan.free()
    finally:
        bench.free()
    return tuple(dispatch.program for dispatch in plan.dispatches)


def by_name(outputs: T | Mapping[str, T]) -> Mapping[str, T]:
    """Outputs by name; a single one has the name ""."""
    return outputs if isinstance(outputs, Mapping) else {"": outputs}


def random_dims(kernel: Kernel, count: int, seed: int = 0) -> list[Dims]:
    """Seeded random shapes from the kernel's domain."""
    rng = np.random.default_rng([seed, sum(kernel.name.encode())])
    return [kernel.random(rng) for _ in range(count)]
