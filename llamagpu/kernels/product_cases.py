"""Cases that the products with an epilogue share: inputs, sources and their float64 references."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llamagpu.gpu import Affine, Tensor
from llamagpu.kernels.attention_paged import partial_shape, splits_for
from llamagpu.kernels.dequantize import FLOATS, columns_for, put_weights, weight_inputs
from llamagpu.kernels.dequantize import reference as weight_reference
from llamagpu.kernels.entry import Arrays, Bench, Dims
from llamagpu.kernels.prenorm import prenorm_reference
from llamagpu.kernels.product import Source, merged, normed, plain
from llamagpu.kernels.scores import RUN, Scores
from llamagpu.kernels.step import step_rows

EPS = 1e-5
FEW_FORMATS = ("f32", "f16", "int4-g64-f16")  # formats of random cases; matvec and matmul cover every format

# Every case has m rows of x and a matrix [n, k]; its "source" is plain, normed or merge.


def _splits(d: Dims) -> int:
    return max(2, Scores(window=d["window"]).splits(splits_for(d["length"])))


def _source_inputs(rng: np.random.Generator, d: Dims, k: int) -> Arrays:
    m = d["m"]
    if d["source"] == "plain":
        return {"x": rng.standard_normal((m, k)).astype(np.float32)}
    if d["source"] == "normed":
        x = rng.standard_normal((m, k)).astype(np.float32) * np.float32(rng.uniform(0.1, 9))
        return {"x": prenorm_reference(x, rng.standard_normal(k).astype(np.float32))}
    heads, splits = k // d["head"], _splits(d)
    positions = rng.integers(0, d["length"], m)
    partials = rng.standard_normal((m, heads, splits, d["head"] + 4)).astype(np.float32)
    partials[..., d["head"]] *= rng.choice(
        [1, 150], (m, heads, 1)
    )  # scores also lie so far apart that e^score overflows
    partials[..., d["head"] + 1] = rng.uniform(1, 9, (m, heads, splits))
    return {"x": partials.reshape(m, -1), "rows": step_rows([0] * m, positions)}


def _put_source(bench: Bench, a: Arrays, d: Dims, k: int) -> Source:
    x = bench.put(a["x"])
    if d["source"] == "plain":
        return plain(x)
    if d["source"] == "normed":
        return normed(x, k, EPS)
    heads, splits = k // d["head"], _splits(d)
    assert x.shape == partial_shape(d["m"], heads, d["head"], splits)
    return merged(x, bench.put(a["rows"], "u32"), heads, d["head"], splits, Scores(window=d["window"]))


def _source_reference(a: Arrays, d: Dims, k: int) -> tuple[Any, Any]:
    """The vectors in float64, and the scale of their error."""
    x = a["x"].astype(np.float64)
    if d["source"] == "plain":
        return x, np.abs(x)
    if d["source"] == "normed":
        groups = -(-k // 4)
        scale = 1 / np.sqrt(x[:, 4 * groups :].sum(axis=1, keepdims=True) / k + np.float32(d.get("eps", EPS)))
        return x[:, :k] * scale, np.abs(x[:, :k]) * scale
    runs = x.reshape(d["m"], k // d["head"], -1, d["head"] + 4)
    position = a["rows"][:, 1].astype(np.int64)
    first = np.array([Scores(window=d["window"]).begin(int(p)) for p in position])
    inside = np.arange(runs.shape[2]) <= (position // RUN - first // RUN)[:, None]
    tops = np.where(inside[:, None], runs[..., d["head"]], -np.inf)
    keep = np.exp(tops - tops.max(axis=-1, keepdims=True))[..., None]
    total = (keep * runs[..., d["head"] + 1, None]).sum(axis=2)
    value, size = ((keep * part[..., : d["head"]]).sum(axis=2) / total for part in (runs, np.abs(runs)))
    return value.reshape(d["m"], k), size.reshape(d["m"], k)


def _columns(d: Dims) -> int:
    if d["source"] == "merge":
        group = 1 if d["format"] in FLOATS else Affine.parse(d["format"]).group
        whole = math.lcm(int(d["head"]), group)
        return -(-int(d["k"]) // whole) * whole
    return columns_for(d["k"], d["format"])


def product_inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    """x or its source, weights, bias, and a residual stream with the weight of its next norm."""
    k = _columns(d)
    a = _source_inputs(rng, d, k) | weight_inputs(rng, d["n"], k, d["format"])
    shape = (d["m"], d["n"]) if d["bias"] == "rows" else (d["n"],)
    a["bias"] = rng.standard_normal(shape).astype(np.float32)
    a["out"] = rng.standard_normal((d["m"], d["n"])).astype(np.float32)
    a["norm"] = rng.standard_normal((d["n"],)).astype(np.float32)
    return a


def product_reference(a: Arrays, d: Dims) -> tuple[Any, Any]:
    """The product with its bias in float64, and the scale of its error Σ|w · x| + |bias|."""
    (x, size), w = _source_reference(a, d, _columns(d)), weight_reference(a, d)
    bias = a["bias"] if d["bias"] else np.zeros(d["n"])
    return x @ w.value.T + bias, size @ w.scale.T + np.abs(bias)


def product_setup(bench: Bench, a: Arrays, d: Dims) -> tuple[Source, Tensor, Tensor | None]:
    """Source, weights and bias of a case on the device."""
    k = _columns(d)
    return _put_source(bench, a, d, k), put_weights(bench, a, d), bench.put(a["bias"]) if d["bias"] else None


def product_case(m: int, n: int, k: int, source: str, format: str, bias: bool | str = False, **more: object) -> Dims:
    """The dims of a case. A bias of ``rows`` has a row for each of the m rows."""
    sizes = {"m": m, "n": n, "k": k, "source": source, "format": format, "bias": bias}
    return sizes | {"head": 8, "length": 600, "window": None, "many": False} | more


def product_random(rng: np.random.Generator, step: int, sources: tuple[str, ...], **more: object) -> Dims:
    """A random case with n a multiple of ``step``, and one of the sources."""
    n, k = step * int(rng.integers(1, 300 // step)), int(rng.integers(1, 500))
    format, bias = FEW_FORMATS[rng.integers(len(FEW_FORMATS))], (False, True, "rows")[rng.integers(3)]
    many = bool(rng.integers(2)) and "normed" not in sources
    rows = int(rng.integers(9, 40)) if many else (1, 2, 8, 11)[rng.integers(4)]
    length, head = int(rng.integers(1, 1024)), (8, 20)[rng.integers(2)]
    source = "plain" if many else sources[rng.integers(len(sources))]
    return product_case(rows, n, k, source, format, bias, length=length, head=head, many=many, **more)
