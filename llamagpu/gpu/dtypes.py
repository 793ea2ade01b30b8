"""The dtypes of tensors, on the host's side. numpy has no bfloat16: its bits are uint16."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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
