"""Products of vectors with a weight matrix: one kernel family, put together from where the vectors come from, how the
weights are read, and what becomes of the result."""

from __future__ import annotations

from dataclasses import dataclass, field

from llamagpu.gpu import Part, Program, Tensor
from llamagpu.kernels.base import (
    Consts,
    Pairs,
    parts,
    require,
    require_floats,
    require_rows,
    weight_parts,
    weights_libs,
)
from llamagpu.kernels.kv_write import PAGE, Cache

MAX_COLUMNS = 8  # vectors that an invocation of product_rows or product_lanes takes
MERGED_RUNS = 4  # attention runs that a product merges; more are merged in a dispatch of their own
_PIECE_BYTES = {"f32": 16, "f16": 8, "f16_wide": 16, "bf16": 8} | {  # lib/pieces
    "affine8": 4,
    "affine8_wide": 8,
    "affine4": 4,
    "affine4_wide": 8,
}


@dataclass(frozen=True)
class Source:
    """The vectors of a product: m rows of k elements, and what the shader must know of them."""

    m: int
    k: int
    libs: Pairs
    parts: dict[str, Part]
    params: dict[str, float]
    consts: Consts = ()


@dataclass(frozen=True)
class Into:
    """What becomes of a product of m vectors: the epilogue. ``rows`` is how many rows W must have."""

    m: int
    rows: int
    lib: str
    parts: dict[str, Part]
    params: dict[str, float] = field(default_factory=dict)
    libs: Pairs = ()
    consts: Consts = ()


