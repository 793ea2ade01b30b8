"""Attention over plain tensors. The kernels of the decoder, which read its paged cache, are in ``attention_paged``."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import parts, require, require_floats, require_matrices, require_number
from llamagpu.kernels.attention_paged import QUERY_BYTES
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel

_QUERIES = 16  # queries of a workgroup; fewer if heads are large


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    scale: float | None = None,
    *,
    heads: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """``out = softmax(scale · q kᵀ) v`` for every head, by flash attention (arXiv:2205.14135), sums in float32.

    A causal mask aligns the last query with the last position, as torch's ``causal_lower_right``: query r sees the
    positions up to r + positions - rows.

    Args:
        q: f32 [rows, heads · head_dim], as out; head_dim is a multiple of 4 up to 2048.
        k: f32 [positions, kv_heads · head_dim]. kv_heads divides heads: with fewer of them, neighbouring heads of q
            share one (grouped-query attention).
        v: f32, as k.
        causal: whether a query sees only the positions up to its own; then positions ≥ rows.
        scale: factor of the scores; the default is head_dim^-½.
    """
    device = require_floats("attention", q=q, k=k, v=v, out=out)
    require_matrices("attention", q=q, k=k, v=v)
    group = _check_sizes(q, k, v, heads, causal)
    d = q.columns // heads
    scale = d**-0.5 if scale is None else require_number("attention", "scale", scale)
    out = out or device.empty(q.shape)
    require(out.shape == q.shape, f"attention: out must have the shape of {q!r}")
    queries = min(_QUERIES, QUERY_BYTES // (4 * d))
    sizes = {"rows": q.rows, "positions": k.rows, "heads": heads, "group": group, "scale": scale}
    device.dispatch(
        Program("attention", consts=(("D4", d // 4), ("QUERIES", queries))),
        heads * -(-q.rows // queries),
        sizes | {"ahead": k.rows - q.rows if causal else k.rows},
        parts(q=q, k=k, v=v, out=out),
        work=2 * q.rows * k.rows * q.columns,
    )
    return out


def _check_sizes(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool) -> int:
    """Heads of q that share a head of k and v; raises KernelError if rows or columns do not fit."""
    require(heads >= 1 and q.columns % heads == 0, f"attention: {heads} heads do not divide the columns of {q!r}")
    d = q.columns // heads
    require(d % 4 == 0 and 4 * d <= QUERY_BYTES, f"attention: head_dim is {d}; it must be a multiple of 4 up to 2048")
    require(k.shape == v.shape, f"attention: k and v must have one shape, not {k!r} and {v!r}")
    kv_heads = k.columns // d
    fits = k.columns % d == 0 and heads % kv_heads == 0
    require(fits, f"attention: k has {k.columns} columns; it must have n heads of {d} elements, and n divide {heads}")
    require(k.rows >= q.rows or not causal, f"attention: a causal mask needs {q.rows} positions, k has {k.rows}")
    return heads // kv_heads


# --- registry ----------------------------------------------------------------------------------


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    shapes = {"q": (d["rows"], d["heads"])} | dict.fromkeys("kv", (d["positions"], d["kv_heads"]))
    return {name: rng.standard_normal((n, h * d["head"]), np.float32) for name, (n, h) in shapes.items()}


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    q, k, v = (bench.put(a[name]) for name in "qkv")
    return attention(q, k, v, d["causal"], d.get("scale"), heads=d["heads"], out=bench.out(a["q"].shape))


def reference(a: Arrays, d: Dims) -> Expected:
    """Softmax attention in float64. The scale is Σ pⱼ|vⱼ| · (1 + max Σ|q · k|): a score's error acts on its weight."""
    head, group = d["head"], d["heads"] // d["kv_heads"]
    q, k, v = (a[name].astype(np.float64).reshape(len(a[name]), -1, head) for name in "qkv")
    q = q * (d.get("scale") or head**-0.5)
    k, v = (t.repeat(group, axis=1) for t in (k, v))
    score, size = (np.einsum("rhd,jhd->hrj", f(q), f(k)) for f in (np.asarray, np.abs))
    if d["causal"]:
        hidden = np.arange(len(k)) > np.arange(len(q))[:, None] + len(k) - len(q)
        score, size = np.where(hidden, -np.inf, score), np.where(hidden, 0, size)
    p = np.exp(score - score.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    value, total = (np.einsum("hrj,jhd->rhd", p, f(v)) for f in (np.asarray, np.abs))
    scale = total * (1 + size.max(axis=-1).T[..., None])
    return Expected(value.reshape(len(q), -1), scale.reshape(len(q), -1))


def _case(rows: int, positions: int, heads: int, kv_heads: int, head: int, causal: bool, **more: object) -> Dims:
    sizes = {"rows": rows, "positions": positions, "heads": heads, "kv_heads": kv_heads, "head": head}
    return sizes | {"causal": causal} | more


def _random(rng: np.random.Generator) -> Dims:
    kv_heads, group = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    rows, causal = int(rng.integers(1, 70)), bool(rng.integers(2))
    positions = int(rng.integers(rows if causal else 1, 150))
    return _case(rows, positions, kv_heads * group, kv_heads, (4, 20, 64, 100)[rng.integers(4)], causal)


KERNEL = Kernel(
    "attention",
    _inputs,
    _run,
    reference,
    cases=(
        _case(1, 1, 1, 1, 4, True),
        _case(31, 97, 3, 1, 20, True),
        _case(33, 7, 4, 2, 8, False),
        _case(17, 17, 9, 3, 64, True),
        _case(5, 300, 8, 8, 128, False, scale=0.3),
        _case(3, 40, 1, 1, 2048, True),
        _case(2, 2, 65541, 1, 4, True),
    ),
    random=_random,
)
