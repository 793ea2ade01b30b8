"""Shared by the wrappers: checks of their tensors, and the bindings of tensors of any weight format."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from llamagpu.errors import KernelError
from llamagpu.gpu import Part, Tensor
from llamagpu.gpu.tensor import WOVEN_ROWS, Owner

Pairs = tuple[tuple[str, str], ...]
Consts = tuple[tuple[str, int], ...]
_LARGEST = float(np.finfo(np.float32).max)


def require(condition: bool, message: str) -> None:
    """Raises KernelError with the message if the condition is false."""
    if not condition:
        raise KernelError(message)


def owner(kernel: str, **tensors: Any) -> Owner:
    """The device that all given tensors are on; None stands for an optional tensor.

    Raises:
        KernelError: an argument is not a tensor, or they are on different devices.
    """
    device: Owner | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise KernelError(
                f"{kernel}: {name} is a {type(tensor).__name__}, not a tensor.",
                "Kernels take tensors on the GPU.",
                f"Make one with device.tensor({name}).",
            )
        if device is not None and tensor.device is not device:
            raise KernelError(
                f"{kernel}: {name} is on another device.",
                f"It is on {tensor.device.memory.adapter}, the others are on {device.memory.adapter}.",
                "Open one device, and make all tensors on it.",
            )
        device = tensor.device
    require(device is not None, f"{kernel}: no tensor was given")
    assert device is not None
    return device


def require_floats(kernel: str, **tensors: Any) -> Owner:
    """As ``owner``; also raises KernelError if a tensor is not f32."""
    device = owner(kernel, **tensors)
    for name, tensor in tensors.items():
        require(tensor is None or tensor.dtype == "f32", f"{kernel}: {name} must be an f32 tensor, not {tensor!r}")
    return device


def require_matrices(kernel: str, **tensors: Tensor) -> None:
    """Raises KernelError if a tensor does not have two axes."""
    for name, tensor in tensors.items():
        require(len(tensor.shape) == 2, f"{kernel}: {name} must be a matrix, not {tensor!r}")


def require_vectors(kernel: str, columns: int, **tensors: Tensor | None) -> None:
    """Raises KernelError if a tensor is not a vector of ``columns`` elements; None stands for an optional tensor."""
    for name, tensor in tensors.items():
        fits = tensor is None or (tensor.rows == 1 and tensor.columns == columns)
        require(fits, f"{kernel}: {name} must be a vector of {columns} elements, not {tensor!r}")


def require_number(kernel: str, name: str, value: Any) -> float:
    """The value as a float; raises KernelError if it is not a number, or not finite in float32."""
    require(
        isinstance(value, Real) and abs(float(value)) <= _LARGEST, f"{kernel}: {name} must be a number, not {value!r}"
    )
    return float(value)


def require_rows(kernel: str, rows: Tensor) -> None:
    """Raises KernelError if ``rows`` is not the state of a step's rows (``kernels.step``)."""
    owner(kernel, rows=rows)
    require(rows.dtype == "u32" and rows.columns == 4, f"{kernel}: the state of rows must be u32 [rows, 4]")


def parts(**tensors: Tensor) -> dict[str, Part]:
    """Bindings of tensors with one part."""
    return {name: t.part for name, t in tensors.items()}


def weights_libs(tensor: Tensor) -> tuple[Pairs, Consts]:
    """The implementations of the ``weights`` interface that read a tensor, and their constants."""
    a = tensor.affine
    order, woven = (("order", "woven"), (("WOVEN", WOVEN_ROWS),)) if tensor.woven else (("order", "plain"), ())
    words = "words", tensor.device.tuning.words
    if a is None:
        return (("weights", float_format(tensor)), ("fold", "plain"), words, order), woven
    data = f"affine{a.bits}" + ("_g16" if (a.bits, a.group) == (4, 16) else "")
    meta, zero = (a.scales, ()) if a.zero is None else (f"{a.scales}_zero", (("ZERO", a.zero),))
    libs = (("weights", data), ("fold", "affine"), ("meta", meta), words, order)
    return libs, (("GROUP", a.group), *zero, *woven)


def weight_parts(tensor: Tensor) -> list[tuple[Part, dict[str, Part]]]:
    """The parts of a weight tensor, each with its bindings."""
    if tensor.affine is None:
        return [(p, {"weights_data": p}) for p in tensor.parts]
    pairs = zip(tensor.parts, tensor.meta, strict=True)
    return [(p, {"weights_data": p, "weights_meta": m}) for p, m in pairs]


def float_format(tensor: Tensor) -> str:
    """The implementation that reads a float tensor: its dtype, or ``f16_native`` if the tuning says so."""
    native = tensor.dtype == "f16" and tensor.device.tuning.f16 == "native"
    return "f16_native" if native else tensor.dtype
