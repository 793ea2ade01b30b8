"""Entries of the registry: a kernel's cases, inputs, run, float64 reference with its error scale, and tolerance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Device, Part, Tensor, narrow_bf16, widen_bf16
from llamagpu.gpu.tensor import allocated_rows

Dims = Mapping[str, Any]
F64 = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]
FLOAT_TOLERANCE = 2e-6


@dataclass(frozen=True)
class Expected:
    """The exact result of a kernel, and the scale of its error, element by element."""

    value: F64
    scale: F64


@dataclass
class Bench:
    """Makes the tensors of one check, each with a guard tail inside its binding: 0xFF bytes, which are NaN."""

    device: Device
    tail: int = 64
    made: list[Tensor] = field(default_factory=list)

    def put(self, values: npt.NDArray[Any], dtype: str | None = None, woven: bool = False) -> Tensor:
        """An input (or an in-place output) with these values."""
        self.made.append(self.device.tensor(values, dtype, tail=self.tail, woven=woven))
        return self.made[-1]

    def out(self, shape: tuple[int, ...], dtype: str = "f32") -> Tensor:
        """An output to be written."""
        self.made.append(self.device.empty(shape, dtype, tail=self.tail))
        return self.made[-1]

    def guards_intact(self) -> bool:
        """Whether no kernel wrote outside the elements of any tensor: the guards after the rows are unchanged, and the
        padding of rows is zero."""
        return all(self._intact(t, p) for t in self.made for p in t.parts)

    def _intact(self, t: Tensor, part: Part) -> bool:
        data = self.device.memory.read(part)
        if data[part.size - part.tail :] != b"\xff" * part.tail:
            return False
        if t.affine is not None:
            return True  # its rows have no padding
        items = np.frombuffer(data, f"u{t.row_bytes // t.stride}", allocated_rows(part.rows, t.woven) * t.stride)
        padding = items.reshape(-1, t.stride)[:, t.columns :]
        return not (padding << 1).any()  # the shift drops the sign of -0

    def free(self) -> None:
        """Free the tensors."""
        for tensor in self.made:
            tensor.free()


@dataclass(frozen=True)
class Kernel:
    """A kernel's entry in the registry."""

    name: str
    inputs: Callable[[np.random.Generator, Dims], Arrays]
    run: Callable[[Bench, Arrays, Dims], Tensor]
    reference: Callable[[Arrays, Dims], Expected]
    cases: tuple[Dims, ...]
    random: Callable[[np.random.Generator], Dims]
    tolerance: float = FLOAT_TOLERANCE


def normal(*shape: int | str, names: tuple[str, ...] = ("x",)) -> Callable[[np.random.Generator, Dims], Arrays]:
    """Inputs of normal float32 numbers, all of one shape whose axes are sizes or names of dims."""

    def inputs(rng: np.random.Generator, d: Dims) -> Arrays:
        axes = tuple(d[axis] if isinstance(axis, str) else axis for axis in shape)
        return {name: rng.standard_normal(axes, np.float32) for name in names}

    return inputs


def as_stored(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """Float values rounded to the precision of a dtype, as float32."""
    if dtype == "bf16":
        return widen_bf16(narrow_bf16(values))
    return values.astype(np.float16 if dtype == "f16" else np.float32).astype(np.float32)
