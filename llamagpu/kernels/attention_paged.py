"""Attention over the paged cache: causal for prompts, and for single new positions in runs that are merged."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import float_format, parts, require, require_floats
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel, as_stored
from llamagpu.kernels.kv_write import PAGE, Cache, address, cache_columns
from llamagpu.kernels.step import step_rows as make_rows

RUN = 256  # positions of one run, which one workgroup of attention_decode takes
QUERY_BYTES = 8192  # workgroup memory of a tile of queries
_WHOLE_QUERIES = 704  # elements of queries that fit the workgroup memory of attention_decode_whole


def attention_prefill(q: Tensor, rows: Tensor, cache: Cache, heads: int, out: Tensor | None = None) -> Tensor:
    """Causal attention of consecutive positions of one sequence, whose keys and values are in the cache.

    Flash attention (arXiv:2205.14135), scores scaled by head_dim^-½, sums in float32.

    Args:
        q: f32 [rows, at least heads · head_dim].
        rows: u32 [rows, 4], the step's state, positions ascending, one slot.
        out: f32 [rows, heads · head_dim].
    """
    out = _check(q, cache, heads, out)
    d = cache.head_dim
    libs = _libs(cache)
    queries = _held_queries(d) if libs[0][1] == "neighbours" else min(16, QUERY_BYTES // (4 * d))
    q.device.dispatch(
        Program("attention_prefill", libs, (*cache.consts, ("QUERIES", queries))),
        heads * -(-q.rows // queries),
        {
            "rows": q.rows,
            "heads": heads,
            "kv_heads": cache.kv_heads,
            "stride4": q.stride // 4,
            "table": cache.pages.stride,
            "scale": d**-0.5,
        },
        parts(step_rows=rows, pages=cache.pages, q=q, kv=cache.data, out=out),
        work=q.rows * heads * d * RUN,
    )
    return out


def splits_for(positions: int) -> int:
    """Runs of a sequence with this many positions."""
    return -(-positions // RUN)


def partial_shape(rows: int, heads: int, head_dim: int, splits: int) -> tuple[int, int]:
    """The shape of attention_decode's results: the attention itself if there is one run, otherwise partial results."""
    return rows, heads * (head_dim if splits == 1 else splits * (head_dim + 4))


