"""Rotary angles: a table made on the host, because WGSL guarantees too little accuracy of sin and cos."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from llamagpu.model.rope import Rope

Floats = npt.NDArray[np.float32]
_ONE = np.float32(1)


def inverse_frequencies(rope: Rope, positions: int) -> Floats:
    """Angle per position for every rotated pair, float32 [rotary / 2], in the arithmetic of transformers
    (``modeling_rope_utils``).

    ``linear`` divides by the factor. ``dynamic`` changes nothing up to the model's context; ``ntk_alpha`` (Hunyuan)
    raises theta. ``longrope`` divides by its long factors if ``positions``, the context, exceeds the original one, and
    by the short ones otherwise.
    """
    exponent = np.arange(0, rope.rotary, 2, dtype=np.float32) / np.float32(rope.rotary)
    theta = rope.rope_theta
    if rope.alpha:
        theta *= rope.alpha ** (rope.rotary / (rope.rotary - 2))
    powers: Floats = np.power(np.float32(theta), exponent)
    if rope.rope_type == "longrope":
        long = positions > rope.original_max_position_embeddings
        return _ONE / (np.array(rope.long_factor if long else rope.short_factor, np.float32) * powers)
    inverse: Floats = _ONE / powers
    if rope.rope_type == "linear":
        return inverse / np.float32(rope.factor)
    if rope.rope_type == "yarn":
        return _yarn(rope, powers)
    return _llama3(rope, inverse) if rope.rope_type == "llama3" else inverse


def _llama3(rope: Rope, inverse: Floats) -> Floats:
    """Divide long wavelengths, keep short ones and blend between (Llama 3.1)."""
    factor, original = np.float32(rope.factor), rope.original_max_position_embeddings
    wavelength = np.float32(2 * np.pi) / inverse
    scaled = np.where(wavelength > np.float32(original / rope.low_freq_factor), inverse / factor, inverse)
    blend = (np.float32(original) / wavelength - np.float32(rope.low_freq_factor)) / np.float32(
        rope.high_freq_factor - rope.low_freq_factor
    )
    smooth = (_ONE - blend) * scaled / factor + blend * scaled
    between = (wavelength >= np.float32(original / rope.high_freq_factor)) & (
        wavelength <= np.float32(original / rope.low_freq_factor)
    )
    blended: Floats = np.where(between, smooth, scaled).astype(np.float32)
    return blended


def _yarn(rope: Rope, powers: Floats) -> Floats:
    """Keep the frequencies of fast pairs, divide those of slow ones, and blend between (arXiv:2309.00071)."""

    def pair(rotations: float) -> float:
        """The pair that turns this often within the original context."""
        turns = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
        return rope.rotary * math.log(turns) / (2 * math.log(rope.rope_theta))

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary - 1)
    high += 0.001 if low == high else 0
    ramp = (np.arange(rope.rotary // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    keep = _ONE - np.clip(ramp, 0, 1)
    slow = _ONE / (np.float32(rope.factor) * powers)
    blended: Floats = (slow * (_ONE - keep) + (_ONE / powers) * keep).astype(np.float32)
    return blended


def rope_table(rope: Rope | None, head_dim: int, positions: int) -> Floats:
    """Cosine and sine of each pair side by side, float32 [positions, head_dim]; 1 and 0 for pairs that are not rotated.

    The angle is a float32 product, as in transformers. Its cosine and sine are taken in float64 and rounded once.
    """
    table = np.zeros((positions, head_dim // 2, 2), np.float32)
    table[..., 0] = 1
    if rope is not None:
        angles = np.arange(positions, dtype=np.float32)[:, None] * inverse_frequencies(rope, positions)
        wide = angles.astype(np.float64) * (-1 if rope.backwards else 1)
        rotated = np.stack([np.cos(wide), np.sin(wide)], axis=-1) * rope.attention_factor
        table[:, : rope.rotary // 2] = rotated
    return table.reshape(positions, head_dim)
