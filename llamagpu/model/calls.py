"""The calls of a forward pass as cases of kernels: arrays and dims of the reference, and the outputs to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from llamagpu.kernels import REGISTRY
from llamagpu.kernels.check import by_name, relative_error
from llamagpu.kernels.entry import Arrays
from llamagpu.kernels.kv_write import cache_columns
from llamagpu.kernels.prenorm import prenorm_columns
from llamagpu.kernels.product_cases import product_case
from llamagpu.kernels.qk_norm import NORMS
from llamagpu.model.layout import Key
from llamagpu.model.replay import Step

if TYPE_CHECKING:
    from llamagpu.model.expected import References

# The kernel, the arrays and dims of its reference, and its outputs: by the reference's name, a name and the values.
Called = tuple[str, Arrays, dict[str, Any], Mapping[str, tuple[str, Any]]]
_BLOCK = 8192  # rows of a tall matrix that are held in float64 at a time


def _product(r: References, step: Step) -> Called:
    key, p = r.key(step, "weights_data"), step.params
    assert key is not None
    n, k, normed = r.matrix(key).rows, r.matrix(key).columns, step.libs.get("norm") == "rms"
    form = "normed" if normed else "plain", str(r.matrix(key).format), "bias" in step.bindings
    d: dict[str, Any] = {**product_case(p["m"], n, k, *form), "eps": p["eps"]}
    a: Arrays = {"x": step.before("x", prenorm_columns(k) if normed else k, p["m"])}
    if d["bias"]:
        a["bias"] = r.vector(step, "bias")
    epilogue = step.libs["epilogue"]
    return _EPILOGUES[epilogue](r, step, key, a, d)


def _store(r: References, step: Step, key: Key, a: Arrays, d: dict[str, Any]) -> Called:
    """Logits and other products that are stored. Of a tall matrix, the rows with the largest error are compared."""
    n, name, got = d["n"], r.name(step, "weights_data"), step.after("out", d["n"], d["m"])
    d |= {"factor": step.params["factor"], "cap": step.params["cap"] if step.libs["epilogue"] == "cap" else None}
    found: list[tuple[float, Called]] = []
    for first in range(0, n, _BLOCK):
        rows = slice(first, min(n, first + _BLOCK))
        part = a | r.weights(key, first, rows.stop - first) | ({"bias": a["bias"][rows]} if d["bias"] else {})
        sizes = d | {"n": rows.stop - first}
        values = got[:, rows]
        error = relative_error(values, by_name(REGISTRY["store"].reference(part, sizes))[""])
        found.append((error, ("store", part, sizes, {"": (name, values)})))
    return max(found, key=lambda f: f[0])[1]


def _qkv(r: References, step: Step, key: Key, a: Arrays, d: dict[str, Any]) -> Called:
    c, state = r.config, step.before("step_rows", 4, d["m"], "u32")
    kv = step.after("kv", cache_columns(c.num_key_value_heads, c.head_dim), dtype=r.kv)
    a |= r.weights(key, 0, d["n"]) | {"cos_sin": r.table(step), "rows": state}
    a |= {"places": state[:, 3].astype(np.int64), "pages": np.arange(len(kv), dtype=np.uint32)[None]}
    d |= {"heads": c.num_attention_heads, "kv_heads": c.num_key_value_heads, "head": c.head_dim, "cache": r.kv}
    return "qkv", a, d, {"q": ("q", step.after("out", c.q_size, d["m"])), "kv": ("cache", kv)}


def _glu(r: References, step: Step, key: Key, a: Arrays, d: dict[str, Any]) -> Called:
    d |= {"activation": step.libs["activation"], "gated": step.libs["epilogue"] == "glu"}
    out = step.after("out", d["n"] // 2 if d["gated"] else d["n"], d["m"])
    return "glu", a | r.weights(key, 0, d["n"]), d, {"": (r.name(step, "weights_data"), out)}


def _added(r: References, step: Step, key: Key, a: Arrays, d: dict[str, Any]) -> Called:
    n, m, name = d["n"], d["m"], r.name(step, "weights_data")
    a |= r.weights(key, 0, n) | {"out": step.before("out", n, m)}
    d |= {"factor": step.params["factor"], "norm": step.libs["epilogue"] == "add_norm"}
    out = name, step.after("out", n, m)
    if not d["norm"]:
        return "residual", a, d, {"": out}
    prepared = f"next {r.name(step, 'norm_weight')}", step.after("prenorm", prenorm_columns(n), m)
    return "residual", a | {"norm": r.vector(step, "norm_weight")}, d, {"out": out, "prenorm": prepared}


_EPILOGUES: dict[str, Callable[[References, Step, Key, Arrays, dict[str, Any]], Called]] = {
    "store": _store,
    "cap": _store,
    "qkv": _qkv,
    "glu": _glu,
    "activate": _glu,
    "add": _added,
    "add_norm": _added,
}


def _begin_step(r: References, step: Step) -> Called:
    p = step.params
    rows, pages = step.before("step_rows", 4, p["rows"], "u32"), step.before("pages", p["table"], dtype="u32")
    a, format = r.looked_up(step, rows, p["columns"])
    d = {"format": format, "norm": "prenorm" in step.bindings, "factor": p["factor"]}
    numbered, state = rows.copy(), step.after("step_rows", 4, p["rows"], "u32").copy()
    numbered[:, 0] = state[:, 0] = np.arange(len(rows))  # rows of the table that were looked up
    found = {"rows": ("places", state), "out": ("embedding", step.after("out", p["columns"], p["rows"]))}
    if d["norm"]:
        a["weight"] = r.vector(step, "norm_weight")
        prepared = step.after("prenorm", prenorm_columns(p["columns"]), p["rows"])
        found["prenorm"] = (f"next {r.name(step, 'norm_weight')}", prepared)
    return "begin_step", a | {"rows": numbered, "pages": pages}, d, found


def _embedding(r: References, step: Step) -> Called:
    rows, columns = step.before("step_rows", 4, step.params["rows"], "u32"), r.config.hidden_size
    a, format = r.looked_up(step, rows, columns)
    numbered = rows.copy()
    numbered[:, 0] = np.arange(len(rows))
    name = "picked rows" if r.key(step, "weights_data") is None else "embedding"
    out = step.after("out", columns, len(rows))
    return "embedding", a | {"rows": numbered}, {"format": format, "factor": step.params["factor"]}, {"": (name, out)}


def _norm(r: References, step: Step) -> Called:
    p, name = step.params, r.name(step, "weight")
    columns, rows = p["columns"], p["rows"]
    a = {"x": step.before("x", columns, rows), "weight": r.vector(step, "weight")}
    d = {"rows": rows, "columns": columns, "eps": p["eps"], "add": bool(step.consts["ADD"])}
    d["norm"] = step.libs["next"] == "prenorm"
    out = name, step.after("out", columns, rows)
    if not d["add"] and not d["norm"]:
        return "rms_norm", a, d, {"": out}
    a["out"] = step.before("out", columns, rows)
    if not d["norm"]:
        return "post_norm", a, d, {"": out}
    prepared = f"next {r.name(step, 'norm_weight')}", step.after("prenorm", prenorm_columns(columns), rows)
    return "post_norm", a | {"next": r.vector(step, "norm_weight")}, d, {"out": out, "prenorm": prepared}


def _cache(r: References, step: Step, a: Arrays) -> tuple[str, Any]:
    """The cache after a call that writes to the places of the rows' positions."""
    c, p = r.config, step.params
    a["rows"] = step.before("step_rows", 4, p["rows"], "u32")
    a["pages"] = step.before("pages", p["table"], dtype="u32")
    kv = step.after("kv", cache_columns(c.num_key_value_heads, c.head_dim), dtype=r.kv)
    return "cache", kv


