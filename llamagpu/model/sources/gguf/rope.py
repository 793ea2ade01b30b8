"""Rotary embedding in GGUF metadata, as config.json has it: ``rope_parameters``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from llamagpu.model.sources.gguf.metadata import Metadata

_THETAS = (1e-3, 1e12)
_MOST_ROTARY = 4096  # elements of a head
_FITS = 1e-5  # relative; converters compute the factors in float32
# The values of all published models with rope_type llama3, but for ``factor``.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def add_rope(m: Metadata, c: dict[str, Any], read: Callable[[str], list[float]]) -> None:
    """Set ``rope_parameters``.

    Args:
        read: the values of a tensor by name; empty if there is none.

    Raises:
        UnsupportedModelError: the kind of scaling is not known.
    """
    theta = m.number("rope.freq_base", 10000.0)
    if not _THETAS[0] <= theta <= _THETAS[1]:
        raise m.bad("rope.freq_base", f"it must be from {_THETAS[0]:g} to {_THETAS[1]:g}")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    rotary = m.integer("rope.dimension_count", c["head_dim"], most=_MOST_ROTARY)
    if rotary != c["head_dim"]:
        rope["partial_rotary_factor"] = rotary / (c["head_dim"] or 1)
    kind = m.get("rope.scaling.type") or "linear"  # as llama.cpp takes a file without the key
    original = m.integer("rope.scaling.original_context_length", 0)
    factor = m.number("rope.scaling.factor", m.number("rope.scale_linear", 1.0))
    if kind == "linear":
        rope |= {"rope_type": "linear", "factor": factor} if factor not in (0.0, 1.0) else {}
    elif kind == "yarn":
        rope |= _yarn(m, factor, original)
    elif kind not in ("none", "longrope"):
        raise m.bad("rope.scaling.type", "supported are linear, yarn and longrope")
    short, long = read("rope_factors_short.weight"), read("rope_factors_long.weight")
    shared = read("rope_freqs.weight")
    if long:
        # longrope derives its factor for the attention from these lengths, as transformers does
        m.get("rope.scaling.attn_factor")
        rope |= {"rope_type": "longrope", "short_factor": short, "long_factor": long}
        rope["original_max_position_embeddings"] = original or c["max_position_embeddings"]
        c["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    elif shared:
        if not all(0 < factor < math.inf for factor in shared):
            raise m.bad("rope.dimension_count", "the tensor rope_freqs.weight must have numbers above 0")
        rope |= _factors(rope["rope_theta"], rotary, shared, c["max_position_embeddings"])
    c["rope_parameters"] = rope


def _yarn(m: Metadata, factor: float, original: int) -> dict[str, Any]:
    out = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": m.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": m.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    if m.number("rope.scaling.yarn_ext_factor", 1.0) != 1.0:
        raise m.bad("rope.scaling.yarn_ext_factor", "only 1 is supported")
    if m.has("rope.scaling.yarn_attn_factor"):
        out["attention_factor"] = m.number("rope.scaling.yarn_attn_factor")
    if m.number("rope.scaling.yarn_log_multiplier", 0.0):
        out |= dict.fromkeys(("mscale", "mscale_all_dim"), m.number("rope.scaling.yarn_log_multiplier"))
    return out


def _factors(theta: float, rotary: int, factors: list[float], positions: int) -> dict[str, Any]:
    """Divisors of the frequencies: llama3 scaling if its formula gives them, otherwise in the general form."""
    factor = max(factors)
    fitted = _llama3_divisors(theta, rotary, factor)
    if len(fitted) == len(factors) and np.allclose(fitted, factors, rtol=_FITS, atol=0):
        return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    general = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
    return general | {"original_max_position_embeddings": positions}


def _llama3_divisors(theta: float, rotary: int, factor: float) -> list[float]:
    """What llama3 scaling divides each frequency by (``_compute_llama3_parameters`` of transformers)."""
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    out = []
    for i in range(0, rotary, 2):
        turns = _LLAMA3["original_max_position_embeddings"] * theta ** (-i / rotary) / (2 * math.pi)
        smooth = (turns - low) / (high - low)
        out.append(1.0 if turns > high else factor if turns < low else 1 / ((1 - smooth) / factor + smooth))
    return out
