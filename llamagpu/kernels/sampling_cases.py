"""The registry's entries of sampling: each of its kernels alone, and the whole chain with all that it writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Tensor
from llamagpu.kernels.entry import F64, Arrays, Bench, Dims, Expected, Kernel, Outputs
from llamagpu.kernels.sampling import Sampler, choose, logits_process, logits_select, sampler_columns
from llamagpu.kernels.sampling_reference import allowed_tokens, choose_row, log_sum, process_row
from llamagpu.kernels.step import CUT_WORDS, LIKELY, NO_END, PROMPT_BIT, STOPS, Settings, no_cuts, step_rows

Words = npt.NDArray[np.uint32]
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
_SUM_SCALE = 4.0  # of log Σ e^logit: the rounding of a sum of many terms


def _logits(rng: np.random.Generator, d: Dims) -> npt.NDArray[np.float32]:
    return (rng.standard_normal((d["rows"], d["vocab"])) * 3).astype(np.float32)


def _history(rng: np.random.Generator, slots: int, vocab: int) -> Arrays:
    """Counts of tokens (two in six in the output, one in five in the prompt), and a bias for one in three."""
    counts = rng.integers(-3, 3, (slots, vocab)).clip(0).astype(np.uint32)
    counts[rng.random((slots, vocab)) < 0.2] |= PROMPT_BIT
    bias = np.where(rng.random((slots, vocab)) < 0.3, rng.standard_normal((slots, vocab)) * 2, 0)
    return {"counts": counts, "bias": bias.astype(np.float32)}


def _settings(d: Dims, row: int) -> Settings:
    """The settings of a row: those that the case names, or all kinds in turns."""
    named = SETTINGS[d["settings"]] if "settings" in d else list(SETTINGS.values())[row % len(SETTINGS)]
    likely = min(row % (LIKELY + 1), d["vocab"]) if d.get("likely") else 0
    return Settings(**{**vars(named), "seed": 7 + row, "logprobs": likely})


def _sampler(bench: Bench, d: Dims, **given: Tensor) -> Sampler:
    """The buffers of a case: those given, the settings of its rows, and empty ones."""
    columns = sampler_columns(d["vocab"]) | {"counts": d["vocab"], "bias": d["vocab"]}
    floats = ("scores", "bias")
    missing = {name: n for name, n in columns.items() if name not in given and name != "settings"}
    found = {name: bench.out((d["rows"], n), "f32" if name in floats else "u32") for name, n in missing.items()}
    settings = bench.put(np.stack([_settings(d, r).pack() for r in range(d["rows"])]), "u32")
    return Sampler(**found, **given, settings=settings)


# --- logits_process --------------------------------------------------------------------------


def _process_inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    rows, vocab = d["rows"], d["vocab"]
    state = step_rows([0] * rows, rng.integers(0, 500, rows), rng.permutation(rows))
    return {"logits": _logits(rng, d), "rows": state} | _history(rng, rows, vocab)


def _process_run(bench: Bench, a: Arrays, d: Dims) -> Outputs:
    counts, bias = bench.put(a["counts"], "u32"), bench.put(a["bias"])
    sampler = _sampler(bench, d, counts=counts, bias=bias)
    return logits_process(bench.put(a["logits"]), bench.put(a["rows"], "u32"), sampler)


def process_reference(a: Arrays, d: Dims) -> Expected:
    """The scores in float64, on the scale of all terms: a sum of small difference keeps the error of its terms."""
    value, scale = np.zeros(a["logits"].shape), np.zeros(a["logits"].shape)
    for r, slot in enumerate(a["rows"][:, 2]):
        s, counts, bias = _settings(d, r), a["counts"][slot], a["bias"][slot]
        value[r] = process_row(a["logits"][r], s, counts, bias)
        made = counts & ~PROMPT_BIT
        size = np.abs(a["logits"][r]) * max(s.repetition_penalty, 1) + np.abs(bias)
        size += (made > 0) * (abs(s.presence_penalty) + abs(s.frequency_penalty) * made)
        scale[r] = size / (s.temperature or 1)
    return Expected(value, scale)


# --- logits_select ---------------------------------------------------------------------------


def _select_inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    logits, scores = _logits(rng, d), _logits(rng, d)
    for values in (logits, scores):
        values[::2] = np.round(values[::2] * 2) / 2  # many equal scores, also at the cuts
    return {"logits": logits, "scores": scores}


def _ordered(values: npt.NDArray[Any]) -> Words:
    """Keys that order as float32 numbers do."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint32)


def _select_run(bench: Bench, a: Arrays, d: Dims) -> Outputs:
    sampler = _sampler(bench, d, scores=bench.put(a["scores"]), cuts=bench.out((d["rows"], CUT_WORDS), "u32"))
    logits_select(bench.put(a["logits"]), sampler)
    cuts, likely = sampler.cuts.numpy().astype(np.uint32), sampler.likely.numpy()
    keys, ids = _ordered(a["scores"]), np.arange(d["vocab"], dtype=np.uint32)
    inside = (keys > cuts[:, :1]) | ((keys == cuts[:, :1]) & (ids <= cuts[:, 1:2]))
    return {
        "kept": inside,
        "log_sum": cuts[:, 2:3].view(np.float32),
        "unused": cuts[:, 3:],
        "likely": likely[:, 0::2],
        "logprobs": np.ascontiguousarray(likely[:, 1::2]).view(np.float32),
    }


