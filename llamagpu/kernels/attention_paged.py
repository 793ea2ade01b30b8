"""Attention over the paged cache: causal for prompts, and for single new positions in runs that are merged."""

from __future__ import annotations

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import Consts, Pairs, float_format, parts, require, require_floats
from llamagpu.kernels.kv_write import Cache
from llamagpu.kernels.scores import PLAIN, REACH, RUN, Scores

QUERY_BYTES = 8192  # workgroup memory of a tile of queries
PACK_ALIGN = 16  # rows at whose multiples the sequences of a pass begin
_WHOLE_QUERIES = 704  # elements of queries that fit the workgroup memory of attention_decode_whole


def attention_prefill(
    q: Tensor,
    rows: Tensor,
    cache: Cache,
    heads: int,
    out: Tensor | None = None,
    scores: Scores = PLAIN,
    spans: Tensor | None = None,
    relative: Tensor | None = None,
) -> Tensor:
    """Attention of rows whose keys and values are in the cache: causal, of consecutive positions of one sequence; or,
    with ``spans``, in both directions, of rows of several sequences that share a slot.

    Flash attention (arXiv:2205.14135), sums in float32. A sequence's results do not depend on its neighbours in the
    slot if it begins at a multiple of ``BLOCK`` positions.

    Args:
        q: f32 [rows, at least heads · head_dim].
        rows: u32 [rows, 4], the step's state, positions ascending, one slot.
        out: f32 [rows, heads · head_dim].
        spans: u32 [rows, 2], the first and the last position of each row's sequence, ascending.
        relative: f32 [heads, 2 · REACH], added to the scores by the distance from query to key, from -REACH on.
    """
    out = _check(q, cache, heads, out)
    choices, consts, more = _variant(q, heads, scores, spans, relative)
    d, libs = cache.head_dim, _libs(cache)
    queries = _held_queries(d) if libs[0][1] == "neighbours" else min(PACK_ALIGN, QUERY_BYTES // (4 * d))
    queries = 1 << (queries.bit_length() - 1)  # divides PACK_ALIGN, so that no workgroup sees two sequences
    sizes = {"rows": q.rows, "heads": heads, "kv_heads": cache.kv_heads, "stride4": q.stride // 4}
    q.device.dispatch(
        Program("attention_prefill", (*libs, *choices), (*cache.consts, ("QUERIES", queries), *consts)),
        heads * -(-q.rows // queries),
        sizes | {"table": cache.pages.stride} | scores.params(d),
        parts(step_rows=rows, pages=cache.pages, q=q, kv=cache.data, out=out, **more),
        work=q.rows * heads * d * RUN,
    )
    return out


def _variant(
    q: Tensor, heads: int, scores: Scores, spans: Tensor | None, relative: Tensor | None
) -> tuple[Pairs, Consts, dict[str, Tensor]]:
    """The libraries of mask and scores, and their constants and tensors."""
    mask, score = scores.libs
    consts: Consts = ()
    tensors = {}
    if spans is not None:
        require(spans.shape == (q.rows, 2), "attention: spans must be [rows, 2]")
        mask, tensors["spans"] = ("mask", "span"), spans
    if relative is not None:
        require(relative.shape == (heads, 2 * REACH), "attention: relative must be [heads, 2 · REACH]")
        require(scores.cap is None, "attention: scores with a relative bias have no cap")
        score, consts, tensors["relative"] = ("score", "relative"), (("REACH", REACH),), relative
    return (mask, score), consts, tensors


def splits_for(positions: int) -> int:
    """Runs of a sequence with this many positions."""
    return -(-positions // RUN)


def partial_shape(rows: int, heads: int, head_dim: int, splits: int) -> tuple[int, int]:
    """The shape of attention_decode's results: the attention itself if there is one run, otherwise partial results."""
    return rows, heads * (head_dim if splits == 1 else splits * (head_dim + 4))


def attention_decode(
    q: Tensor, rows: Tensor, cache: Cache, heads: int, splits: int, partials: Tensor, scores: Scores = PLAIN
) -> Tensor:
    """Attention of one new position for each row, in runs of ``RUN`` positions, all heads of a group together. With
    more than one run the results are not normalized yet.

    Args:
        q: f32 [rows, at least heads · head_dim].
        rows: u32 [rows, 4], the step's state.
        splits: runs in the grid, at least those that the longest sequence sees; surplus runs exit early.
        partials: f32 ``partial_shape``; ``attention_merge`` reads it.
    """
    _check(q, cache, heads, None, make=False)
    d, group = cache.head_dim, heads // cache.kv_heads
    shader, libs, queries = _decode_form(cache, group)
    tiles = -(-group // queries)
    require(partials.shape == partial_shape(q.rows, heads, d, splits), "attention_decode: partials has another shape")
    q.device.dispatch(
        Program(shader, (*libs, *scores.libs), (*cache.consts, ("QUERIES", queries), ("RUN", RUN))),
        q.rows * cache.kv_heads * tiles * splits,
        {
            "rows": q.rows,
            "kv_heads": cache.kv_heads,
            "group": group,
            "tiles": tiles,
            "splits": splits,
            "stride4": q.stride // 4,
            "table": cache.pages.stride,
            **scores.params(d),
        },
        parts(step_rows=rows, pages=cache.pages, q=q, kv=cache.data, partials=partials),
        work=q.rows * heads * d * RUN * splits * 2,
    )
    return partials


def attention_merge(
    partials: Tensor,
    rows: Tensor,
    heads: int,
    head_dim: int,
    splits: int,
    out: Tensor | None = None,
    scores: Scores = PLAIN,
) -> Tensor:
    """Merge the runs of attention_decode (two or more) in their order and normalize them: [rows, heads · head_dim]."""
    device = require_floats("attention_merge", partials=partials, out=out)
    require(splits > 1, "attention_merge: a single run is normalized already")
    count = rows.rows
    out = out or device.empty((count, heads * head_dim))
    device.dispatch(
        Program("attention_merge", scores.mask, (("D4", head_dim // 4), ("RUN", RUN))),
        -(-count * heads * head_dim // 256),
        {"rows": count, "heads": heads, "splits": splits, "window": scores.window or 0},
        parts(step_rows=rows, partials=partials, out=out),
    )
    return out


def _decode_form(cache: Cache, group: int) -> tuple[str, tuple[tuple[str, str], ...], int]:
    """The shader of ``attention_decode``, the libraries that read the cache, and the heads that share one read."""
    d, libs = cache.head_dim, _libs(cache)
    if cache.data.device.tuning.attention == "whole" and d % _wide(cache) == 0:
        return "attention_decode_whole", _wide_libs(cache), min(group, 4, _WHOLE_QUERIES // d)
    most = _held_queries(d) if libs[0][1] == "neighbours" else min(8, QUERY_BYTES // (4 * d))
    return "attention_decode", libs, min(group, most)


def _wide(cache: Cache) -> int:
    """Elements in a load of 16 bytes."""
    return 8 if cache.data.dtype == "f16" else 4


def _wide_libs(cache: Cache) -> tuple[tuple[str, str], ...]:
    return ("kv_wide", cache.data.dtype), ("words", cache.data.device.tuning.words)


def _libs(cache: Cache) -> tuple[tuple[str, str], ...]:
    if cache.data.device.tuning.share == "subgroup" and cache.head_dim % _wide(cache) == 0:
        return ("flash", "neighbours"), *_wide_libs(cache)
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
