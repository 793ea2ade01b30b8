"""What every kernel module has: cases, inputs, a run, a float64 reference with its error scale, a tolerance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import KernelError
from llamagpu.gpu import Device, Part, Tensor, narrow_bf16, widen_bf16

Dims = Mapping[str, Any]
F64 = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]
FLOAT_TOLERANCE = 2e-6


@dataclass(frozen=True)
class Expected:
    """What a kernel should give, and the scale its error is measured on, element by element."""

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
        """Whether no kernel wrote behind the rows of any tensor."""
        tails = (self.device.read_part(p)[p.size - p.tail :] for t in self.made for p in t.parts)
        return all(tail == b"\xff" * len(tail) for tail in tails)

    def free(self) -> None:
        for tensor in self.made:
            tensor.free()


@dataclass(frozen=True)
class Kernel:
    """A kernel's entry in the registry. ``depends`` names the tuning fields that change its code."""

    name: str
    inputs: Callable[[np.random.Generator, Dims], Arrays]
    run: Callable[[Bench, Arrays, Dims], Tensor]
    reference: Callable[[Arrays, Dims], Expected]
    cases: tuple[Dims, ...]
    random: Callable[[np.random.Generator], Dims]
    tolerance: float = FLOAT_TOLERANCE
    depends: tuple[str, ...] = ()


def require(condition: bool, message: str) -> None:
    """Raises KernelError for a wrapper called with tensors that do not fit one another."""
    if not condition:
        raise KernelError(message)


def require_rows(rows: Tensor) -> None:
    """Raises KernelError for what is no state of a step's rows."""
    require(rows.dtype == "u32" and rows.columns == 4, "the state of rows must be u32 [rows, 4]")


def require_floats(*tensors: Tensor | None) -> None:
    """Raises KernelError for a tensor that is not f32."""
    for t in tensors:
        require(t is None or t.dtype == "f32", f"an f32 tensor is needed, not {t.dtype if t else None}")


def as_stored(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """Float values rounded to what a tensor of this dtype holds, as float32."""
    if dtype == "bf16":
        return widen_bf16(narrow_bf16(values))
    return values.astype(np.float16 if dtype == "f16" else np.float32).astype(np.float32)


def parts(**tensors: Tensor) -> dict[str, Part]:
    """Bindings for tensors of one part."""
    return {name: t.part for name, t in tensors.items()}


Pairs = tuple[tuple[str, str], ...]
Consts = tuple[tuple[str, int], ...]


def weights_libs(tensor: Tensor) -> tuple[Pairs, Consts]:
    """How a tensor is read: the implementations of the ``weights`` interface, and their constants."""
    a, order = tensor.affine, ("order", "woven" if tensor.woven else "plain")
    if a is None:
        return (("weights", float_format(tensor)), ("fold", "plain"), order), ()
    data = f"affine{a.bits}" + ("_g16" if (a.bits, a.group) == (4, 16) else "")
    if a.zero is None:
        return (("weights", data), ("fold", "affine"), ("meta", a.scales), order), (("GROUP", a.group),)
    return (("weights", data), ("fold", "affine"), ("meta", f"{a.scales}_zero"), order), (
        ("GROUP", a.group),
        ("ZERO", a.zero),
    )


def weight_parts(tensor: Tensor) -> list[tuple[Part, dict[str, Part]]]:
    """The parts of a weight tensor, each with its bindings."""
    if tensor.affine is None:
        return [(p, {"weights_data": p}) for p in tensor.parts]
    pairs = zip(tensor.parts, tensor.meta, strict=True)
    return [(p, {"weights_data": p, "weights_meta": m}) for p, m in pairs]


def float_format(tensor: Tensor) -> str:
    """How a tensor is read: its dtype, or ``f16_native`` where the tuning says so."""
    native = tensor.dtype == "f16" and tensor.device.tuning.f16 == "native"
    return "f16_native" if native else tensor.dtype


def step_rows(
    tokens: npt.ArrayLike, positions: npt.ArrayLike, slots: npt.ArrayLike | int = 0
) -> npt.NDArray[np.uint32]:
    """The state of a step's rows: uint32 [rows, 4] of (token, position, slot, place)."""
    tokens = np.atleast_1d(np.asarray(tokens, np.uint32))
    out = np.zeros((len(tokens), 4), np.uint32)
    out[:, 0], out[:, 1], out[:, 2] = tokens, positions, slots
    return out