def select_reference(a: Arrays, d: Dims) -> dict[str, Expected]:
    """The tokens inside the cut, except where 1e-5 of a threshold decides; log Σ e^logit; the likeliest tokens."""
    rows, vocab = d["rows"], d["vocab"]
    kept, near = np.zeros((rows, vocab)), np.zeros((rows, vocab))
    likely, logprobs, sizes = (np.zeros((rows, LIKELY)) for _ in range(3))
    sums = log_sum(a["logits"])
    for r in range(rows):
        s = _settings(d, r)
        kept[r, allowed_tokens(a["scores"][r].astype(np.float64), s)] = 1
        narrow, wide = (allowed_tokens(a["scores"][r].astype(np.float64), s, slack) for slack in (1e-5, -1e-5))
        near[r, np.setxor1d(narrow, wide)] = np.inf
        best = np.lexsort((np.arange(vocab), -a["logits"][r]))[: s.logprobs]
        likely[r, : len(best)] = best
        logprobs[r, : len(best)] = a["logits"][r, best] - sums[r]
        sizes[r, : len(best)] = np.abs(a["logits"][r, best]) + np.abs(sums[r]) + _SUM_SCALE
    return {
        "kept": Expected(kept, near),
        "log_sum": Expected(sums, np.abs(sums) + _SUM_SCALE),
        "unused": Expected(np.zeros((rows, 1)), np.zeros((rows, 1))),
        "likely": Expected(likely, np.zeros_like(likely)),
        "logprobs": Expected(logprobs, sizes),
    }


# --- the whole chain -------------------------------------------------------------------------


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    rows, vocab = d["rows"], d["vocab"]
    a: Arrays = {"logits": _logits(rng, d)} | _history(rng, rows + 1, vocab)
    if d["settings"] == "greedy":
        for _ in range(3):  # a tie: the lower id wins
            a["logits"][np.arange(rows), rng.integers(0, vocab, rows)] = np.float32(a["logits"].max() + 1)
    if d.get("nan"):
        bad = rng.permutation(rows)[: -(-rows // 2)]
        a["logits"][bad, rng.integers(0, vocab, len(bad))] = rng.choice([np.nan, np.inf, -np.inf], len(bad))
    if not SETTINGS[d["settings"]].biased:
        a["bias"][:] = 0
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
        _settings(d, r).draw(plain, int(a["last"][r]), a["stops"][r, : a["stop_count"][r]].tolist())
        for r in range(rows)
    ]
    sampler = _sampler(
        bench,
        d,
        draws=bench.put(np.stack(draws), "u32"),
        cuts=bench.change(no_cuts(rows), "u32"),
        counts=bench.change(a["counts"], "u32"),
        bias=bench.put(a["bias"]),
    )
    state = bench.change(a["rows"], "u32")
    result = choose(bench.put(a["logits"]), state, sampler, plain).numpy()
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
    s, (position, slot) = _settings(d, r), a["rows"][r, 1:3]
    logits = np.where(np.isfinite(a["logits"][r]), a["logits"][r], np.float32(-1e30))
    scores = process_row(logits, s, a["counts"][slot], a["bias"][slot])
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
    return chosen - sums, np.abs(chosen) + np.abs(sums) + _SUM_SCALE


# --- registry --------------------------------------------------------------------------------


def _random(rng: np.random.Generator) -> Dims:
    return {"rows": int(rng.integers(1, 9)), "vocab": int(rng.integers(1, 20000))}


PROCESS = Kernel(
    "logits_process",
    _process_inputs,
    _process_run,
    process_reference,
    cases=(
        {"rows": 1, "vocab": 1, "settings": "all"},
        {"rows": 20, "vocab": 257},
        {"rows": 10, "vocab": 2048},
        {"rows": 1, "vocab": 128256, "settings": "all"},
        {"rows": 65541, "vocab": 3},
    ),
    random=_random,
)
SELECT = Kernel(
    "logits_select",
    _select_inputs,
    _select_run,
    select_reference,
    cases=(
        {"rows": 1, "vocab": 1, "settings": "all"},
        {"rows": 10, "vocab": 41, "likely": True},
        {"rows": 40, "vocab": 1027, "likely": True},
        {"rows": 20, "vocab": 20000},
        {"rows": 2, "vocab": 128256, "settings": "all", "likely": True},
    ),
    random=lambda rng: {**_random(rng), "likely": bool(rng.integers(2))},
)
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
        {"rows": 1, "vocab": 300000, "settings": "greedy"},
        {"rows": 65541, "vocab": 3, "settings": "greedy"},
        *({"rows": 24, "vocab": 105, "settings": name} for name in SETTINGS),
    ),
    random=lambda rng: {**_random(rng), "settings": list(SETTINGS)[rng.integers(len(SETTINGS))]},
)
