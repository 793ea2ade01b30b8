"""The dtypes of tensors, on the host's side. numpy has no bfloat16: its bits are uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import KernelError

ITEM_SIZE = {"f32": 4, "u32": 4, "f16": 2, "bf16": 2}
NUMPY = {"f32": np.float32, "u32": np.uint32, "f16": np.float16, "bf16": np.uint16}
Array = npt.NDArray[np.generic]


def widen_bf16(bits: Array) -> npt.NDArray[np.float32]:
    """bfloat16 bits (uint16) as float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow_bf16(values: Array) -> npt.NDArray[np.uint16]:
    """float32 values as bfloat16 bits (uint16), to nearest, ties to even. NaN is not expected."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def host_array(values: Any, dtype: str | None) -> Array:
    """What becomes a tensor, as an array.

    Raises:
        KernelError: it holds no numbers, or integers that u32 does not, or the dtype is not known.
    """
    if dtype is not None and dtype not in ITEM_SIZE:
        raise KernelError(f"There is no dtype {dtype!r}.", f"Known: {', '.join(ITEM_SIZE)}.")
    try:
        array = np.asarray(values)
    except ValueError as e:
        raise KernelError("The values do not make an array.", str(e)) from None
    if array.dtype.kind not in "biuf":
        raise KernelError(f"Values of the type {array.dtype} cannot be a tensor.", "They must be numbers.")
    whole = dtype == "u32" or (dtype is None and array.dtype.kind in "iu")
    if whole and array.size and (array.min() < 0 or array.max() > 2**32 - 1):
        raise KernelError("Integers outside of u32 cannot be a tensor.", "They run from 0 to 4294967295.")
    return array
