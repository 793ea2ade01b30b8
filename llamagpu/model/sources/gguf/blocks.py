"""Tensor types of GGUF, repacked to affine groups: w = scale · q + bias, exactly.

The layouts of blocks are those of ggml (``ggml-common.h``); ``gguf.quants`` has the same in numpy, as a test shows.
Scales that are products of two numbers (the K types) need float32 to be exact; others stay float16. Values of 2 and 3
bits are held in 4, those of 5 and 6 bits in 8. The 4-bit values of IQ4_NL and IQ4_XS, into which llama.cpp puts tensors
whose rows the K types do not divide, index a table of numbers of 8 bits, and are held as these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Affine
from llamagpu.model.sources.source import Format, Quantized

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
Parts = tuple[Array, Array, Array | None]  # q [n, values of a block], scales and biases [n, groups of a block]
FLOATS: dict[str, tuple[str, Any]] = {
    "F32": ("f32", np.float32),
    "F16": ("f16", np.float16),
    "BF16": ("bf16", np.uint16),
}


@dataclass(frozen=True)
class Blocks:
    """A quantized type: the values and bytes of a block, the format that holds it, and the reader of blocks
    [n, bytes]. Biases that the format implies are None."""

    values: int
    nbytes: int
    affine: Affine
    read: Callable[[Bytes], Parts]


def _f16(blocks: Bytes, at: int) -> Array:
    """The float16 at a byte of each block, [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)


def _nibbles(part: Bytes) -> Array:
    """Values of 4 bits: the low halves of the bytes, then the high ones."""
    return np.concatenate([part & 15, part >> 4], axis=1)


def _fifth_bits(blocks: Bytes, at: int) -> Array:
    """The highest bits of 32 values of 5 bits, which lie in 4 bytes; shifted to their place."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4


def _q8_0(b: Bytes) -> Parts:
    return b[:, 2:] ^ 128, _f16(b, 0), None


def _q4_0(b: Bytes) -> Parts:
    return _nibbles(b[:, 2:]), _f16(b, 0), None


def _q4_1(b: Bytes) -> Parts:
    return _nibbles(b[:, 4:]), _f16(b, 0), _f16(b, 2)


def _q5_0(b: Bytes) -> Parts:
    return (_nibbles(b[:, 6:]) | _fifth_bits(b, 2)) + np.uint8(112), _f16(b, 0), None


def _q5_1(b: Bytes) -> Parts:
    return _nibbles(b[:, 8:]) | _fifth_bits(b, 4), _f16(b, 0), _f16(b, 2)


def _quarters(part: Bytes, bits: int, mask: int) -> Array:
    """Fields of ``bits`` bits: for each run of 32 bytes the lowest fields of all, then the next ones."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = part.reshape(len(part), -1, 1, 32) >> shifts & np.uint8(mask)
    return fields.reshape(len(part), -1)


def _q2_k(b: Bytes) -> Parts:
    scale, low = _f16(b, 80).astype(np.float32), _f16(b, 82).astype(np.float32)
    return _quarters(b[:, 16:80], 2, 3), scale * (b[:, :16] & 15), -low * (b[:, :16] >> 4)


def _q3_k(b: Bytes) -> Parts:
    low, high = b[:, 96:104], b[:, 104:108]
    fours = np.concatenate([low & 15, low >> 4], axis=1)
    twos = np.concatenate([high >> s & 3 for s in (0, 2, 4, 6)], axis=1)
    scales = (fours | twos << 4).astype(np.int8) - np.int8(32)
    mask = np.concatenate([b[:, :32] >> s & 1 for s in range(8)], axis=1)
    # q - 4 where the bit of the mask is clear, q where it is set; the format's zero is 8.
    return _quarters(b[:, 32:96], 2, 3) + (mask << 2) + np.uint8(4), _f16(b, 108).astype(np.float32) * scales, None


def _scales_of_6_bits(b: Bytes) -> tuple[Array, Array]:
    """The 8 scales and 8 minima of a Q4_K or Q5_K block, 6 bits each in 12 bytes."""
    first, second, third = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    return _f16(b, 0).astype(np.float32) * scales, -_f16(b, 2).astype(np.float32) * minima


