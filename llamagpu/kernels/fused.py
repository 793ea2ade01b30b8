"""The products of a layer with what is around them: norm, rotary embedding and cache, SwiGLU, residual addition."""

from __future__ import annotations

from typing import Any

import numpy as np

from llamagpu.gpu import Tensor
from llamagpu.kernels.affine import FORMATS, columns_for, put_weights, weight_inputs
from llamagpu.kernels.affine import reference as weight_reference
from llamagpu.kernels.attention import RUN, partial_shape, splits_for
from llamagpu.kernels.base import F64, Arrays, Bench, Dims, Expected, Kernel
from llamagpu.kernels.base import step_rows as make_rows
from llamagpu.kernels.begin_step import stream_of
from llamagpu.kernels.kv_write import PAGE, Cache, cache_columns
from llamagpu.kernels.product import (
    Source,
    add_norm,
    add_to,
    merged,
    normed,
    plain,
    product,
    qkv,
    stream_columns,
    swiglu,
)

EPS = 1e-5
_FEW_FORMATS = ("f32", "f16", "int4-g64-f16")  # of random cases; matvec and matmul go through them all
_F16_ULP = 2.0**-10  # the spacing of float16 beside 1

# Every case has m rows of x and a matrix [n, k]; "source" is plain, normed or merge.


def _source_inputs(rng: np.random.Generator, d: Dims, k: int) -> Arrays:
    m = d["m"]
    if d["source"] == "plain":
        return {"x": rng.standard_normal((m, k)).astype(np.float32)}
    if d["source"] == "normed":
        x = rng.standard_normal((m, k)).astype(np.float32) * np.float32(rng.uniform(0.1, 9))
        return {"x": stream_of(x, rng.standard_normal(k).astype(np.float32))}
    heads, splits = k // d["head"], max(2, splits_for(d["length"]))
    positions = rng.integers(0, d["length"], m)
    partials = rng.standard_normal((m, heads, splits, d["head"] + 4)).astype(np.float32)
    partials[..., d["head"] + 1] = rng.uniform(1, 9, (m, heads, splits))
    return {"x": partials.reshape(m, -1), "rows": make_rows([0] * m, positions)}


def _put_source(bench: Bench, a: Arrays, d: Dims, k: int) -> Source:
    x = bench.put(a["x"])
    if d["source"] == "plain":
        return plain(x)
    if d["source"] == "normed":
        return normed(x, k, EPS)
    heads, splits = k // d["head"], max(2, splits_for(d["length"]))
    assert x.shape == partial_shape(d["m"], heads, d["head"], splits)
    return merged(x, bench.put(a["rows"], "u32"), heads, d["head"], splits)


