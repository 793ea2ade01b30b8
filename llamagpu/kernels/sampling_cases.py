"""The registry's entry of sampling: the whole chain, with all that it writes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llamagpu.kernels.entry import F64, Arrays, Bench, Dims, Expected, Kernel, Outputs
from llamagpu.kernels.logits_cases import (
    SETTINGS,
    SUM_SCALE,
    case_sampler,
    history,
    make_logits,
    make_masks,
    random_sizes,
    row_settings,
)
from llamagpu.kernels.sampling import choose
from llamagpu.kernels.sampling_reference import choose_row, log_sum, mask_row, process_row
from llamagpu.kernels.step import NO_END, STOPS, Settings, no_cuts, step_rows


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    rows, vocab = d["rows"], d["vocab"]
    a: Arrays = {"logits": make_logits(rng, d)} | history(rng, rows + 1, vocab)
    if d["settings"] == "greedy":
        shares = np.where(np.arange(rows) % 2, 2 / vocab, 0.25)[:, None]  # ties, few or many: the lower id wins
        a["logits"][rng.random((rows, vocab)) < shares] = np.float32(a["logits"].max() + 1)
    if d.get("nan"):
        bad = rng.permutation(rows)[: -(-rows // 2)]
        a["logits"][bad, rng.integers(0, vocab, len(bad))] = rng.choice([np.nan, np.inf, -np.inf], len(bad))
    if not SETTINGS[d["settings"]].biased:
        a["bias"][:] = 0
    if d.get("masked"):
        a["masks"] = make_masks(rng, d)
    a["rows"] = step_rows([0] * rows, rng.integers(0, 500, rows), rng.permutation(rows))
    a["rows"][:, 3] = rng.integers(0, 999, rows)
    a["last"] = np.where(rng.random(rows) < 0.5, NO_END, a["rows"][:, 1] + rng.integers(0, 4, rows)).astype(np.uint32)
    a["stops"] = rng.integers(0, vocab, (rows, STOPS)).astype(np.uint32)
    a["stop_count"] = np.asarray(rng.integers(0, STOPS + 1, rows))
    best = np.where(np.isnan(a["logits"]), -np.inf, a["logits"]).argmax(axis=1)
    often = rng.random(rows) < 0.6  # the likeliest token is a stop id
    a["stops"][often, np.maximum(a["stop_count"], 1)[often] - 1] = best[often]
    return a


def _run(bench: Bench, a: Arrays, d: Dims) -> Outputs:
    rows, plain = d["rows"], SETTINGS[d["settings"]].plain
    draws = [
        row_settings(d, r).draw(plain, int(a["last"][r]), a["stops"][r, : a["stop_count"][r]].tolist())
        for r in range(rows)
    ]
    given = {}
    if "masks" in a:
        given["masks"] = bench.put(a["masks"], "u32")
    if plain:  # the draw has the temperature
        given["settings"] = bench.put(np.stack([Settings().pack()] * rows), "u32")
    sampler = case_sampler(
        bench,
        d,
        draws=bench.put(np.stack(draws), "u32"),
        cuts=bench.change(no_cuts(rows), "u32"),
        counts=bench.change(a["counts"], "u32"),
        bias=bench.put(a["bias"]),
        **given,
    )
    state = bench.change(a["rows"], "u32")
    result = choose(bench.put(a["logits"]), state, sampler, plain, "masks" in a).numpy()
    logprob = np.ascontiguousarray(result[:, 2:3]).view(np.float32)
    return {"result": result[:, [0, 1, 3]], "logprob": logprob, "rows": state, "counts": sampler.counts}


def reference(a: Arrays, d: Dims) -> dict[str, Expected]:
    """The token chosen in float64, whether a logit is not finite and the row ends; the token's log-probability; the
    state of the next step and the counts. What depends on 1e-5 of a margin or a threshold is not compared: its scale is
    infinite."""
    rows, idle = d["rows"], d["rows"]
    result, state, counts = np.zeros((rows, 3)), a["rows"].astype(np.float64), a["counts"].astype(np.float64)
    free = np.zeros(rows, bool)  # rows whose token is open
    for r, (_, position, slot, _) in enumerate(a["rows"].astype(np.int64)):
        token, free[r] = _chosen(a, d, r)
        finite = np.isfinite(a["logits"][r]).all()
        stops = a["stops"][r, : a["stop_count"][r]]
        over = token in stops or position + 1 >= a["last"][r] or not finite
        result[r], counts[slot, token] = (token, not finite, over), counts[slot, token] + 1
        state[r, :3] = (token, 0, idle) if over else (token, position + 1, slot)
    open_rows = np.where(free, np.inf, 0.0)[:, None]
    flagged = result[:, 1:2] != 0
    token_scale = np.where(flagged, np.inf, open_rows)
    counts_scale = np.zeros_like(counts)
    counts_scale[a["rows"][:, 2]] = token_scale
    logprob, size = _logprobs(a, d, result[:, 0].astype(np.int64))
    return {
        "result": Expected(result, np.hstack([token_scale, np.zeros_like(open_rows), np.where(flagged, 0, open_rows)])),
        "logprob": Expected(logprob, size + token_scale),
        "rows": Expected(state, np.hstack([token_scale, *[np.where(flagged, 0, open_rows)] * 2, 0 * open_rows])),
        "counts": Expected(counts, counts_scale),
    }


def _chosen(a: Arrays, d: Dims, r: int) -> tuple[int, bool]:
    """The token of a row, and whether rounding may choose another."""
    s, (position, slot) = row_settings(d, r), a["rows"][r, 1:3]
    logits = np.where(np.isfinite(a["logits"][r]), a["logits"][r], np.float32(-1e30))
    scores = process_row(logits, s, a["counts"][slot], a["bias"][slot])
    if "masks" in a:
        scores = mask_row(scores, a["masks"][r])
    token, margin = choose_row(scores, s, int(position) + 1)
    slacks = (-1e-5, 1e-5) if s.temperature else ()  # an arg max has no thresholds
    near = {token} | {choose_row(scores, s, int(position) + 1, slack)[0] for slack in slacks}
    return token, (0 < margin < 1e-5) or near != {token}


def _logprobs(a: Arrays, d: Dims, tokens: npt.NDArray[np.int64]) -> tuple[F64, F64]:
    """The tokens' log-probabilities (their logits if the settings are plain), and the scale of the error."""
    logits = np.where(np.isfinite(a["logits"]), a["logits"], 0).astype(np.float64)
    chosen = np.take_along_axis(logits, tokens[:, None], axis=1)
    if SETTINGS[d["settings"]].plain:
        return chosen, np.zeros_like(chosen)
    sums = log_sum(logits)
    return chosen - sums, np.abs(chosen) + np.abs(sums) + SUM_SCALE


SAMPLE = Kernel(
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
        {"rows": 16, "vocab": 5000, "settings": "greedy", "nan": True},
        {"rows": 16, "vocab": 5000, "settings": "temperature", "nan": True},
        {"rows": 24, "vocab": 5000, "settings": "greedy", "masked": True},
        {"rows": 24, "vocab": 105, "settings": "temperature", "masked": True},
        {"rows": 24, "vocab": 105, "settings": "all", "masked": True},
        {"rows": 1, "vocab": 300000, "settings": "greedy"},
        {"rows": 65541, "vocab": 3, "settings": "greedy"},
        *({"rows": 24, "vocab": 105, "settings": name} for name in SETTINGS),
    ),
    random=lambda rng: {
        **random_sizes(rng),
        "settings": list(SETTINGS)[rng.integers(len(SETTINGS))],
        "masked": bool(rng.integers(2)),
    },
)
