"""Rotary embedding as configs state it: the types, the values that each reads, and both forms of the config."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llamagpu.errors import UnsupportedModelError, printable, shown
from llamagpu.model.config_values import Values, bad_config

log = logging.getLogger("llamagpu")
_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": (),
    "ntk_alpha": (),  # Hunyuan's name in transformers for its own dynamic
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": (),
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "dynamic": ("factor",),
    "ntk_alpha": ("alpha", "factor"),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    "longrope": ("factor", "attention_factor"),
}
_SCALED = ("yarn", "llama3", "longrope")  # types that read original_max_position_embeddings
_KNOWN = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "truncate"),
    *("short_factor", "long_factor", "llama_4_scaling_beta", "max_position_embeddings", "finetuned"),
    *(key for keys in (*_NEEDED.values(), *_OPTIONAL.values()) for key in keys),
}


@dataclass(frozen=True)
class Rope:
    """Rotary embedding (arXiv:2104.09864): ``rope_type``, the values that this type reads under their names in
    config.json, and what is derived from them.

    Attributes:
        rotary: elements of a head that are rotated, the first ones.
        attention_factor: factor of cosines and sines.
        backwards: whether it rotates the other way.
    """

    rope_type: str = "default"
    rope_theta: float = 10000.0
    rotary: int = 0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    alpha: float = 0.0
    llama_4_scaling_beta: float = 0.0
    backwards: bool = False

    @property
    def query_scaling(self) -> tuple[float, int] | None:
        """(beta, original) of Llama 4's scaling of queries by position, or None."""
        beta = self.llama_4_scaling_beta
        return (beta, self.original_max_position_embeddings) if beta else None


@dataclass(frozen=True)
class RopeContext:
    """What a config and its architecture say of rotary embedding outside of the block of rope parameters.

    Attributes:
        theta: the rope_theta of a block without one.
        original: original_max_position_embeddings, which precedes the block's; None where the architecture has no such
            key.
        partial: partial_rotary_factor; None where the architecture rotates whole heads.
        names: other names of rope types.
        backwards: see ``Rope``.
    """

    theta: Any
    head_dim: int
    max_position_embeddings: int
    original: Any = None
    partial: Any = None
    names: Mapping[str, str] = field(default_factory=dict)
    backwards: bool = False


def parse_rope(block: Mapping[str, Any], context: RopeContext) -> Rope:
    """A Rope from ``rope_parameters`` or ``rope_scaling``.

    Raises:
        UnsupportedModelError: a value is missing, out of range or not implemented.
    """
    kind = _kind(block, context)
    given = Values(block, {"rope_theta": context.theta})
    values: dict[str, Any] = {"rope_theta": given.number("rope_theta", 0.0, 1e12)}
    for key in _NEEDED[kind]:
        if block.get(key) is None:
            raise bad_config(f"rope_type {kind!r} needs {key}.")
    for key in (*_NEEDED[kind], *_OPTIONAL.get(kind, ())):
        if block.get(key) is not None and key not in ("mscale", "mscale_all_dim"):
            values[key] = given.number(key, 0.0, 2.0**24)
    if kind in _SCALED:
        key = "original_max_position_embeddings"
        original = context.original or block.get(key) or context.max_position_embeddings
        values[key] = Values({key: original}, {}).integer(key)
    if block.get("llama_4_scaling_beta") is not None:
        values["llama_4_scaling_beta"] = given.number("llama_4_scaling_beta", 0.0, 1e3)
    rope = Rope(rope_type=kind, rotary=_rotary(given, context), backwards=context.backwards, **values)
    return {"yarn": _yarn, "longrope": _longrope, "llama3": _llama3}.get(kind, _unchanged)(rope, block, context)