def _source_reference(a: Arrays, d: Dims, k: int) -> tuple[Any, Any]:
    """The vectors in float64, and the size of what they were added up from."""
    x = a["x"].astype(np.float64)
    if d["source"] == "plain":
        return x, np.abs(x)
    if d["source"] == "normed":
        groups = -(-k // 4)
        scale = 1 / np.sqrt(x[:, 4 * groups :].sum(axis=1, keepdims=True) / k + np.float32(EPS))
        return x[:, :k] * scale, np.abs(x[:, :k]) * scale
    runs = x.reshape(d["m"], k // d["head"], -1, d["head"] + 4)
    inside = np.arange(runs.shape[2]) <= a["rows"][:, 1, None] // RUN
    tops = np.where(inside[:, None], runs[..., d["head"]], -np.inf)
    keep = np.exp(tops - tops.max(axis=-1, keepdims=True))[..., None]
    total = (keep * runs[..., d["head"] + 1, None]).sum(axis=2)
    value, size = ((keep * part[..., : d["head"]]).sum(axis=2) / total for part in (runs, np.abs(runs)))
    return value.reshape(d["m"], k), size.reshape(d["m"], k)


def _columns(d: Dims) -> int:
    if d["source"] == "merge":
        group = 1 if d["format"] in FORMATS[:3] else 128
        whole = int(d["head"]) * group
        return -(-int(d["k"]) // whole) * whole
    return columns_for(d["k"], d["format"])


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    k = _columns(d)
    a = _source_inputs(rng, d, k) | weight_inputs(rng, d["n"], k, d["format"])
    a["bias"] = rng.standard_normal((d["n"],)).astype(np.float32)
    a["out"] = rng.standard_normal((d["m"], d["n"])).astype(np.float32)
    a["norm"] = rng.standard_normal((d["n"],)).astype(np.float32)
    return a


def _product_reference(a: Arrays, d: Dims) -> tuple[Any, Any]:
    (x, size), w = _source_reference(a, d, _columns(d)), weight_reference(a, d)
    bias = a["bias"] if d["bias"] else np.zeros(d["n"])
    return x @ w.value.T + bias, size @ w.scale.T + np.abs(bias)


def _setup(bench: Bench, a: Arrays, d: Dims) -> tuple[Source, Tensor, Tensor | None]:
    k = _columns(d)
    return _put_source(bench, a, d, k), put_weights(bench, a, d["format"]), bench.put(a["bias"]) if d["bias"] else None


def _case(m: int, n: int, k: int, source: str, format: str, bias: bool = False, **more: object) -> Dims:
    sizes = {"m": m, "n": n, "k": k, "source": source, "format": format, "bias": bias}
    return sizes | {"head": 8, "length": 600, "many": False} | more


def _random(rng: np.random.Generator, step: int, sources: tuple[str, ...], **more: object) -> Dims:
    n, k = step * int(rng.integers(1, 300 // step)), int(rng.integers(1, 500))
    format, bias = _FEW_FORMATS[rng.integers(len(_FEW_FORMATS))], bool(rng.integers(2))
    many = bool(rng.integers(2)) and "normed" not in sources
    rows = int(rng.integers(9, 40)) if many else (1, 2, 8, 11)[rng.integers(4)]
    length, head = int(rng.integers(1, 1024)), (8, 20)[rng.integers(2)]
    source = "plain" if many else sources[rng.integers(len(sources))]
    return _case(rows, n, k, source, format, bias, length=length, head=head, many=many, **more)


# --- swiglu ----------------------------------------------------------------------------------


def _run_swiglu(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    source, w, bias = _setup(bench, a, d)
    out = bench.out((d["m"], d["n"] // 2))
    product(source, w, bias, swiglu(out), d["many"])
    return out


def swiglu_reference(a: Arrays, d: Dims) -> Expected:
    """silu(gate) · up in float64, on a scale through which an error of either reaches the result."""
    value, size = _product_reference(a, d)
    gate, up, gate_size, up_size = value[:, 0::2], value[:, 1::2], size[:, 0::2], size[:, 1::2]
    sigmoid = 1 / (1 + np.exp(-gate))
    silu = gate * sigmoid
    slope = np.abs(sigmoid * (1 + gate * (1 - sigmoid)))
    return Expected(silu * up, np.abs(silu) * up_size + slope * gate_size * np.abs(up) + np.abs(silu * up))


SWIGLU = Kernel(
    "swiglu",
    _inputs,
    _run_swiglu,
    swiglu_reference,
    cases=(
        _case(1, 2, 1, "plain", "f32"),
        _case(1, 3072, 576, "normed", "f16"),
        _case(8, 256, 128, "normed", "int4-g64-f16", True),
        _case(3, 98, 97, "normed", "bf16"),
        _case(64, 512, 128, "plain", "bf16", many=True),
    ),
    random=lambda rng: _random(rng, 2, ("plain", "normed") if rng.integers(2) else ("plain",)),
    depends=("f16", "matvec", "matmul", "reduce", "share", "order", "lanes", "tiles"),
)

# --- residual --------------------------------------------------------------------------------


def _run_residual(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    source, w, bias = _setup(bench, a, d)
    out = bench.put(a["out"])
    if d["which"] == "sum":
        product(source, w, bias, add_to(out), d["many"])
        return out
    stream = bench.out((d["m"], stream_columns(d["n"])))
    product(source, w, bias, add_norm(out, stream, bench.put(a["norm"])), d["many"])
    return out if d["which"] == "out" else stream


def residual_reference(a: Arrays, d: Dims) -> Expected:
    """The residual stream after the addition; or the stream for the next norm, whose squares double an error."""
    value, size = _product_reference(a, d)
    value, size = value + a["out"], size + np.abs(a["out"])
    if d["which"] != "stream":
        return Expected(value, size)
    norm = a["norm"].astype(np.float64)
    scale = stream_of(size, np.abs(norm))
    scale[:, 4 * -(-d["n"] // 4) :] *= 2
    return Expected(stream_of(value, norm), scale)


RESIDUAL = Kernel(
    "residual",
    _inputs,
    _run_residual,
    residual_reference,
    cases=(
        _case(1, 1, 1, "plain", "f32", which="stream"),
        _case(1, 576, 1536, "plain", "f16", which="stream"),
        _case(1, 576, 576, "merge", "bf16", head=64, length=200, which="stream"),
        _case(8, 97, 48, "merge", "f32", True, head=16, length=1000, which="out"),
        _case(2, 128, 128, "merge", "int8-g64-bf16", head=32, length=257, which="stream"),
        _case(33, 130, 77, "plain", "f16", which="sum", many=True),
    ),
    random=lambda rng: _random(rng, 1, ("plain", "merge"), which=("sum", "out", "stream")[rng.integers(3)]),
    depends=("f16", "matvec", "matmul", "reduce", "share", "order", "lanes", "tiles"),
)

# --- q, k and v ------------------------------------------------------------------------------


def _qkv_inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    a = _inputs(rng, d)
    head, slots = d["head"], d["m"] + 3
    angle = np.arange(40)[:, None] * 10000.0 ** (-np.arange(head // 2) / (head // 2))
    a["turns"] = np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(40, head).astype(np.float32)
    a["rows"] = make_rows([0] * d["m"], rng.integers(0, 40, d["m"]))
    a["rows"][:, 3] = rng.permutation(slots * PAGE)[: d["m"]]
    a["pages"] = np.arange(slots, dtype=np.uint32)[None]
    return a


def _run_qkv(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    source, w, bias = _setup(bench, a, d)
    q, rows = bench.out((d["m"], d["heads"] * d["head"])), bench.put(a["rows"], "u32")
    data = bench.out((a["pages"].size, cache_columns(d["kv_heads"], d["head"])), d["cache"])
    cache = Cache(data, bench.put(a["pages"], "u32"), d["kv_heads"], d["head"])
    product(source, w, bias, qkv(q, rows, bench.put(a["turns"]), cache, d["heads"]), d["many"])
    return q if d["which"] == "q" else data


def qkv_reference(a: Arrays, d: Dims) -> Expected:
    """Turned queries; or the whole cache, turned keys and values in their places, float16 to one unit in the last."""
    value, size = (t.reshape(d["m"], -1, d["head"]) for t in _product_reference(a, d))
    turn = a["turns"].astype(np.float64)[a["rows"][:, 1]].reshape(d["m"], 1, d["head"] // 2, 2)
    cos, sin = turn[..., 0], turn[..., 1]
    p, q, ps, qs = value[..., 0::2], value[..., 1::2], size[..., 0::2], size[..., 1::2]
    turned, turned_size = np.empty_like(value), np.empty_like(size)
    turned[..., 0::2], turned[..., 1::2] = p * cos - q * sin, q * cos + p * sin
    turned_size[..., 0::2] = ps * np.abs(cos) + qs * np.abs(sin)
    turned_size[..., 1::2] = qs * np.abs(cos) + ps * np.abs(sin)
    heads, kv = d["heads"], d["kv_heads"]
    if d["which"] == "q":
        return Expected(turned[:, :heads].reshape(d["m"], -1), turned_size[:, :heads].reshape(d["m"], -1))
    out: F64 = np.zeros((2, a["pages"].size, 2, kv, PAGE, d["head"]))
    place = a["rows"][:, 3].astype(np.int64)
    for i, (k, v) in enumerate(((turned, value), (turned_size, size))):
        both = np.stack([k[:, heads : heads + kv], v[:, heads + kv :]], axis=1)
        out[i, place // PAGE, :, :, place % PAGE] = both
    ulp = np.abs(out[0]) * (_F16_ULP / 2e-6 if d["cache"] == "f16" else 0)
    shape = (a["pages"].size, -1)
    return Expected(out[0].reshape(shape), (out[1] + ulp).reshape(shape))


def _qkv_case(m: int, k: int, heads: int, kv_heads: int, head: int, format: str, **more: object) -> Dims:
    n = (heads + 2 * kv_heads) * head
    more = {"heads": heads, "kv_heads": kv_heads, "head": head, "cache": "f32"} | more
    return _case(m, n, k, more.pop("source", "normed"), format, **more)  # type: ignore[arg-type]


def _qkv_random(rng: np.random.Generator) -> Dims:
    kv_heads, many = int(rng.integers(1, 4)), bool(rng.integers(2))
    return _qkv_case(
        int(rng.integers(9, 40)) if many else (1, 2, 8, 11)[rng.integers(4)],
        int(rng.integers(1, 400)),
        kv_heads * int(rng.integers(1, 4)),
        kv_heads,
        (4, 20, 32)[rng.integers(3)],
        _FEW_FORMATS[rng.integers(len(_FEW_FORMATS))],
        bias=bool(rng.integers(2)),
        cache=("f32", "f16")[rng.integers(2)],
        which=("q", "kv")[rng.integers(2)],
        source="plain" if many else "normed",
        many=many,
    )


QKV = Kernel(
    "qkv",
    _qkv_inputs,
    _run_qkv,
    qkv_reference,
    cases=(
        _qkv_case(1, 1, 1, 1, 4, "f32", which="q"),
        _qkv_case(1, 576, 9, 3, 64, "f16", cache="f16", which="kv"),
        _qkv_case(8, 97, 4, 2, 80, "bf16", bias=True, which="kv"),
        _qkv_case(2, 128, 8, 4, 16, "int4-g64-f16", bias=True, cache="f16", which="q"),
        _qkv_case(33, 64, 2, 1, 32, "f32", which="kv", source="plain", many=True),
    ),
    random=_qkv_random,
    depends=("f16", "matvec", "matmul", "reduce", "share", "order", "lanes", "tiles"),
)
