"""The numpy reference of sampling, which agrees token for token."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.kernels.step import Settings

NEVER = -1e30  # the score of a token outside the mask


def gumbel(seed: int, position: npt.ArrayLike, token: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The kernel's noise in float64: w by pcg3d (Jarzynski and Olano 2020) of the key, then -log(-log(1 - w))."""
    with np.errstate(over="ignore"):
        x, y, z = (
            np.asarray(v, np.uint32) * np.uint32(1664525) + np.uint32(1013904223)
            for v in np.broadcast_arrays(seed, position, token)
        )
        for sweep in range(2):
            x = x + y * z
            y = y + z * x
            z = z + x * y
            if sweep == 0:
                x, y, z = (v ^ (v >> np.uint32(16)) for v in (x, y, z))
    w = ((x >> np.uint32(9)).astype(np.float64) + 0.5) * 2.0**-23
    return -np.log(-np.log1p(-w))


def process_row(
    logits: npt.NDArray[Any], s: Settings, counts: npt.NDArray[Any], bias: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """One row's scores: penalties, bias, temperature."""
    x = logits.astype(np.float64)
    made = (counts & np.uint32(0x7FFFFFFF)).astype(np.float64)
    x = np.where(counts != 0, np.where(x > 0, x / s.repetition_penalty, x * s.repetition_penalty), x)
    x = x - (made > 0).astype(np.float64) * (s.presence_penalty + s.frequency_penalty * made) + bias
    scores: npt.NDArray[np.float64] = x / np.float64(np.float32(s.temperature)) if s.temperature else x
    return scores


def mask_row(scores: npt.NDArray[np.float64], mask: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """One row's scores with its mask, uint32 [words]."""
    allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(scores)].astype(bool)
    return np.where(allowed | ~np.isfinite(scores), scores, NEVER)


def log_sum(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """log Σ e^logit of every row [rows, vocab]: float64 [rows, 1]."""
    top = logits.max(axis=-1, keepdims=True).astype(np.float64)
    out: npt.NDArray[np.float64] = top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    return out


def allowed_tokens(scores: npt.NDArray[np.float64], s: Settings, slack: float = 0.0) -> npt.NDArray[np.int64]:
    """Ids that pass top-k, top-p and min-p, best first; ``slack`` moves the thresholds of the last two."""
    order = np.lexsort((np.arange(len(scores)), -scores))
    if not s.temperature:
        return order
    if s.top_k:
        order = order[: s.top_k]
    if s.top_p < 1:
        p = np.exp(scores[order] - scores[order[0]])
        reached = np.cumsum(p / p.sum()) >= np.float32(s.top_p) + slack
        order = order[: int(np.argmax(reached)) + 1] if reached.any() else order
    if s.min_p:
        order = order[scores[order] >= scores[order[0]] + np.log(np.float32(s.min_p)) + slack]
    return order


def choose_row(scores: npt.NDArray[np.float64], s: Settings, position: int, slack: float = 0.0) -> tuple[int, float]:
    """The token that the kernels choose for a row, and its margin over the next one."""
    ids = allowed_tokens(scores, s, slack)
    value = scores[ids] + (gumbel(s.seed, position, ids) if s.temperature else 0)
    best = np.lexsort((ids, -value))[:2]
    margin = value[best[0]] - value[best[1]] if len(best) > 1 else np.inf
    return int(ids[best[0]]), float(margin)