def _kind(block: Mapping[str, Any], context: RopeContext) -> str:
    """The rope type; keys that no type reads are named once."""
    kind = block.get("rope_type", block.get("type", "default"))
    kind = context.names.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in _NEEDED:
        raise UnsupportedModelError(
            f"The rope_type {shown(kind)} is not supported.",
            f"Supported: {', '.join(_NEEDED)}.",
            "Choose another model.",
        )
    if block.get("mrope_section") is not None:
        raise UnsupportedModelError("Multimodal RoPE (mrope_section) is not supported.", "", "Choose another model.")
    unknown = printable(", ".join(sorted(block.keys() - _KNOWN - {"mrope_section"})))
    if unknown:
        log.warning("the rope parameters have keys that %s does not read: %s", kind, unknown)
    return kind


def _rotary(given: Values, context: RopeContext) -> int:
    """Elements of a head that are rotated."""
    factor = given.get("partial_rotary_factor")
    factor = (1.0 if context.partial is None else context.partial) if factor is None else factor
    share = Values({"partial_rotary_factor": factor}, {}).number("partial_rotary_factor", 0.0, 1.0)
    if share < 1 and context.partial is None:
        raise UnsupportedModelError(
            f"config.json sets partial_rotary_factor to {shown(factor)}, which is not supported.",
            "This architecture's own code rotates whole heads.",
            "Choose another model.",
        )
    rotary = int(context.head_dim * share)
    if rotary % 2 or not rotary:
        raise bad_config(f"partial_rotary_factor {share:g} rotates {rotary} elements; the number must be even.")
    return rotary


def _unchanged(rope: Rope, block: Mapping[str, Any], context: RopeContext) -> Rope:
    return rope


def _llama3(rope: Rope, block: Mapping[str, Any], context: RopeContext) -> Rope:
    if rope.high_freq_factor <= rope.low_freq_factor:
        raise bad_config("high_freq_factor must be above low_freq_factor.")
    return rope


def _yarn(rope: Rope, block: Mapping[str, Any], context: RopeContext) -> Rope:
    """The attention factor: given, or from factor, mscale and mscale_all_dim (arXiv:2309.00071)."""
    given = Values(block, {})
    truncate = block.get("truncate", True)
    if rope.rope_theta <= 1:
        raise bad_config(f"rope_theta is {rope.rope_theta:g}; rope_type 'yarn' needs more than 1.")
    if not isinstance(truncate, bool):
        raise bad_config(f"truncate is {shown(truncate)}; it must be true or false.")
    if block.get("attention_factor") is None:
        m, all_dim = (given.get(key) for key in ("mscale", "mscale_all_dim"))

        def scale(mscale: float) -> float:
            return 0.1 * mscale * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

        both = bool(m) and bool(all_dim)
        factor = (
            scale(given.number("mscale", 0.0, 1e3)) / scale(given.number("mscale_all_dim", 0.0, 1e3)) if both else 0
        )
        rope = replace(rope, attention_factor=factor or scale(1.0))
    return replace(rope, truncate=truncate)


def _longrope(rope: Rope, block: Mapping[str, Any], context: RopeContext) -> Rope:
    """The factors of short and long contexts, and the attention factor (arXiv:2402.13753)."""
    lists = {}
    for key in ("short_factor", "long_factor"):
        values = block.get(key)
        numbers = isinstance(values, list) and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v < 1e6 for v in values
        )
        if not isinstance(values, list) or not numbers or len(values) != rope.rotary // 2:
            raise bad_config(f"rope_type 'longrope' needs {key}, a list of {rope.rotary // 2} positive numbers.")
        lists[key] = tuple(float(v) for v in values)
    original = rope.original_max_position_embeddings
    if block.get("attention_factor") is None:
        given = block.get("factor")
        factor = context.max_position_embeddings / original if given is None else rope.factor
        if factor > 1 and original < 2:
            raise bad_config("original_max_position_embeddings must be above 1.")
        rope = replace(
            rope, attention_factor=math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        )
    return replace(rope, short_factor=lists["short_factor"], long_factor=lists["long_factor"])
