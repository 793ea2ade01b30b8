"""docs/gguf.md: how each tensor type of GGUF is held, and how exactly: python scripts/gguf_table.py"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
import gguf_files  # noqa: E402

from llamagpu.kernels.quantization import dequantize_rows, unpack  # noqa: E402
from llamagpu.model.sources.gguf.architectures import FAMILIES  # noqa: E402
from llamagpu.model.sources.gguf.blocks import BLOCKS, FLOATS, repack  # noqa: E402
from llamagpu.model.sources.gguf.pretokenizers import PRETOKENIZERS  # noqa: E402

COLUMNS, ROWS = 1024, 4096
LARGEST = 1000.0  # large enough that no scale is subnormal, which would leave fewer bits to round
TEXT = """# GGUF models

`python scripts/gguf_table.py` writes this page.

- Architectures (`general.architecture`): {families}.
- Tokenizers: SentencePiece (`llama`), and byte-level BPE (`gpt2`) with the pre-tokenizers {pres}.
- Tensor types: those of the table. All others are refused by name.

## How tensor types are held

Every quantized type is repacked to affine groups while loading: `w = scale · q + bias`. The repacking is exact.
Values of 2 and 3 bits are held in 4, values of 5 and 6 bits in 8. The scales of K types are products that need float32.

| type | bits per weight in the file | held as | bits per weight held | from gguf's values | from exact values |
| --- | --- | --- | --- | --- | --- |
{rows}

`int4-g32-f16` has 4 bits, groups of 32, and float16 scales and biases; with `-z8` the bias is −8 · scale and not
stored. Errors are the largest of {count:,} weights in blocks of random bits, computed as kernels do (float32, product
and sum rounded), relative to the largest weight: from the float32 values of the package `gguf` (`gguf.dequantize`),
and from the exact values in float64.

Tensors of one matrix (q, k and v; gate and up) may have different types, as in Q4_K_M. They are then held in the
narrowest format that is exact for all: Q4_K with Q6_K in {mixed}, Q5_0 with Q8_0 in {legacy}.
"""


def row(dtype: str) -> str:
    """A line of the table."""
    if dtype in FLOATS:
        bits = 32 if dtype == "F32" else 16
        return f"| {dtype} | {bits} | as stored | {bits} | 0 | 0 |"
    kind = BLOCKS[dtype]
    affine = kind.affine
    data = gguf_files.blocks(np.random.default_rng(0), ROWS, COLUMNS, dtype, LARGEST)
    packed, scales, biases = repack(data, dtype)
    q = unpack(packed, affine.bits).reshape(ROWS, -1, affine.group).astype(np.float32)
    got = (q * scales.astype(np.float32)[..., None] + biases.astype(np.float32)[..., None]).reshape(ROWS, -1)
    expected, exact = gguf_files.values(data, dtype), dequantize_rows((packed, scales, biases), affine)
    errors = (np.abs(got - e).max() / np.abs(exact).max() for e in (expected, exact))
    stored, held = Fraction(kind.nbytes * 8, kind.values), Fraction(affine.row_bytes(256) * 8, 256)
    shown = " | ".join("0" if e == 0 else f"{e:.1e}" for e in errors)
    return f"| {dtype} | {float(stored):g} | `{affine}` | {float(held):g} | {shown} |"


def main() -> None:
    """Write the page."""
    affines = {name: kind.affine for name, kind in BLOCKS.items()}
    common = affines["Q4_K"].common
    text = TEXT.format(
        families=", ".join(f"`{name}`" for name in sorted(FAMILIES)),
        pres=", ".join(f"`{name}`" for name in PRETOKENIZERS),
        rows="\n".join(row(dtype) for dtype in (*FLOATS, *BLOCKS)),
        count=ROWS * COLUMNS,
        mixed=f"`{common([affines['Q4_K'], affines['Q6_K']])}`",
        legacy=f"`{common([affines['Q5_0'], affines['Q8_0']])}`",
    )
    (ROOT / "docs" / "gguf.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
