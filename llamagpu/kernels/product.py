"""Products of vectors with a weight matrix: one kernel family.

A product is linked from a source (where the vectors come from), a weight format, a bias and an epilogue (what to do
with each product). Sources are here; epilogues other than ``store`` are in ``residual``, ``glu`` and ``qkv``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llamagpu.gpu import Lanes, Part, Program, Tensor
from llamagpu.kernels.arguments import (
    Consts,
    Pairs,
    owner,
    parts,
    require,
    require_floats,
    require_rows,
    require_vectors,
    weight_parts,
    weights_libs,
)
from llamagpu.kernels.prenorm import prenorm_columns
from llamagpu.kernels.scores import PLAIN, RUN, Scores

MAX_VECTORS = 8  # vectors that an invocation of product_rows or product_lanes takes
MERGED_RUNS = 4  # attention runs that a product can merge; more take a dispatch of their own
# lib/pieces: bytes, and vec4s of x that a piece is multiplied with
_SIZES = {"f32": (16, 1), "f16": (8, 1), "f16_wide": (16, 2), "bf16": (8, 1)} | {
    "affine8": (4, 1),
    "affine8_wide": (8, 2),
    "affine4": (4, 2),
    "affine4_wide": (8, 4),
}
_STAGE = 512  # most vec4s of x that product_block keeps in workgroup memory: 8 KiB, beside what lib/gather needs
# lib/gather: the file for the tuning's reduce and gather
_GATHERS = {
    ("workgroup", "whole"): "workgroup",
    ("workgroup", "transposed"): "flat",
    ("subgroup", "whole"): "subgroup",
    ("subgroup", "transposed"): "transposed",
}
_PIECES = {"f16_native": "f16", "affine4_g16": "affine4"}  # formats that share the pieces of another


@dataclass(frozen=True)
class Source:
    """The vectors of a product: m rows of k elements, and the libraries that read them."""

    m: int
    k: int
    norm: str  # the factor that scales a row of products: lib/norm
    libs: Pairs
    parts: dict[str, Part]
    params: dict[str, float]
    consts: Consts = ()


@dataclass(frozen=True)
class Epilogue:
    """What to do with each product of m vectors. ``rows`` is the number of rows W must have."""

    m: int
    rows: int
    lib: str
    parts: dict[str, Part]
    params: dict[str, float] = field(default_factory=dict)
    libs: Pairs = ()
    consts: Consts = ()


def plain(x: Tensor) -> Source:
    """The rows of an f32 tensor [m, k]."""
    require_floats("product", x=x)
    require(len(x.shape) <= 2, "product: x and the weights must be matrices")
    return Source(x.rows, x.columns, "none", (("source", "plain"),), {"x": x.part}, {"x_stride4": x.stride // 4})


def normed(prenorm: Tensor, columns: int, eps: float) -> Source:
    """RMSNorm of the residual stream from its prenorm buffer (arXiv:1910.07467).

    Args:
        prenorm: f32 [m, prenorm_columns(columns)], as ``begin_step`` and ``add_norm`` write it.
    """
    require_floats("product", prenorm=prenorm)
    require(prenorm.columns == prenorm_columns(columns), f"product: this is not a prenorm buffer of {columns} columns")
    params = {"x_stride4": prenorm.stride // 4, "sums": -(-columns // 4), "eps": eps, "columns": columns}
    return Source(prenorm.rows, columns, "rms", (("source", "plain"),), {"x": prenorm.part}, params)


def merged(partials: Tensor, rows: Tensor, heads: int, head_dim: int, splits: int, scores: Scores = PLAIN) -> Source:
    """Attention, merged while loading from the runs (2 to ``MERGED_RUNS``) that ``attention_decode`` left in
    ``partials``."""
    require(splits <= MERGED_RUNS, f"product: more than {MERGED_RUNS} runs are merged by attention_merge")
    require_rows("product", rows)
    require_floats("product", partials=partials)
    windows = parts(partials=partials, step_rows=rows)
    params: dict[str, float] = {"heads": heads, "splits": splits, "window": scores.window or 0}
    consts = ("D4", head_dim // 4), ("RUN", RUN), ("MERGED", MERGED_RUNS)
    return Source(rows.rows, heads * head_dim, "none", (("source", "merge"), *scores.mask), windows, params, consts)


def store(out: Tensor, factor: float = 1.0, cap: float | None = None) -> Epilogue:
    """``out[m, n] = factor · product``, f32 [m, n]; with a cap, cap · tanh(that / cap) (Gemma 2, arXiv:2408.00118)."""
    require_floats("product", out=out)
    require(len(out.shape) <= 2, "product: out must be a matrix")
    params = {"out_stride": out.stride, "factor": factor, "cap": cap or 0.0}
    return Epilogue(out.rows, out.columns, "store" if cap is None else "cap", {"out": out.part}, params)


def product(source: Source, w: Tensor, bias: Tensor | None, epilogue: Epilogue, many: bool = False) -> None:
    """``epilogue(source Wᵀ + bias)``. In one tuning, a row's order of additions depends only on k and the format.

    Args:
        w: [n, k], f32, f16, bf16 or affine; may have several parts.
        bias: f32 [n], or [m, n] with a row for every row of the product.
        many: whether this is a matmul (the tuning's choice for many vectors) or a matvec (for few).
    """
    device = owner("product", w=w, bias=bias)
    require(len(w.shape) == 2, "product: x and the weights must be matrices")
    require(w.dtype != "u32", "product: weights are f32, f16, bf16 or affine")
    require(source.k == w.columns, f"product: x has {source.k} columns, the weights {w.columns}")
    require(epilogue.m == source.m and epilogue.rows == w.rows, f"product: out must be [{source.m}, {w.rows}]")
    require_vectors("product", w.rows, bias=None if bias is None or bias.rows == source.m else bias)
    require(bias is None or bias.columns == w.rows, f"product: bias must have {w.rows} columns, not {bias!r}")
    aligned = epilogue.lib in ("store", "cap") or all(p.first % 4 == 0 for p in w.parts)
    require(aligned, "product: parts begin at multiples of four")
    kind = device.tuning.matmul if many else device.tuning.matvec
    division = {"rows": _rows, "lanes": _lanes, "tiled": _tiled}[kind](source, w)
    program = _program(source, bias, epilogue, division)
    bias_stride = 0 if bias is None or bias.rows == 1 else bias.stride
    extra = source.parts | epilogue.parts | ({} if bias is None else {"bias": bias.part})
    for part, bindings in weight_parts(w):
        device.dispatch(
            program,
            -(-part.rows // division.rows) * -(-source.m // division.vectors),
            _params(source, w, part, epilogue, division.stride) | {"bias_stride": bias_stride},
            extra | bindings,
            work=source.m * part.rows * w.columns,
            reads=part.rows * w.row_bytes,
        )


@dataclass(frozen=True)
class _Division:
    """A shader of the family, and how it divides the work.

    ``rows`` of W and ``vectors`` go to a workgroup; ``stride`` counts loads from one row of W to the next; ``libs``
    read them.
    """

    shader: str
    rows: int
    vectors: int
    stride: int
    libs: Pairs
    consts: Consts
    norms: bool = True  # whether it can scale by a norm


def _rows(source: Source, w: Tensor) -> _Division:
    libs, consts = weights_libs(w)
    vectors = min(source.m, MAX_VECTORS)
    libs = (*libs, ("share", w.device.tuning.share))
    return _Division("product_rows", 64, vectors, w.loads, libs, (*consts, ("VECTORS", vectors)))


def _tiled(source: Source, w: Tensor) -> _Division:
    libs, consts = weights_libs(w)
    for down, across in ((8, 2), (8, 1), (4, 1)):  # the largest tiles that give enough workgroups
        if -(-source.m // (16 * down)) * -(-w.rows // (64 * across)) >= w.device.tuning.tiles:
            break
    own = ("DOWN", down), ("ACROSS", across)
    return _Division("product_tiled", 64 * across, 16 * down, w.loads, libs, (*consts, *own), norms=False)


def _lanes(source: Source, w: Tensor) -> _Division:
    tuning = w.device.tuning
    libs, consts = weights_libs(w)
    chosen = dict(libs)
    format = chosen.pop("weights")
    pieces = _PIECES.get(format, format)
    a = tuning.lanes_for(pieces, w.columns, w.rows)
    if a.wide and f"{pieces}_wide" in _SIZES:
        pieces += "_wide"
    nbytes, loads = _SIZES[pieces]
    vectors = 1 << (min(source.m, MAX_VECTORS) - 1).bit_length()
    shader, own = _lanes_shader(a, vectors, loads, w.columns)
    teams, rows, passes = a.workgroup // a.lanes, own["ROWS"], own["PASSES"]
    joined = tuning.squares == "joined" and source.norm == "rms" and vectors == 1 and rows < 4
    squares = 0 if joined or source.norm == "none" else -(-vectors // 4)
    gathered = teams * (passes * vectors + squares)
    own |= {"VECTORS": vectors, "LANES": a.lanes, "WORKGROUP": a.workgroup, "GATHERED": gathered}
    choices = {"pieces": pieces, "scaling": chosen.pop("fold")} | chosen
    choices |= {"gather": _GATHERS[tuning.reduce, tuning.gather], "squares": "joined" if joined else "apart"}
    if w.affine is not None:
        choices["digits"] = tuning.digits
    return _Division(
        shader,
        (2 if shader == "product_block" else 1) * teams * passes * rows,
        vectors,
        w.data_bytes // nbytes,
        tuple(choices.items()),
        (*consts, *own.items()),
    )


def _lanes_shader(a: Lanes, vectors: int, loads: int, columns: int) -> tuple[str, dict[str, int]]:
    """The kernel for a division, and its own constants. ``loads`` is the number of vec4s of x for a piece."""
    if vectors == MAX_VECTORS and a.block == 8:
        staged = max(1, min(vectors, _STAGE // (a.lanes * loads)))
        return "product_block", {"ROWS": 4, "PASSES": 1, "STAGED": staged, "SHARED": staged * a.lanes * loads}
    finishes = a.rows * a.passes <= 4 * a.lanes  # an invocation finishes up to four rows
    if vectors == 1 and a.passes > 1 and a.holds(columns) and finishes:
        pieces = -(-columns // (4 * loads * a.lanes))
        held = 1 << (pieces - 1).bit_length()
        return "product_passes", {"ROWS": a.rows, "PASSES": a.passes, "HELD": held, "SHARED": 0}
    rows, ahead = (a.rows, a.ahead) if vectors == 1 else (4, a.several)
    return "product_lanes", {"ROWS": rows, "PASSES": 1, "AHEAD": ahead, "SHARED": 0}


def _program(source: Source, bias: Tensor | None, epilogue: Epilogue, division: _Division) -> Program:
    require(division.norms or source.norm == "none", "product: normalize many vectors before the product")
    norm = (("norm", source.norm),) if division.norms else ()
    ends = (("bias", "none" if bias is None else "add"), ("epilogue", epilogue.lib), *epilogue.libs)
    consts = dict((*division.consts, *source.consts, *epilogue.consts))
    return Program(division.shader, (*division.libs, *source.libs, *norm, *ends), tuple(consts.items()))


def _params(source: Source, w: Tensor, part: Part, epilogue: Epilogue, stride: int) -> dict[str, float]:
    """The uniforms of a part of a product."""
    groups = 0 if w.affine is None else w.columns // w.affine.group
    own = {"rows": part.rows, "first": part.first, "stride": stride, "groups": groups}
    return uniforms(source) | epilogue.params | source.params | own


def uniforms(source: Source) -> dict[str, float]:
    """The uniforms of everything that reads a source (``lib/product.wgsl``); those that it does not know are 0."""
    sizes = ("rows", "first", "stride", "groups", "x_stride4", "out_stride", "sums", "eps", "columns")
    names = (*sizes, "heads", "kv_heads", "splits", "window", "cap", "bias_stride")
    return dict.fromkeys(names, 0) | {"factor": 1.0, "m": source.m, "k4": -(-source.k // 4)} | source.params
