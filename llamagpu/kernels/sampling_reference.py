"""The numpy reference of sampling, which agrees token for token, and its entry in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Tensor
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel
from llamagpu.kernels.sampling import Sampler, choose, sampler_columns
from llamagpu.kernels.step import PROMPT_BIT, Settings, no_cuts, step_rows


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


# --- registry --------------------------------------------------------------------------------

SETTINGS: Mapping[str, Settings] = {
    "greedy": Settings(),
    "temperature": Settings(temperature=0.8),
    "top_k": Settings(temperature=1.0, top_k=40),
    "top_p": Settings(temperature=1.0, top_p=0.9),
    "top_k_p": Settings(temperature=1.0, top_k=50, top_p=0.9999999),  # rounded masses may stay below top_p
    "min_p": Settings(temperature=1.2, min_p=0.05),
    "repetition": Settings(repetition_penalty=1.3),
    "frequency": Settings(temperature=0.7, presence_penalty=0.5, frequency_penalty=0.2),
    "bias": Settings(temperature=1.0, biased=True),
    "all": Settings(
        temperature=0.9,
        top_k=50,
        top_p=0.95,
        min_p=0.02,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        biased=True,
    ),
}


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    rows, vocab = d["rows"], d["vocab"]
    logits = (rng.standard_normal((rows, vocab)) * 3).astype(np.float32)
    if d["settings"] == "greedy" and vocab > 2:
        logits[:, -1] = logits[:, rng.integers(vocab)] = logits.max() + 1  # a tie: the lower id wins
    if d.get("nan"):
        logits[0, 0] = np.nan
    counts = rng.integers(0, 3, (rows, vocab)).astype(np.uint32)
    counts[rng.random((rows, vocab)) < 0.2] |= PROMPT_BIT
    bias = np.where(rng.random((rows, vocab)) < 0.3, rng.standard_normal((rows, vocab)) * 2, 0).astype(np.float32)
    if not SETTINGS[d["settings"]].biased:
        bias[:] = 0
    state = step_rows([0] * rows, rng.integers(0, 500, rows), np.arange(rows))
    return {"logits": logits, "rows": state, "counts": counts, "bias": bias}


def _row_settings(d: Dims, row: int) -> Settings:
    s = SETTINGS[d["settings"]]
    return Settings(**{**vars(s), "seed": 7 + row})


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    rows, vocab = d["rows"], d["vocab"]
    settings = [_row_settings(d, r) for r in range(rows)]
    plain = settings[0].plain
    columns = sampler_columns(vocab)
    sampler = Sampler(
        scores=bench.out((rows, columns["scores"])),
        settings=bench.put(np.stack([s.pack() for s in settings]), "u32"),
        draws=bench.put(np.stack([s.draw(plain) for s in settings]), "u32"),
        cuts=bench.put(no_cuts(rows), "u32"),
        best=bench.out((rows, columns["best"]), "u32"),
        result=bench.out((rows, columns["result"]), "u32"),
        likely=bench.out((rows, columns["likely"]), "u32"),
        counts=bench.put(a["counts"], "u32"),
        bias=bench.put(a["bias"]),
    )
    result = choose(bench.put(a["logits"]), bench.put(a["rows"], "u32"), sampler, plain)
    chosen = bench.out((rows, 2), "u32")
    chosen.write(result.numpy()[:, :2])
    return chosen


def reference(a: Arrays, d: Dims) -> Expected:
    """The token chosen in float64, and whether a logit is not finite. A row whose choice depends on 1e-5 of a margin or
    a threshold is not compared: its scale is infinite."""
    value, scale = np.zeros((d["rows"], 2)), np.zeros((d["rows"], 2))
    for r in range(d["rows"]):
        s, position = _row_settings(d, r), int(a["rows"][r, 1]) + 1
        finite = np.isfinite(a["logits"][r]).all()
        logits = np.where(np.isnan(a["logits"][r]), np.float32(-1e30), a["logits"][r])
        scores = process_row(logits, s, a["counts"][r], a["bias"][r])
        token, margin = choose_row(scores, s, position)
        slacks = (-1e-5, 1e-5) if s.temperature else ()  # an arg max has no thresholds
        near = {token} | {choose_row(scores, s, position, slack)[0] for slack in slacks}
        value[r] = token, not finite
        if (margin < 1e-5 and margin > 0) or near != {token}:
            scale[r, 0] = np.inf
    return Expected(value, scale)


def _random(rng: np.random.Generator) -> Dims:
    sizes = {"rows": int(rng.integers(1, 9)), "vocab": int(rng.integers(1, 20000))}
    return sizes | {"settings": list(SETTINGS)[rng.integers(len(SETTINGS))]}


KERNEL = Kernel(
    "sample",
    _inputs,
    _run,
    reference,
    cases=(
        {"rows": 1, "vocab": 1, "settings": "greedy"},
        {"rows": 1, "vocab": 1, "settings": "all"},
        {"rows": 3, "vocab": 50257, "settings": "greedy"},
        {"rows": 2, "vocab": 128256, "settings": "temperature"},
        {"rows": 2, "vocab": 128256, "settings": "all"},
        {"rows": 2, "vocab": 300, "settings": "greedy", "nan": True},
        {"rows": 65540, "vocab": 3, "settings": "greedy"},
        *({"rows": 8, "vocab": 105, "settings": name} for name in SETTINGS),
    ),
    random=_random,
    tolerance=0.0,
)
