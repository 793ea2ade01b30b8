"""Entries of the registry: a kernel's cases, inputs, run, float64 reference with its error scale, and tolerance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Affine, Device, Part, Tensor, narrow_bf16, widen_bf16
from llamagpu.gpu.tensor import UPLOAD_ROWS, allocated_rows

Dims = Mapping[str, Any]
F64 = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]
FLOAT_TOLERANCE = 2e-6
INPUT_GUARD = b"\xff\xff\xff\xff"  # NaN in every dtype
# Another pattern, so that copies of an input's guard show. It is a signalling NaN: arithmetic changes its bits.
OUTPUT_GUARD = b"\xa5\xa5\xa5\x7f"


@dataclass(frozen=True)
class Expected:
    """The exact result of a kernel, and the scale of its error, element by element."""

    value: F64
    scale: F64


Output = Tensor | npt.NDArray[Any]
Outputs = Output | Mapping[str, Output]  # one, or several by name
AllExpected = Expected | Mapping[str, Expected]


@dataclass
class Bench:
    """Makes the tensors of one check. Each has a guard after its rows, inside its binding; the guards of inputs and
    outputs hold different NaNs."""

    device: Device
    tail: int = 64
    made: list[tuple[Tensor, bytes]] = field(default_factory=list)

    def put(self, values: npt.NDArray[Any], dtype: str | None = None, woven: bool = False) -> Tensor:
        """An input with these values."""
        return self._keep(self.device.tensor(values, dtype, tail=self.tail, woven=woven), INPUT_GUARD)

    def change(self, values: npt.NDArray[Any], dtype: str | None = None) -> Tensor:
        """A tensor with these values that the kernel changes in place."""
        return self._keep(self.device.tensor(values, dtype, tail=self.tail), OUTPUT_GUARD)

    def out(self, shape: tuple[int, ...], dtype: str = "f32") -> Tensor:
        """An output to be written."""
        return self._keep(self.device.empty(shape, dtype, tail=self.tail), OUTPUT_GUARD)

    def weights(self, rows: int, columns: int, format: str, woven: bool, cut: bool) -> Tensor:
        """Zeroed weights of any format; ``cut`` after the first rows into two parts, as if they exceeded a binding."""

        def make(count: int) -> Tensor:
            if format in ("f32", "f16", "bf16"):
                return self.device.empty((count, columns), format, tail=self.tail, woven=woven)
            return self.device.empty_affine(count, columns, Affine.parse(format), tail=self.tail, woven=woven)

        if not cut:
            return self._keep(make(rows), INPUT_GUARD)
        head, rest = make(UPLOAD_ROWS), make(rows - UPLOAD_ROWS)
        parts, meta = (
            (*first, *(replace(p, first=UPLOAD_ROWS) for p in second))
            for first, second in ((head.parts, rest.parts), (head.meta, rest.meta))
        )
        whole = Tensor(self.device, (rows, columns), head.dtype, parts, head.affine, meta, woven)
        return self._keep(whole, INPUT_GUARD)

    def _keep(self, tensor: Tensor, guard: bytes) -> Tensor:
        for part in (*tensor.parts, *tensor.meta):
            self.device.memory.write(part.buffer, part.size - part.tail, guard * (part.tail // len(guard)))
        self.made.append((tensor, guard))
        return tensor

    def guards_intact(self) -> bool:
        """Whether no kernel wrote outside the elements of any tensor: the guards after the rows are unchanged, and the
        padding of rows is zero."""
        return all(self._intact(t, p, guard) for t, guard in self.made for p in t.parts)

    def _intact(self, t: Tensor, part: Part, guard: bytes) -> bool:
        data = self.device.memory.read(part)
        if data[part.size - part.tail :] != guard * (part.tail // len(guard)):
            return False
        if t.affine is not None:
            return True  # its rows have no padding
        items = np.frombuffer(data, f"u{t.row_bytes // t.stride}", allocated_rows(part.rows, t.woven) * t.stride)
        padding = items.reshape(-1, t.stride)[:, t.columns :]
        return not (padding << 1).any()  # the shift drops the sign of -0

    def free(self) -> None:
        """Free the tensors."""
        for tensor, _ in self.made:
            tensor.free()


@dataclass(frozen=True)
class Kernel:
    """A kernel's entry in the registry. The reference has the names of the outputs that ``run`` returns."""

    name: str
    inputs: Callable[[np.random.Generator, Dims], Arrays]
    run: Callable[[Bench, Arrays, Dims], Outputs]
    reference: Callable[[Arrays, Dims], AllExpected]
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
