"""Vectors as a .npy file, which numpy can map into memory, and the errors of rows that have none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from llamagpu.errors import LlamaGPUError


def write_vectors(
    path: Path, rows: Iterable[dict[str, Any]], shape: tuple[int, int], column: str, dtype: np.dtype[Any]
) -> None:
    """Write the vectors of a column, one row after another; rows with an error are NaN, or 0 in whole numbers.

    Args:
        shape: the number of rows, and the length of a vector.

    Raises:
        LlamaGPUError: the file cannot be written.
    """
    empty = np.full(shape[1], np.nan if dtype.kind == "f" else 0, dtype)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    try:
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for row in rows:
                file.write(row.get(column, empty).tobytes())
    except OSError as e:
        raise LlamaGPUError(f"{path} could not be written.", e.strerror or str(e)) from None


def write_errors(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write the rows with an error as JSON Lines.

    Raises:
        LlamaGPUError: the file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows if "error" in row)
    except OSError as e:
        raise LlamaGPUError(f"{path} could not be written.", e.strerror or str(e)) from None
