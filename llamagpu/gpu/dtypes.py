"""Tensor dtypes on the host. numpy has no bfloat16, so its bits are held as uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import KernelError

ITEM_SIZE = {"f32": 4, "u32": 4, "f16": 2, "bf16": 2}
NUMPY = {"f32": np.float32, "u32": np.uint32, "f16": np.float16, "bf16": np.uint16}
LONG_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "u32": "uint32"}
_SHORT_NAMES = {long: short for short, long in LONG_NAMES.items()} | {"half": "f16", "float": "f32"}
Array = npt.NDArray[np.generic]


def dtype_name(dtype: Any) -> str:
    """The name of a tensor's dtype: ``f16`` for ``"f16"``, ``"float16"``, ``np.float16`` and ``np.dtype("f2")``.

    Raises:
        KernelError: the dtype is unknown.
    """
    name = dtype if isinstance(dtype, str) else None
    if name is None:
        try:
            name = np.dtype(dtype).name
        except TypeError:
            name = getattr(dtype, "__name__", repr(dtype))
    name = _SHORT_NAMES.get(name, name)
    if name not in ITEM_SIZE:
        raise KernelError(f"Unknown dtype {dtype!r}.", f"Known: {', '.join(ITEM_SIZE)}, and their long names.")
    return name


def widen_bf16(bits: Array) -> npt.NDArray[np.float32]:
    """bfloat16 bits (uint16) as float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow_bf16(values: Array) -> npt.NDArray[np.uint16]:
    """float32 values as bfloat16 bits (uint16), rounded to nearest, ties to even. NaN is not expected."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def host_array(values: Any, dtype: str | None) -> Array:
    """The values of a new tensor as an array. ``dtype`` is a short name, or None.

    Raises:
        KernelError: the values are not numbers, or integers outside u32.
    """
    try:
        array = np.asarray(values)
    except ValueError as e:
        raise KernelError("The values do not make an array.", str(e)) from None
    if array.dtype.kind not in "biuf":
        raise KernelError(f"Values of the type {array.dtype} cannot be a tensor.", "They must be numbers.")
    whole = dtype == "u32" or (dtype is None and array.dtype.kind in "iu")
    if whole and array.size and (array.min() < 0 or array.max() > 2**32 - 1):
        raise KernelError("Integers outside of u32 cannot be a tensor.", "u32 runs from 0 to 4294967295.")
    return array
