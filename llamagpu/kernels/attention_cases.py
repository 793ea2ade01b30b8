"""Cases of attention over the paged cache: a dense cache, its pages shuffled, and the float64 reference."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Tensor
from llamagpu.kernels.attention_paged import (
    attention_decode,
    attention_merge,
    attention_prefill,
    partial_shape,
    splits_for,
)
from llamagpu.kernels.entry import F64, Arrays, Bench, Dims, Expected, Kernel, as_stored
from llamagpu.kernels.kv_write import PAGE, Cache, address, cache_columns
from llamagpu.kernels.scores import BLOCK, RUN, Scores
from llamagpu.kernels.step import step_rows as make_rows


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    rows, slots = d["rows"], 1 if d["prefill"] else d["rows"]
    per_slot = -(-d["length"] // PAGE)
    pages = rng.permutation(slots * per_slot).astype(np.uint32).reshape(slots, per_slot)
    data = rng.standard_normal((pages.size, cache_columns(d["kv_heads"], d["head"])))
    if d["prefill"]:
        state = make_rows([0] * rows, np.arange(d["length"] - rows, d["length"]))
    else:
        last = np.asarray(rng.integers(0, d["length"], rows))
        last[0] = d["length"] - 1
        state = make_rows([0] * rows, last, np.arange(rows))
    _hide(data, pages, state, _scores(d), d)
    q = rng.standard_normal((rows, d["heads"] * d["head"] + 8)).astype(np.float32)
    if d.get("steep"):
        _steepen(data, q, pages, state, d)
    return {"q": q, "data": as_stored(data, d["format"]), "pages": pages, "rows": state}


def _hide(data: F64, pages: npt.NDArray[np.uint32], state: npt.NDArray[np.uint32], scores: Scores, d: Dims) -> None:
    """Make keys and values NaN in the blocks before a row's window, and after the last position: nothing may use
    them."""
    cache = data.reshape(-1, 2, d["kv_heads"], PAGE, d["head"])
    for slot in np.unique(state[:, 2]):
        mine = [int(position) for position in state[state[:, 2] == slot, 1]]
        first, end = min(scores.begin(position) for position in mine) // BLOCK * BLOCK, max(mine) + 1
        unused = np.r_[:first, end : pages.shape[1] * PAGE]
        page, place = address(pages, make_rows([0] * len(unused), unused, slot))
        cache[page, :, :, place] = np.nan


def _steepen(
    data: F64, q: npt.NDArray[np.float32], pages: npt.NDArray[np.uint32], state: npt.NDArray[np.uint32], d: Dims
) -> None:
    """For each head of k, raise a score in another run so far that e^score would overflow."""
    cache = data.reshape(-1, 2, d["kv_heads"], PAGE, d["head"])
    for row in state:
        for head in range(d["kv_heads"]):
            query = q[0, head * (d["heads"] // d["kv_heads"]) * d["head"] :][: d["head"]]
            position = min(head * RUN + 7, int(row[1]))
            page, place = address(pages, make_rows([0], position, row[2]))
            cache[page, 0, head, place] = query * (150 * d["head"] ** 0.5 / (query @ query))


def _cache(bench: Bench, a: Arrays, d: Dims) -> Cache:
    return Cache(bench.put(a["data"], d["format"]), bench.put(a["pages"], "u32"), d["kv_heads"], d["head"])


def _scores(d: Dims) -> Scores:
    return Scores(d["scale"], d["cap"], d["window"])


def _run_prefill(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    out = bench.out((d["rows"], d["heads"] * d["head"]))
    rows = bench.put(a["rows"], "u32")
    return attention_prefill(bench.put(a["q"]), rows, _cache(bench, a, d), d["heads"], out, _scores(d))


def _run_decode(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    scores = _scores(d)
    splits = scores.splits(splits_for(d["length"])) + d.get("spare", 0)
    rows, out = bench.put(a["rows"], "u32"), bench.out((d["rows"], d["heads"] * d["head"]))
    partials = bench.out(partial_shape(d["rows"], d["heads"], d["head"], splits))
    attention_decode(bench.put(a["q"]), rows, _cache(bench, a, d), d["heads"], splits, partials, scores)
    if splits == 1:
        return partials
    return attention_merge(partials, rows, d["heads"], d["head"], splits, out, scores)


def reference(a: Arrays, d: Dims) -> Expected:
    """Softmax attention in float64. The scale is Σ pⱼ|vⱼ| · (1 + max Σ|q · k|): a score's error acts on its weight."""
    scores = _scores(d)
    head, group = d["head"], d["heads"] // d["kv_heads"]
    data = a["data"].astype(np.float64).reshape(-1, 2, d["kv_heads"], PAGE, head)
    q = a["q"][:, : d["heads"] * head].astype(np.float64).reshape(d["rows"], d["heads"], head)
    q = q * np.float32(scores.params(head)["scale"])
    value, scale = np.empty_like(q), np.empty_like(q)
    for r, state in enumerate(a["rows"]):
        positions = np.arange(scores.begin(int(state[1])), int(state[1]) + 1)
        seen = make_rows([0] * len(positions), positions, state[2])
        page, place = address(a["pages"], seen)
        k, v = (data[page, which, :, place].repeat(group, axis=1) for which in (0, 1))
        score = np.einsum("hd,jhd->hj", q[r], k)
        size = np.einsum("hd,jhd->hj", np.abs(q[r]), np.abs(k)).max(axis=1)
        if scores.cap is not None:
            score = scores.cap * np.tanh(score / scores.cap)
        p = np.exp(score - score.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        value[r] = np.einsum("hj,jhd->hd", p, v)
        scale[r] = np.einsum("hj,jhd->hd", p, np.abs(v)) * (1 + size[:, None])
    return Expected(value.reshape(d["rows"], -1), scale.reshape(d["rows"], -1))


def _random(rng: np.random.Generator, prefill: bool) -> Dims:
    kv_heads, length = int(rng.integers(1, 5)), int(rng.integers(1, 700))
    rows = int(rng.integers(1, min(length, 40) + 1)) if prefill else int(rng.integers(1, 5))
    head, group = (4, 44, 64)[rng.integers(3)], (1, 3, 7)[rng.integers(3)]  # few, because each pair compiles a pipeline
    sizes = {"rows": rows, "length": length, "heads": kv_heads * group, "kv_heads": kv_heads}
    form = {"head": head, "format": ("f32", "f16")[rng.integers(2)], "prefill": prefill}
    window = (None, None, int(rng.integers(1, 400)))[rng.integers(3)]
    return (
        sizes | form | {"scale": (None, 0.11)[rng.integers(2)], "cap": (None, 5.0)[rng.integers(2)], "window": window}
    )


def _case(rows: int, length: int, heads: int, kv_heads: int, head: int, format: str, **more: object) -> Dims:
    sizes = {"rows": rows, "length": length, "heads": heads, "kv_heads": kv_heads, "head": head, "format": format}
    return sizes | {"prefill": False, "scale": None, "cap": None, "window": None} | more


PREFILL = Kernel(
    "attention_prefill",
    _inputs,
    _run_prefill,
    reference,
    cases=tuple(
        {**case, "prefill": True}
        for case in (
            _case(1, 1, 1, 1, 4, "f32"),
            _case(3, 700, 4, 2, 64, "f16", steep=True),
            _case(2, 2, 4, 4, 8, "f32"),
            _case(31, 31, 8, 2, 16, "f16"),
            _case(33, 97, 9, 3, 64, "f32"),
            _case(17, 300, 5, 1, 80, "f16"),
            _case(20, 20, 4, 2, 128, "f32"),
            _case(5, 40, 2, 1, 256, "f32"),
            _case(600, 600, 2, 1, 8, "f32"),
            _case(90, 500, 4, 2, 16, "f32", window=37),
            _case(70, 300, 4, 1, 32, "f16", window=256, cap=9.0, scale=0.2),
            _case(16, 16, 65541, 1, 4, "f32"),
        )
    ),
    random=lambda rng: _random(rng, True),
)

DECODE = Kernel(
    "attention_decode",
    _inputs,
    _run_decode,
    reference,
    cases=(
        _case(1, 1, 1, 1, 4, "f32"),
        _case(1, 257, 9, 3, 64, "f16"),
        _case(4, 31, 4, 4, 8, "f32", spare=2),
        _case(3, 600, 32, 1, 16, "f16"),
        _case(2, 70, 4, 2, 12, "f32"),
        _case(2, 70, 2, 2, 24, "f16"),
        _case(1, 2000, 16, 8, 64, "f32", steep=True),
        _case(1, 2000, 32, 8, 64, "f32"),
        _case(2, 97, 5, 1, 80, "f16"),
        _case(1, 300, 8, 2, 128, "f32"),
        _case(2, 40, 2, 1, 256, "f32"),
        _case(4, 1500, 8, 2, 32, "f32", window=300, spare=1),
        _case(3, 700, 4, 1, 64, "f16", window=512, cap=9.0, scale=0.2),
        _case(3, 300, 4, 2, 16, "f32", window=1),
        _case(9363, 2, 7, 7, 4, "f32"),
    ),
    random=lambda rng: _random(rng, False),
)
