"""The prenorm buffer: the residual times the weight of the norm that reads it next, and the residual's sums of squares.

The kernel that writes the residual in a decode step also writes this buffer, so that RMSNorm needs no dispatch of its
own: the next product scales its results by 1 / sqrt(mean + eps) (``lib/prenorm.wgsl``, ``lib/norm/rms.wgsl``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Tensor
from llamagpu.kernels.arguments import Pairs, require, require_floats


@dataclass(frozen=True)
class NextNorm:
    """The norm that reads the residual next: its prenorm buffer, f32 [rows, prenorm_columns(columns)], and its weight,
    f32 [columns]."""

    prenorm: Tensor
    weight: Tensor


def next_norm(kernel: str, following: NextNorm | None, rows: int, columns: int) -> tuple[Pairs, dict[str, Tensor]]:
    """The library that prepares the next norm of a residual [rows, columns], and its tensors by binding."""
    if following is None:
        return (("next", "none"),), {}
    require_floats(kernel, prenorm=following.prenorm, norm_weight=following.weight)
    require(following.prenorm.shape == (rows, prenorm_columns(columns)), f"{kernel}: prenorm has a wrong shape")
    require(following.weight.columns == columns, f"{kernel}: one weight for every column")
    return (("next", "prenorm"),), {"prenorm": following.prenorm, "norm_weight": following.weight}


def prenorm_columns(columns: int) -> int:
    """Columns of a prenorm buffer: the weighted elements, padded to groups of four, and a sum of squares per group."""
    groups = -(-columns // 4)
    return 4 * groups + -(-groups // 4) * 4


def prenorm_reference(x: npt.NDArray[Any], weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The buffer for rows x [m, columns], padded with zeros."""
    rows, columns = x.shape
    groups = -(-columns // 4)
    out = np.zeros((rows, prenorm_columns(columns)), x.dtype)
    out[:, :columns] = x * weight
    padded = np.zeros((rows, 4 * groups), x.dtype)
    padded[:, :columns] = x
    out[:, 4 * groups : 5 * groups] = (padded.reshape(rows, groups, 4) ** 2).sum(axis=-1)
    return out
