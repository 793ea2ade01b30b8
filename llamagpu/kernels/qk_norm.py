"""QK norm, rotary embedding and cache write after the q, k and v projections."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import parts, require, require_floats, require_rows
from llamagpu.kernels.entry import F64, FLOAT_TOLERANCE, Arrays, Bench, Dims, Expected, Kernel, Outputs
from llamagpu.kernels.kv_write import PAGE, Cache, address, cache_columns
from llamagpu.kernels.step import step_rows

WORKGROUP = 64  # an invocation takes four elements, so heads have up to 256
NORMS = {None: 0, "head": 1, "head_last": 2, "row": 3}  # NORM of the shader
_F16_ULP = 2.0**-10  # the spacing of float16 beside 1


@dataclass(frozen=True)
class QkNorm:
    """What happens to q and k between projection and attention, besides the rotation.

    Attributes:
        norm: ``head`` (RMSNorm of every head before the rotation), ``head_last`` (after it), ``row`` (of all heads of q
            together, and of all of k, before it) or None.
        eps: of the norm.
        beta, original: q is scaled by 1 + beta · ln(1 + floor(position / original)), as in Llama 4; 0 leaves it.
    """

    norm: str | None
    eps: float
    beta: float = 0.0
    original: int = 1


def qk_norm(
    x: Tensor, how: QkNorm, weight: Tensor | None, rows: Tensor, cos_sin: Tensor, cache: Cache, out: Tensor
) -> Tensor:
    """Normalize, rotate and scale q into ``out``; normalize and rotate k, and write k and v to the cache.

    Args:
        x: f32 [rows, (heads + 2 · kv_heads) · head_dim], q, k and v as projected.
        weight: f32, of q's norm, then of k's: [2 · head_dim], or for ``row`` [(heads + kv_heads) · head_dim].
        rows: u32 [rows, 4], the step's state.
        cos_sin: f32 [positions, head_dim], cosine and sine of each pair of neighbours.
        out: f32 [rows, heads · head_dim].
    """
    device = require_floats("qk_norm", x=x, cos_sin=cos_sin, out=out, weight=weight)
    require_rows("qk_norm", rows)
    d, kv_heads = cache.head_dim, cache.kv_heads
    heads = out.columns // d
    require(d % 4 == 0 and d <= 4 * WORKGROUP, f"qk_norm: head_dim must be a multiple of 4 up to {4 * WORKGROUP}")
    require(out.columns == heads * d and cos_sin.columns == d, "qk_norm: out or cos_sin has another head_dim")
    require(x.columns == (heads + 2 * kv_heads) * d, "qk_norm: x must hold all heads of q, k and v")
    wanted = (heads + kv_heads) * d if how.norm == "row" else 2 * d
    require(how.norm is None or (weight is not None and weight.columns == wanted), "qk_norm: wrong number of weights")
    consts = (*cache.consts, ("WORKGROUP", WORKGROUP), ("NORM", NORMS[how.norm]))
    device.dispatch(
        Program("qk_norm", (("reduce", device.tuning.reduce), ("kv_store", cache.data.dtype)), consts),
        x.rows * (heads + 2 * kv_heads),
        {
            "rows": x.rows,
            "heads": heads,
            "kv_heads": kv_heads,
            "stride4": x.stride // 4,
            "table": cache.pages.stride,
            "eps": how.eps,
            "beta": how.beta,
            "original": how.original,
        },
        parts(step_rows=rows, pages=cache.pages, x=x, cos_sin=cos_sin, out=out, kv=cache.data)
        | parts(weight=cos_sin if weight is None else weight),
        work=x.rows * x.columns,
    )
    return out


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    heads, kv, head = d["heads"], d["kv_heads"], d["head"]
    per_slot = 40 // PAGE + 1
    pages = rng.permutation(d["rows"] * per_slot).astype(np.uint32).reshape(d["rows"], per_slot)
    angle = np.arange(40)[:, None] * 10000.0 ** (-np.arange(head // 2) / (head // 2))
    cos_sin = np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(40, head)
    x = rng.standard_normal((d["rows"], (heads + 2 * kv) * head)) * rng.uniform(0.05, 9)
    count = (heads + kv) * head if d["norm"] == "row" else 2 * head
    floats = {"x": x, "cos_sin": cos_sin, "weight": rng.standard_normal(count)}
    rows = step_rows([0] * d["rows"], rng.integers(0, 40, d["rows"]), np.arange(d["rows"]))
    return {name: v.astype(np.float32) for name, v in floats.items()} | {"pages": pages, "rows": rows}


def _how(d: Dims) -> QkNorm:
    return QkNorm(d["norm"], d.get("eps", 1e-5), d.get("beta", 0.0), d.get("original", 1))


def _run(bench: Bench, a: Arrays, d: Dims) -> Outputs:
    x, rows, weight = bench.put(a["x"]), bench.put(a["rows"], "u32"), bench.put(a["weight"])
    data = bench.out((a["pages"].size, cache_columns(d["kv_heads"], d["head"])), d["cache"])
    cache = Cache(data, bench.put(a["pages"], "u32"), d["kv_heads"], d["head"])
    out = bench.out((d["rows"], d["heads"] * d["head"]))
    qk_norm(x, _how(d), weight if d["norm"] else None, rows, bench.put(a["cos_sin"]), cache, out)
    return {"q": out, "kv": data}


def _normalized(values: F64, axes: tuple[int, ...], weight: F64, eps: float) -> F64:
    scale: F64 = 1 / np.sqrt((values**2).mean(axis=axes, keepdims=True) + np.float32(eps))
    return values * scale * weight


def reference(a: Arrays, d: Dims) -> dict[str, Expected]:
    """Queries, and the whole cache with keys and values in their places, in float64. The scale is the length of a
    rotated pair; float16 has one unit in the last place more."""
    heads, kv, head, norm, how = d["heads"], d["kv_heads"], d["head"], d["norm"], _how(d)
    x = a["x"].astype(np.float64).reshape(d["rows"], -1, head)
    weight = a["weight"].astype(np.float64)
    rotation = a["cos_sin"].astype(np.float64)[a["rows"][:, 1]].reshape(d["rows"], 1, head // 2, 2)
    split = head if norm != "row" else heads * head
    weights = [w.reshape(-1, head) for w in (weight[:split], weight[split:])]
    finished, sizes = [], []
    for part, w in zip((x[:, :heads], x[:, heads : heads + kv]), weights, strict=True):
        axes = (1, 2) if norm == "row" else (2,)
        y = _normalized(part, axes, w, how.eps) if norm in ("head", "row") else part
        p, q = y[..., 0::2], y[..., 1::2]
        turned = np.empty_like(y)
        turned[..., 0::2] = p * rotation[..., 0] - q * rotation[..., 1]
        turned[..., 1::2] = q * rotation[..., 0] + p * rotation[..., 1]
        size = np.repeat(np.sqrt(p**2 + q**2), 2, axis=-1)
        if norm == "head_last":
            size = size * np.abs(_normalized(turned, axes, w, how.eps)) / np.where(turned == 0, 1, np.abs(turned))
            turned = _normalized(turned, axes, w, how.eps)
        finished.append(turned)
        sizes.append(size + np.abs(turned))
    factor = 1 + how.beta * np.log1p(a["rows"][:, 1] // how.original)[:, None]
    queries = Expected(*(t.reshape(d["rows"], -1) * factor for t in (finished[0], sizes[0])))
    v = x[:, heads + kv :]
    ulp = _F16_ULP / FLOAT_TOLERANCE if d["cache"] == "f16" else 0
    key_sizes = _in_cache(a, d, sizes[1] + np.abs(finished[1]) * ulp, np.abs(v) * ulp)
    return {"q": queries, "kv": Expected(_in_cache(a, d, finished[1], v), key_sizes)}


def _in_cache(a: Arrays, d: Dims, k: F64, v: F64) -> F64:
    out = np.zeros((a["pages"].size, 2, d["kv_heads"], PAGE, d["head"]))
    page, place = address(a["pages"], a["rows"])
    out[page, :, :, place] = np.stack([k, v], axis=1)
    return out.reshape(a["pages"].size, -1)


def _case(rows: int, heads: int, kv_heads: int, head: int, norm: str | None, **more: object) -> Dims:
    sizes = {"rows": rows, "heads": heads, "kv_heads": kv_heads, "head": head, "norm": norm}
    return sizes | {"cache": "f32"} | more


def _random(rng: np.random.Generator) -> Dims:
    kv_heads = int(rng.integers(1, 4))
    return _case(
        int(rng.integers(1, 20)),
        kv_heads * int(rng.integers(1, 4)),
        kv_heads,
        (4, 20, 32)[rng.integers(3)],
        tuple(NORMS)[rng.integers(4)],
        cache=("f32", "f16")[rng.integers(2)],
        beta=(0.0, 0.1)[rng.integers(2)],
        original=int(rng.integers(1, 30)),
    )


KERNEL = Kernel(
    "qk_norm",
    _inputs,
    _run,
    reference,
    cases=(
        _case(1, 1, 1, 4, "head"),
        _case(1, 16, 8, 128, "head", cache="f16"),
        _case(3, 4, 1, 256, "head"),
        _case(5, 6, 2, 80, "head_last"),
        _case(2, 16, 16, 128, "row", cache="f16"),
        _case(7, 32, 8, 128, None, beta=0.1, original=7),
        _case(8201, 7, 1, 4, "row"),
    ),
    random=_random,
)