def _q4_k(b: Bytes) -> Parts:
    return _quarters(b[:, 16:], 4, 15), *_scales_of_6_bits(b)


def _q5_k(b: Bytes) -> Parts:
    high = np.concatenate([b[:, 16:48] >> s & 1 for s in range(8)], axis=1)
    return _quarters(b[:, 48:], 4, 15) | high << 4, *_scales_of_6_bits(b)


def _q6_k(b: Bytes) -> Parts:
    low = (b[:, :128].reshape(len(b), 2, 1, 64) >> np.array([[0], [4]], np.uint8) & 15).reshape(len(b), -1)
    scales = np.ascontiguousarray(b[:, 192:208]).view(np.int8)
    return low | _quarters(b[:, 128:192], 2, 3) << 4, _f16(b, 208).astype(np.float32) * scales, None


_TABLE = (
    np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]) + 128
)  # ggml's kvalues_iq4nl


def _iq4_nl(b: Bytes) -> Parts:
    return _TABLE.astype(np.uint8)[_nibbles(b[:, 2:])], _f16(b, 0), None


def _iq4_xs(b: Bytes) -> Parts:
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(len(b), 8)
    high = np.ascontiguousarray(b[:, 2:4]).view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = _f16(b, 0).astype(np.float32) * ((low | high << 4).astype(np.float32) - 32)
    return _TABLE.astype(np.uint8)[_nibbles(b[:, 8:].reshape(-1, 16)).reshape(len(b), -1)], scales, None


BLOCKS = {
    "Q8_0": Blocks(32, 34, Affine(8, 32, "f16", 128), _q8_0),
    "Q4_0": Blocks(32, 18, Affine(4, 32, "f16", 8), _q4_0),
    "Q4_1": Blocks(32, 20, Affine(4, 32, "f16"), _q4_1),
    "Q5_0": Blocks(32, 22, Affine(8, 32, "f16", 128), _q5_0),
    "Q5_1": Blocks(32, 24, Affine(8, 32, "f16"), _q5_1),
    "Q2_K": Blocks(256, 84, Affine(4, 16, "f32"), _q2_k),
    "Q3_K": Blocks(256, 110, Affine(4, 16, "f32", 8), _q3_k),
    "Q4_K": Blocks(256, 144, Affine(4, 32, "f32"), _q4_k),
    "Q5_K": Blocks(256, 176, Affine(8, 32, "f32"), _q5_k),
    "Q6_K": Blocks(256, 210, Affine(8, 16, "f32", 32), _q6_k),
    "IQ4_NL": Blocks(32, 18, Affine(8, 32, "f16", 128), _iq4_nl),
    "IQ4_XS": Blocks(256, 136, Affine(8, 32, "f32", 128), _iq4_xs),
}


def stored_format(dtype: str) -> Format:
    """The format that holds a GGUF type exactly; the name in lower case for a type that is not supported."""
    if dtype in BLOCKS:
        return BLOCKS[dtype].affine
    return FLOATS[dtype][0] if dtype in FLOATS else dtype.lower()


def repack(rows: Bytes, dtype: str) -> Quantized:
    """Rows of blocks (uint8 [rows, bytes]) as packed values, scales and biases."""
    kind = BLOCKS[dtype]
    with np.errstate(
        all="ignore"
    ):  # scales of a broken file may be anything; the engine finds logits that are not finite
        q, scales, biases = kind.read(rows.reshape(-1, kind.nbytes))
        if biases is None:
            assert kind.affine.zero is not None
            biases = scales * scales.dtype.type(-kind.affine.zero)
    data = np.ascontiguousarray(q if kind.affine.bits == 8 else q[:, ::2] | q[:, 1::2] << 4, np.uint8)
    packed = data.reshape(len(rows), -1).view(np.uint32)
    return packed, scales.reshape(len(rows), -1), biases.reshape(len(rows), -1)