def _qk_norm(r: References, step: Step) -> Called:
    c, p = r.config, step.params
    norm = {number: name for name, number in NORMS.items()}[step.consts["NORM"]]
    a: Arrays = {"x": step.before("x", c.q_size + 2 * c.kv_size, p["rows"]), "cos_sin": r.table(step)}
    a["weight"] = np.ones(2 * c.head_dim, np.float32) if norm is None else r.vector(step, "weight")
    d = {"rows": p["rows"], "heads": p["heads"], "kv_heads": p["kv_heads"], "head": c.head_dim, "norm": norm}
    d |= {"eps": p["eps"], "beta": p["beta"], "original": p["original"], "cache": r.kv}
    kv = _cache(r, step, a)
    return "qk_norm", a, d, {"q": ("q", step.after("out", c.q_size, p["rows"])), "kv": kv}


def _rope(r: References, step: Step) -> Called:
    c, p = r.config, step.params
    columns = c.q_size + 2 * c.kv_size
    a = {"x": step.before("x", columns, p["rows"]), "cos_sin": r.table(step)}
    a["rows"] = step.before("step_rows", 4, p["rows"], "u32")
    d = {"rows": p["rows"], "heads": p["heads"], "head": 2 * p["half"], "interleaved": True}
    return "rope", a, d, {"": ("q and k", step.after("x", columns, p["rows"]))}