def attention_decode(q: Tensor, rows: Tensor, cache: Cache, heads: int, splits: int, partials: Tensor) -> Tensor:
    """Attention of one new position for each row, in runs of ``RUN`` positions, all heads of a group together. With
    more than one run the results are not normalized yet.

    Args:
        q: f32 [rows, at least heads · head_dim].
        rows: u32 [rows, 4], the step's state.
        splits: runs in the grid, at least ``splits_for`` the longest sequence; surplus runs exit early.
        partials: f32 ``partial_shape``; ``attention_merge`` reads it.
    """
    _check(q, cache, heads, None, make=False)
    d, group = cache.head_dim, heads // cache.kv_heads
    shader, libs, queries = _decode_form(cache, group)
    tiles = -(-group // queries)
    require(partials.shape == partial_shape(q.rows, heads, d, splits), "attention_decode: partials has another shape")
    q.device.dispatch(
        Program(shader, libs, (*cache.consts, ("QUERIES", queries), ("RUN", RUN))),
        q.rows * cache.kv_heads * tiles * splits,
        {
            "rows": q.rows,
            "kv_heads": cache.kv_heads,
            "group": group,
            "tiles": tiles,
            "splits": splits,
            "stride4": q.stride // 4,
            "table": cache.pages.stride,
            "scale": d**-0.5,
        },
        parts(step_rows=rows, pages=cache.pages, q=q, kv=cache.data, partials=partials),
        work=q.rows * heads * d * RUN * splits * 2,
    )
    return partials


def attention_merge(
    partials: Tensor, rows: Tensor, heads: int, head_dim: int, splits: int, out: Tensor | None = None
) -> Tensor:
    """Merge the runs of attention_decode (two or more) in their order and normalize them: [rows, heads · head_dim]."""
    device = require_floats("attention_merge", partials=partials, out=out)
    require(splits > 1, "attention_merge: a single run is normalized already")
    count = rows.rows
    out = out or device.empty((count, heads * head_dim))
    device.dispatch(
        Program("attention_merge", (), (("D4", head_dim // 4), ("RUN", RUN))),
        -(-count * heads * head_dim // 256),
        {"rows": count, "heads": heads, "splits": splits},
        parts(step_rows=rows, partials=partials, out=out),
    )
    return out


def _decode_form(cache: Cache, group: int) -> tuple[str, tuple[tuple[str, str], ...], int]:
    """The shader of ``attention_decode``, the libraries that read the cache, and the heads that share one read."""
    d, libs = cache.head_dim, _libs(cache)
    if cache.data.device.tuning.attention == "whole" and d % _wide(cache) == 0:
        return "attention_decode_whole", (("kv_wide", cache.data.dtype),), min(group, 4, _WHOLE_QUERIES // d)
    most = _held_queries(d) if libs[0][1] == "neighbours" else min(8, QUERY_BYTES // (4 * d))
    return "attention_decode", libs, min(group, most)


def _wide(cache: Cache) -> int:
    """Elements in a load of 16 bytes."""
    return 8 if cache.data.dtype == "f16" else 4


def _libs(cache: Cache) -> tuple[tuple[str, str], ...]:
    if cache.data.device.tuning.share == "subgroup" and cache.head_dim % _wide(cache) == 0:
        return ("flash", "neighbours"), ("kv_wide", cache.data.dtype)
    return ("flash", "workgroup"), ("kv", float_format(cache.data))


def _held_queries(head_dim: int) -> int:
    """Queries that eight neighbours keep in registers; with more, drivers take seconds to compile."""
    return max(1, min(4, 256 // head_dim))


def _check(q: Tensor, cache: Cache, heads: int, out: Tensor | None, make: bool = True) -> Tensor:
    require_floats("attention", q=q, out=out)
    width = heads * cache.head_dim
    require(cache.head_dim % 4 == 0, "attention: head_dim must be a multiple of 4")
    require(heads % cache.kv_heads == 0, "attention: heads must be a multiple of kv_heads")
    require(q.columns >= width, "attention: q has fewer columns than heads · head_dim")
    if out is None:
        return q.device.empty((q.rows, width)) if make else q
    require(out.shape == (q.rows, width), "attention: out must be [rows, heads · head_dim]")
    return out


# --- registry: a dense cache, its pages shuffled --------------------------------------------


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
    q = rng.standard_normal((rows, d["heads"] * d["head"] + 8)).astype(np.float32)
    return {"q": q, "data": as_stored(data, d["format"]), "pages": pages, "rows": state}


def _cache(bench: Bench, a: Arrays, d: Dims) -> Cache:
    return Cache(bench.put(a["data"], d["format"]), bench.put(a["pages"], "u32"), d["kv_heads"], d["head"])


def _run_prefill(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    out = bench.out((d["rows"], d["heads"] * d["head"]))
    return attention_prefill(bench.put(a["q"]), bench.put(a["rows"], "u32"), _cache(bench, a, d), d["heads"], out)


def _run_decode(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    splits = splits_for(d["length"]) + d.get("spare", 0)
    rows, out = bench.put(a["rows"], "u32"), bench.out((d["rows"], d["heads"] * d["head"]))
    partials = bench.out(partial_shape(d["rows"], d["heads"], d["head"], splits))
    attention_decode(bench.put(a["q"]), rows, _cache(bench, a, d), d["heads"], splits, partials)
    if splits == 1:
        return partials
    return attention_merge(partials, rows, d["heads"], d["head"], splits, out)


def reference(a: Arrays, d: Dims) -> Expected:
    """Softmax attention in float64. The scale is Σ pⱼ|vⱼ| · (1 + max Σ|q · k|): a score's error acts on its weight."""
    head, group = d["head"], d["heads"] // d["kv_heads"]
    data = a["data"].astype(np.float64).reshape(-1, 2, d["kv_heads"], PAGE, head)
    q = a["q"][:, : d["heads"] * head].astype(np.float64).reshape(d["rows"], d["heads"], head) * head**-0.5
    value, scale = np.empty_like(q), np.empty_like(q)
    for r, state in enumerate(a["rows"]):
        seen = make_rows([0] * (int(state[1]) + 1), np.arange(int(state[1]) + 1), state[2])
        page, place = address(a["pages"], seen)
        k, v = (data[page, which, :, place].repeat(group, axis=1) for which in (0, 1))
        score = np.einsum("hd,jhd->hj", q[r], k)
        size = np.einsum("hd,jhd->hj", np.abs(q[r]), np.abs(k)).max(axis=1)
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
    return sizes | {"head": head, "format": ("f32", "f16")[rng.integers(2)], "prefill": prefill}


def _case(rows: int, length: int, heads: int, kv_heads: int, head: int, format: str, **more: object) -> Dims:
    sizes = {"rows": rows, "length": length, "heads": heads, "kv_heads": kv_heads, "head": head, "format": format}
    return sizes | {"prefill": False} | more


PREFILL = Kernel(
    "attention_prefill",
    _inputs,
    _run_prefill,
    reference,
    cases=tuple(
        {**case, "prefill": True}
        for case in (
            _case(1, 1, 1, 1, 4, "f32"),
            _case(2, 2, 4, 4, 8, "f32"),
            _case(31, 31, 8, 2, 16, "f16"),
            _case(33, 97, 9, 3, 64, "f32"),
            _case(17, 300, 5, 1, 80, "f16"),
            _case(20, 20, 4, 2, 128, "f32"),
            _case(5, 40, 2, 1, 256, "f32"),
            _case(600, 600, 2, 1, 8, "f32"),
            _case(16, 16, 65540, 1, 4, "f32"),
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
        _case(1, 2000, 32, 8, 64, "f32"),
        _case(2, 97, 5, 1, 80, "f16"),
        _case(1, 300, 8, 2, 128, "f32"),
        _case(2, 40, 2, 1, 256, "f32"),
        _case(8200, 2, 8, 8, 4, "f32"),
    ),
    random=lambda rng: _random(rng, False),
)
