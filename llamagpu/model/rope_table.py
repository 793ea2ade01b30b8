"""Rotary angles: a table made on the host, because WGSL guarantees too little accuracy of sin and cos."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llamagpu.model.config import Rope

Floats = npt.NDArray[np.float32]


def inverse_frequencies(rope: Rope, head_dim: int) -> Floats:
    """Angle per position for every pair, float32 [head_dim / 2], in the arithmetic of transformers.

    ``linear`` divides by the factor. ``llama3`` divides long wavelengths, keeps short ones and blends between
    (Llama 3.1's scheme, as in transformers' ``_compute_llama3_parameters``).
    """
    one = np.float32(1)
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverse: Floats = one / np.power(np.float32(rope.rope_theta), exponent)
    factor = np.float32(rope.factor)
    if rope.rope_type == "linear":
        return inverse / factor
    if rope.rope_type != "llama3":
        return inverse
    original = rope.original_max_position_embeddings
    wavelength = np.float32(2 * np.pi) / inverse
    scaled = np.where(wavelength > np.float32(original / rope.low_freq_factor), inverse / factor, inverse)
    blend = (np.float32(original) / wavelength - np.float32(rope.low_freq_factor)) / np.float32(
        rope.high_freq_factor - rope.low_freq_factor
    )
    smooth = (one - blend) * scaled / factor + blend * scaled
    between = (wavelength >= np.float32(original / rope.high_freq_factor)) & (
        wavelength <= np.float32(original / rope.low_freq_factor)
    )
    blended: Floats = np.where(between, smooth, scaled).astype(np.float32)
    return blended


def rope_table(rope: Rope, head_dim: int, positions: int) -> Floats:
    """Cosine and sine side by side, float32 [positions, head_dim].

    The angle is a float32 product, as in transformers. Its cosine and sine are taken in float64 and rounded once.
    """
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse_frequencies(rope, head_dim)
    wide = angles.astype(np.float64)
    return np.stack([np.cos(wide), np.sin(wide)], axis=-1).reshape(positions, head_dim).astype(np.float32)