def _kv_write(r: References, step: Step) -> Called:
    c, p = r.config, step.params
    a: Arrays = {"x": step.before("x", c.q_size + 2 * c.kv_size, p["rows"])}
    kv = _cache(r, step, a)
    d = {"first": 4 * p["first4"], "kv_heads": c.num_key_value_heads, "head": c.head_dim, "format": r.kv}
    return "kv_write", a, d, {"": kv}


def _attention(r: References, step: Step) -> Called:
    c, p, libs = r.config, step.params, step.libs
    heads, prefill = c.num_attention_heads, step.program.shader == "attention_prefill"
    a: Arrays = {"q": step.before("q", 4 * p["stride4"], p["rows"])}
    a["data"] = step.before("kv", cache_columns(c.num_key_value_heads, c.head_dim), dtype=r.kv)
    a["rows"] = step.before("step_rows", 4, p["rows"], "u32")
    a["pages"] = step.before("pages", p["table"], dtype="u32")
    d = {"rows": p["rows"], "heads": heads, "kv_heads": c.num_key_value_heads, "head": c.head_dim, "scale": p["scale"]}
    d |= {"cap": p["cap"] if libs["score"] == "cap" else None}
    d |= {"window": p["window"] if libs["mask"] == "window" else None}
    out = step.after("out" if prefill else "partials", heads * c.head_dim, p["rows"])
    return "attention_prefill" if prefill else "attention_decode", a, d, {"": ("attention", out)}


def _gate(r: References, step: Step) -> Called:
    rows, columns = step.params["rows"], step.params["columns"]
    a = {"x": step.before("x", 2 * columns, rows)}
    return "gate", a, {"activation": step.libs["activation"]}, {"": ("gated", step.after("out", columns, rows))}


def _elementwise(r: References, step: Step) -> Called:
    operation, c = step.libs["operation"], r.config
    if operation == "add":
        a = {name: step.before(name, c.hidden_size) for name in ("a", "b")}
        return "add", a, {}, {"": ("residual", step.after("out", c.hidden_size))}
    columns = c.hidden_size if operation == "scale" else c.intermediate_size
    a, factor = {"x": step.before("x", columns)}, step.params["factor"]
    out = step.after("out", columns)
    if operation == "scale":
        return "scale", a, {"factor": factor}, {"": ("scaled", out)}
    return "activate", a, {"activation": step.libs["activation"]}, {"": ("activated", out)}


SAMPLING = {"sample", "logits_process", "logits_select"}  # not intermediates: they choose a token
CALLS: dict[str, Callable[[References, Step], Called]] = {
    "product_rows": _product,
    "product_lanes": _product,
    "product_passes": _product,
    "product_block": _product,
    "product_tiled": _product,
    "begin_step": _begin_step,
    "embedding": _embedding,
    "rms_norm": _norm,
    "qk_norm": _qk_norm,
    "rope": _rope,
    "kv_write": _kv_write,
    "attention_prefill": _attention,
    "attention_decode": _attention,
    "attention_decode_whole": _attention,
    "gate": _gate,
    "elementwise": _elementwise,
}