def plain(x: Tensor) -> Source:
    """The rows of an f32 tensor [m, k]."""
    require(len(x.shape) <= 2, "product: x and the weights must be matrices")
    require_floats(x)
    libs = ("source", "plain"), ("norm", "none")
    return Source(x.rows, x.columns, libs, {"x": x.part}, {"x_stride4": x.stride // 4})


def stream_columns(columns: int) -> int:
    """Columns of a stream: the normed elements, padded to groups of four, and a sum of squares for each group."""
    groups = -(-columns // 4)
    return 4 * groups + -(-groups // 4) * 4


def normed(stream: Tensor, columns: int, eps: float) -> Source:
    """RMSNorm of the residual stream, as ``begin_step`` and ``add_norm`` leave it (arXiv:1910.07467).

    Args:
        stream: f32 [m, stream_columns(columns)].
    """
    require_floats(stream)
    require(stream.columns == stream_columns(columns), "product: this is no stream of so many columns")
    params = {"x_stride4": stream.stride // 4, "sums": -(-columns // 4), "eps": eps, "columns": columns}
    return Source(stream.rows, columns, (("source", "plain"), ("norm", "rms")), {"x": stream.part}, params)


def merged(partials: Tensor, rows: Tensor, heads: int, head_dim: int, splits: int) -> Source:
    """The attention whose runs (2 to ``MERGED_RUNS``) ``attention_decode`` left in ``partials``, merged in loading."""
    require(splits <= MERGED_RUNS, f"product: more than {MERGED_RUNS} runs are merged by attention_merge")
    require_rows(rows)
    require_floats(partials)
    libs = ("source", "merge"), ("norm", "none")
    windows = parts(partials=partials, step_rows=rows)
    params: dict[str, float] = {"heads": heads, "splits": splits}
    return Source(rows.rows, heads * head_dim, libs, windows, params, (("D4", head_dim // 4),))


def store(out: Tensor) -> Into:
    """``out[m, n] = product``, f32 [m, n]."""
    require_floats(out)
    return Into(out.rows, out.columns, "store", {"out": out.part}, {"out_stride": out.stride})


def add_to(out: Tensor) -> Into:
    """``out[m, n] += product``, f32 [m, n]."""
    require_floats(out)
    return Into(out.rows, out.columns, "add", {"out": out.part}, {"out_stride": out.stride})


def add_norm(out: Tensor, stream: Tensor, weight: Tensor) -> Into:
    """``out += product``, and the stream that ``normed`` reads for the norm that follows.

    Args:
        out: f32 [m, columns], the residual stream.
        stream: f32 [m, stream_columns(columns)].
        weight: f32 [columns], of the norm.
    """
    require_floats(out, stream, weight)
    require(stream.shape == (out.rows, stream_columns(out.columns)), "add_norm: the stream has another shape")
    require(weight.columns == out.columns, "add_norm: one weight for every column")
    windows = parts(out=out, stream=stream, norm_weight=weight)
    return Into(out.rows, out.columns, "add_norm", windows, {"out_stride": out.stride, "columns": out.columns})


def swiglu(out: Tensor) -> Into:
    """``out[m, n] = silu(product[m, 2n]) · product[m, 2n + 1]``, f32 [m, n] (arXiv:2002.05202)."""
    require_floats(out)
    return Into(out.rows, 2 * out.columns, "swiglu", {"out": out.part}, {"out_stride": out.stride})


def qkv(q: Tensor, rows: Tensor, turns: Tensor, cache: Cache, heads: int) -> Into:
    """Rotary pairs (neighbours) of q and k are turned; q is stored, k and v go to the cache.

    Args:
        q: f32 [m, heads · head_dim].
        rows: u32 [m, 4], the step's state, the place in the cache (``begin_step``) in its last column.
        turns: f32 [positions, head_dim], cosine and sine of each pair side by side.
    """
    d = cache.head_dim
    require_rows(rows)
    require_floats(q, turns)
    require(d % 4 == 0 and q.columns == heads * d, "qkv: q must be [m, heads · head_dim], head_dim a multiple of 4")
    require(turns.columns == d, "qkv: turns must be [positions, head_dim]")
    windows = parts(out=q, turns=turns, step_rows=rows, kv=cache.data)
    params: dict[str, float] = {"out_stride": q.stride, "heads": heads, "kv_heads": cache.kv_heads}
    libs, consts = (("kv_store", cache.data.dtype),), (("D4", d // 4), ("PAGE", PAGE))
    return Into(q.rows, (heads + 2 * cache.kv_heads) * d, "qkv", windows, params, libs, consts)


def product(source: Source, w: Tensor, bias: Tensor | None, into: Into, many: bool = False) -> None:
    """``into(source Wᵀ + bias)``. In one variant a row's order of additions depends on nothing but k and the format.

    Args:
        w: [n, k], f32, f16, bf16 or affine; may have several parts.
        bias: f32 [n].
        many: whether it is a matmul (the tuning's choice for many vectors) or a matvec (that for few).
    """
    tuning = w.device.tuning
    kind = tuning.matmul if many else tuning.matvec
    require(len(w.shape) == 2, "product: x and the weights must be matrices")
    require(w.dtype != "u32", "product: weights are f32, f16, bf16 or affine")
    require(source.k == w.columns, f"product: x has {source.k} columns, the weights {w.columns}")
    require(into.m == source.m and into.rows == w.rows, f"product: out must be [{source.m}, {w.rows}]")
    require(bias is None or bias.columns == w.rows, "product: one bias for every row of the weights")
    require(into.lib == "store" or all(p.first % 4 == 0 for p in w.parts), "product: parts begin at multiples of four")
    cut = {"rows": _rows, "lanes": _lanes, "tiled": _tiled}[kind](source, w)
    program = _program(source, w, bias, into, cut)
    extra = source.parts | into.parts | ({} if bias is None else {"bias": bias.part})
    for part, bindings in weight_parts(w):
        w.device.dispatch(
            program,
            -(-part.rows // cut.rows) * -(-source.m // cut.columns),
            _params(source, w, part, into, cut.stride),
            extra | bindings,
            work=source.m * part.rows * w.columns,
            reads=part.rows * w.row_bytes,
        )


@dataclass(frozen=True)
class _Cut:
    """A shader of the family: rows of W and vectors to a workgroup, loads from a row of W to the next, and how it reads
    them."""

    shader: str
    rows: int
    columns: int
    stride: int
    libs: Pairs
    consts: Consts


def _rows(source: Source, w: Tensor) -> _Cut:
    libs, consts = weights_libs(w)
    columns = min(source.m, MAX_COLUMNS)
    libs = (*libs, ("share", w.device.tuning.share))
    return _Cut("product_rows", 64, columns, w.loads, libs, (*consts, ("COLS", columns)))


def _tiled(source: Source, w: Tensor) -> _Cut:
    libs, consts = weights_libs(w)
    for down, across in ((8, 2), (8, 1), (4, 1)):  # the largest tiles that give every core of the GPU one
        if -(-source.m // (16 * down)) * -(-w.rows // (64 * across)) >= w.device.tuning.tiles:
            break
    own = ("DOWN", down), ("ACROSS", across)
    return _Cut("product_tiled", 64 * across, 16 * down, w.loads, libs, (*consts, *own))


def _lanes(source: Source, w: Tensor) -> _Cut:
    libs, consts = weights_libs(w)
    chosen = dict(libs)
    pieces = chosen.pop("weights").removesuffix("_native").removesuffix("_g16")
    a = w.device.tuning.lanes_for(pieces, w.columns, w.rows)
    columns = 1 << (min(source.m, MAX_COLUMNS) - 1).bit_length()
    rows, ahead = (a.rows, a.ahead) if columns == 1 else (4, a.several)
    teams = a.workgroup // a.lanes
    if a.wide and f"{pieces}_wide" in _PIECE_BYTES:
        pieces += "_wide"
    gathered = teams * (columns + (-(-columns // 4) if dict(source.libs)["norm"] == "rms" else 0))
    own = {"COLS": columns, "LANES": a.lanes, "ROWS": rows, "AHEAD": ahead, "WORKGROUP": a.workgroup}
    return _Cut(
        "product_lanes",
        teams * rows,
        columns,
        w.data_bytes // _PIECE_BYTES[pieces],
        (("pieces", pieces), ("scaling", chosen.pop("fold")), *chosen.items(), ("gather", w.device.tuning.reduce)),
        (*consts, *own.items(), ("GATHERED", gathered)),
    )


def _program(source: Source, w: Tensor, bias: Tensor | None, into: Into, cut: _Cut) -> Program:
    tiled = cut.shader == "product_tiled"
    require(not tiled or dict(source.libs)["norm"] == "none", "product: many vectors are normed before")
    sources = tuple(pair for pair in source.libs if not tiled or pair[0] != "norm")
    both = (("bias", "none" if bias is None else "add"), ("epilogue", into.lib), *into.libs)
    consts = dict((*cut.consts, *source.consts, *into.consts))
    return Program(cut.shader, (*cut.libs, *sources, *both), tuple(consts.items()))


def _params(source: Source, w: Tensor, part: Part, into: Into, stride: int) -> dict[str, float]:
    """The uniforms of every product (``lib/product.wgsl``)."""
    names = ("x_stride4", "out_stride", "sums", "eps", "columns", "heads", "kv_heads", "splits")
    return (
        dict.fromkeys(names, 0)
        | into.params
        | source.params
        | {
            "m": source.m,
            "rows": part.rows,
            "first": part.first,
            "k4": -(-w.columns // 4),
            "stride": stride,
            "groups": 0 if w.affine is None else w.columns // w.affine.group,
        }
    )
