"""Epilogue of the query, key and value projections: rotary embedding and cache write."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Tensor
from llamagpu.kernels.arguments import parts, require, require_floats, require_rows
from llamagpu.kernels.entry import F64, FLOAT_TOLERANCE, Arrays, Bench, Dims, Expected, Kernel, Outputs
from llamagpu.kernels.kv_write import PAGE, Cache, cache_columns
from llamagpu.kernels.product import Epilogue, product
from llamagpu.kernels.product_cases import FEW_FORMATS, product_case, product_inputs, product_reference, product_setup
from llamagpu.kernels.step import step_rows

_F16_ULP = 2.0**-10  # the spacing of float16 beside 1


def qkv(q: Tensor, rows: Tensor, cos_sin: Tensor, cache: Cache, heads: int) -> Epilogue:
    """Rotate the pairs of q and k (neighbouring elements), store q, and write k and v to the cache.

    Args:
        q: f32 [m, heads · head_dim].
        rows: u32 [m, 4], the step's state, with the place in the cache (``begin_step``) in its last column.
        cos_sin: f32 [positions, head_dim], cosine and sine of each pair side by side.
    """
    d = cache.head_dim
    require_rows("qkv", rows)
    require_floats("qkv", q=q, cos_sin=cos_sin)
    require(d % 4 == 0 and q.columns == heads * d, "qkv: q must be [m, heads · head_dim], head_dim a multiple of 4")
    require(cos_sin.columns == d, "qkv: cos_sin must be [positions, head_dim]")
    windows = parts(out=q, cos_sin=cos_sin, step_rows=rows, kv=cache.data)
    params: dict[str, float] = {"out_stride": q.stride, "heads": heads, "kv_heads": cache.kv_heads}
    libs, consts = (("kv_store", cache.data.dtype),), (("D4", d // 4), ("PAGE", PAGE))
    return Epilogue(q.rows, (heads + 2 * cache.kv_heads) * d, "qkv", windows, params, libs, consts)


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    a = product_inputs(rng, d)
    head, slots = d["head"], d["m"] + 3
    angle = np.arange(40)[:, None] * 10000.0 ** (-np.arange(head // 2) / (head // 2))
    a["cos_sin"] = np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(40, head).astype(np.float32)
    a["rows"] = step_rows([0] * d["m"], rng.integers(0, 40, d["m"]))
    a["rows"][:, 3] = rng.permutation(slots * PAGE)[: d["m"]]
    a["pages"] = np.arange(slots, dtype=np.uint32)[None]
    return a


def _run(bench: Bench, a: Arrays, d: Dims) -> Outputs:
    source, w, bias = product_setup(bench, a, d)
    q, rows = bench.out((d["m"], d["heads"] * d["head"])), bench.put(a["rows"], "u32")
    data = bench.out((a["pages"].size, cache_columns(d["kv_heads"], d["head"])), d["cache"])
    cache = Cache(data, bench.put(a["pages"], "u32"), d["kv_heads"], d["head"])
    product(source, w, bias, qkv(q, rows, bench.put(a["cos_sin"]), cache, d["heads"]), d["many"])
    return {"q": q, "kv": data}


def reference(a: Arrays, d: Dims) -> dict[str, Expected]:
    """Rotated queries, and the whole cache with rotated keys and values in their places, float16 to one unit in the
    last place."""
    value, size = (t.reshape(d["m"], -1, d["head"]) for t in product_reference(a, d))
    rotation = a["cos_sin"].astype(np.float64)[a["rows"][:, 1]].reshape(d["m"], 1, d["head"] // 2, 2)
    cos, sin = rotation[..., 0], rotation[..., 1]
    p, q, ps, qs = value[..., 0::2], value[..., 1::2], size[..., 0::2], size[..., 1::2]
    rotated, rotated_size = np.empty_like(value), np.empty_like(size)
    rotated[..., 0::2], rotated[..., 1::2] = p * cos - q * sin, q * cos + p * sin
    rotated_size[..., 0::2] = ps * np.abs(cos) + qs * np.abs(sin)
    rotated_size[..., 1::2] = qs * np.abs(cos) + ps * np.abs(sin)
    heads, kv = d["heads"], d["kv_heads"]
    q = Expected(rotated[:, :heads].reshape(d["m"], -1), rotated_size[:, :heads].reshape(d["m"], -1))
    out: F64 = np.zeros((2, a["pages"].size, 2, kv, PAGE, d["head"]))
    place = a["rows"][:, 3].astype(np.int64)
    for i, (k, v) in enumerate(((rotated, value), (rotated_size, size))):
        both = np.stack([k[:, heads : heads + kv], v[:, heads + kv :]], axis=1)
        out[i, place // PAGE, :, :, place % PAGE] = both
    ulp = np.abs(out[0]) * (_F16_ULP / FLOAT_TOLERANCE if d["cache"] == "f16" else 0)
    shape = (a["pages"].size, -1)
    return {"q": q, "kv": Expected(out[0].reshape(shape), (out[1] + ulp).reshape(shape))}


def _qkv_case(m: int, k: int, heads: int, kv_heads: int, head: int, format: str, **more: object) -> Dims:
    n = (heads + 2 * kv_heads) * head
    more = {"heads": heads, "kv_heads": kv_heads, "head": head, "cache": "f32"} | more
    return product_case(m, n, k, more.pop("source", "normed"), format, **more)  # type: ignore[arg-type]


def _random(rng: np.random.Generator) -> Dims:
    kv_heads, many = int(rng.integers(1, 4)), bool(rng.integers(2))
    return _qkv_case(
        int(rng.integers(9, 40)) if many else (1, 2, 8, 11)[rng.integers(4)],
        int(rng.integers(1, 400)),
        kv_heads * int(rng.integers(1, 4)),
        kv_heads,
        (4, 20, 32)[rng.integers(3)],
        FEW_FORMATS[rng.integers(len(FEW_FORMATS))],
        bias=bool(rng.integers(2)),
        cache=("f32", "f16")[rng.integers(2)],
        source="plain" if many else "normed",
        many=many,
    )


KERNEL = Kernel(
    "qkv",
    _inputs,
    _run,
    reference,
    cases=(
        _qkv_case(1, 1, 1, 1, 4, "f32"),
        _qkv_case(1, 576, 9, 3, 64, "f16", cache="f16"),
        _qkv_case(8, 97, 4, 2, 80, "bf16", bias=True),
        _qkv_case(5, 64, 2, 2, 16, "int4-g64-f16", bias="rows", cache="f16"),
        _qkv_case(2, 128, 8, 4, 16, "int4-g64-f16", bias=True, cache="f16"),
        _qkv_case(33, 64, 2, 1, 32, "f32", source="plain", many=True),
        _qkv_case(3, 64, 3, 2, 20, "f16", cut=True),
    ),
    random=_random,
)
