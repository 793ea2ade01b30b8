"""The registry's entries of the kernels before the draw: penalties, bias and temperature; top-k, top-p and min-p."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Tensor
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel, Outputs
from llamagpu.kernels.sampling import Sampler, logits_process, logits_select, mask_words, sampler_columns
from llamagpu.kernels.sampling_reference import NEVER, allowed_tokens, log_sum, mask_row, process_row
from llamagpu.kernels.step import CUT_WORDS, LIKELY, PROMPT_BIT, Settings, step_rows

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
SUM_SCALE = 4.0  # of log Σ e^logit: the rounding of a sum of many terms


def make_logits(rng: np.random.Generator, d: Dims) -> npt.NDArray[np.float32]:
    """Logits of a case, float32 [rows, vocab]."""
    return (rng.standard_normal((d["rows"], d["vocab"])) * 3).astype(np.float32)


def history(rng: np.random.Generator, slots: int, vocab: int) -> Arrays:
    """Counts of tokens (two in six in the output, one in five in the prompt), and a bias for one in three."""
    counts = rng.integers(-3, 3, (slots, vocab)).clip(0).astype(np.uint32)
    counts[rng.random((slots, vocab)) < 0.2] |= PROMPT_BIT
    bias = np.where(rng.random((slots, vocab)) < 0.3, rng.standard_normal((slots, vocab)) * 2, 0)
    return {"counts": counts, "bias": bias.astype(np.float32)}


def make_masks(rng: np.random.Generator, d: Dims) -> Words:
    """Masks that allow one token of each row, or a tenth of them: uint32 [rows, words]."""
    rows, vocab = d["rows"], d["vocab"]
    allowed = rng.random((rows, 32 * mask_words(vocab))) < np.where(np.arange(rows) % 2, 0.1, 0)[:, None]
    allowed[:, vocab:] = False
    allowed[np.arange(rows), rng.integers(0, vocab, rows)] = True
    return np.packbits(allowed, axis=1, bitorder="little").view(np.uint32)


def row_settings(d: Dims, row: int) -> Settings:
    """The settings of a row: those that the case names, or all kinds in turns."""
    named = SETTINGS[d["settings"]] if "settings" in d else list(SETTINGS.values())[row % len(SETTINGS)]
    likely = min(row % (LIKELY + 1), d["vocab"]) if d.get("likely") else 0
    return Settings(**{**vars(named), "seed": 7 + row, "logprobs": likely})


def case_sampler(bench: Bench, d: Dims, **given: Tensor) -> Sampler:
    """The buffers of a case: those given, the settings of its rows, and empty ones."""
    columns = sampler_columns(d["vocab"]) | {"counts": d["vocab"], "bias": d["vocab"]}
    floats = ("scores", "bias")
    settings = np.stack([row_settings(d, r).pack() for r in range(d["rows"])])
    given = {"settings": bench.put(settings, "u32")} | given
    missing = {name: n for name, n in columns.items() if name not in given}
    found = {name: bench.out((d["rows"], n), "f32" if name in floats else "u32") for name, n in missing.items()}
    return Sampler(**found, **given)


# --- logits_process --------------------------------------------------------------------------


def _process_inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    rows, vocab = d["rows"], d["vocab"]
    state = step_rows([0] * rows, rng.integers(0, 500, rows), rng.permutation(rows))
    a = {"logits": make_logits(rng, d), "rows": state} | history(rng, rows, vocab)
    return a | ({"masks": make_masks(rng, d)} if d.get("masked") else {})


def _process_run(bench: Bench, a: Arrays, d: Dims) -> Outputs:
    counts, bias = bench.put(a["counts"], "u32"), bench.put(a["bias"])
    masks = {"masks": bench.put(a["masks"], "u32")} if "masks" in a else {}
    sampler = case_sampler(bench, d, counts=counts, bias=bias, **masks)
    return logits_process(bench.put(a["logits"]), bench.put(a["rows"], "u32"), sampler, "masks" in a)


def process_reference(a: Arrays, d: Dims) -> Expected:
    """The scores in float64, on the scale of all terms: a sum of small difference keeps the error of its terms."""
    value, scale = np.zeros(a["logits"].shape), np.zeros(a["logits"].shape)
    for r, slot in enumerate(a["rows"][:, 2]):
        s, counts, bias = row_settings(d, r), a["counts"][slot], a["bias"][slot]
        value[r] = process_row(a["logits"][r], s, counts, bias)
        made = counts & ~PROMPT_BIT
        size = np.abs(a["logits"][r]) * max(s.repetition_penalty, 1) + np.abs(bias)
        size += (made > 0) * (abs(s.presence_penalty) + abs(s.frequency_penalty) * made)
        scale[r] = size / (s.temperature or 1)
        if "masks" in a:
            value[r] = mask_row(value[r], a["masks"][r])
            scale[r] = np.where(value[r] == NEVER, -NEVER, scale[r])
    return Expected(value, scale)


# --- logits_select ---------------------------------------------------------------------------


def _select_inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    logits, scores = make_logits(rng, d), make_logits(rng, d)
    for values in (logits, scores):
        values[::2] = np.round(values[::2] * 2) / 2  # many equal scores, also at the cuts
    return {"logits": logits, "scores": scores}


def _ordered(values: npt.NDArray[Any]) -> Words:
    """Keys that order as float32 numbers do."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint32)


def _select_run(bench: Bench, a: Arrays, d: Dims) -> Outputs:
    sampler = case_sampler(bench, d, scores=bench.put(a["scores"]), cuts=bench.out((d["rows"], CUT_WORDS), "u32"))
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
        s = row_settings(d, r)
        kept[r, allowed_tokens(a["scores"][r].astype(np.float64), s)] = 1
        narrow, wide = (allowed_tokens(a["scores"][r].astype(np.float64), s, slack) for slack in (1e-5, -1e-5))
        near[r, np.setxor1d(narrow, wide)] = np.inf
        best = np.lexsort((np.arange(vocab), -a["logits"][r]))[: s.logprobs]
        likely[r, : len(best)] = best
        logprobs[r, : len(best)] = a["logits"][r, best] - sums[r]
        sizes[r, : len(best)] = np.abs(a["logits"][r, best]) + np.abs(sums[r]) + SUM_SCALE
    return {
        "kept": Expected(kept, near),
        "log_sum": Expected(sums, np.abs(sums) + SUM_SCALE),
        "unused": Expected(np.zeros((rows, 1)), np.zeros((rows, 1))),
        "likely": Expected(likely, np.zeros_like(likely)),
        "logprobs": Expected(logprobs, sizes),
    }


def random_sizes(rng: np.random.Generator) -> Dims:
    """Rows and vocabulary of a random case."""
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
        {"rows": 20, "vocab": 1029, "masked": True},
        {"rows": 1, "vocab": 128256, "settings": "all"},
        {"rows": 65541, "vocab": 3},
    ),
    random=lambda rng: {**random_sizes(rng), "masked": bool(rng.integers(2))},
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
    random=lambda rng: {**random_sizes(rng), "likely": bool(rng.integers(2))},
)
