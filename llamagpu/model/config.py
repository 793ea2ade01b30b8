"""A model's config: the keys of config.json under their own names, checked before anything is allocated."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamagpu.errors import UnsupportedModelError, shown
from llamagpu.model.architectures import ARCHITECTURES, REQUIRED, WITHOUT_EFFECT, Architecture, LayerSpec
from llamagpu.model.config_values import Values, bad_config

log = logging.getLogger("llamagpu")
_ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: ``rope_type`` (default, linear or llama3) and the values that this type reads."""

    rope_type: str = "default"
    rope_theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class Quantization:
    """MLX's ``quantization`` block: bits and group size of quantized tensors, and the exceptions by module (None: not
    quantized)."""

    bits: int
    group_size: int
    modules: Mapping[str, tuple[int, int] | None]

    def of(self, module: str) -> tuple[int, int] | None:
        """(bits, group size) of a module."""
        return self.modules.get(module, (self.bits, self.group_size))


@dataclass(frozen=True)
class Config:
    """The values of config.json that the forward pass reads, under their own names; ``layers`` has a spec per layer."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: Rope
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_id: tuple[int, ...]
    layers: tuple[LayerSpec, ...]
    quantization: Quantization | None = None

    @property
    def q_size(self) -> int:
        """Elements of all query heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Elements of all key (or value) heads."""
        return self.num_key_value_heads * self.head_dim


def parse_config(raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> Config:
    """A Config from config.json's object, in its older form (``rope_theta``, ``rope_scaling``, ``torch_dtype``) or that
    of transformers 5 (``rope_parameters``, ``dtype``). Token ids of generation_config.json take precedence.

    Raises:
        UnsupportedModelError: a value is missing, out of range, contradictory or not implemented; it is named.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        names = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModelError(
            f"The architecture {shown(model_type)} is not supported.", f"Supported: {names}.", "Choose another model."
        )
    row = ARCHITECTURES[model_type]
    _check_keys(raw, row)
    values = Values(raw, row.defaults)
    heads, kv_heads, head_dim = _heads(values)
    vocab, layers = values.integer("vocab_size"), values.integer("num_hidden_layers")
    ids = Values({**raw, **{k: v for k, v in (generation or {}).items() if v is not None}}, {})
    flags = {key: values.flag(key) for key, default in row.defaults.items() if isinstance(default, bool)}
    return Config(
        model_type=model_type,
        vocab_size=vocab,
        hidden_size=values.integer("hidden_size"),
        intermediate_size=values.integer("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=values.integer("max_position_embeddings"),
        rms_norm_eps=values.number("rms_norm_eps", 0.0, 1.0),
        rope=_rope(raw),
        tie_word_embeddings=flags["tie_word_embeddings"],
        bos_token_id=ids.token_id("bos_token_id", vocab),
        eos_token_id=ids.token_ids("eos_token_id", vocab),
        layers=tuple(row.layer(flags, i) for i in range(layers)),
        quantization=_quantization(raw),
    )


def _check_keys(raw: Mapping[str, Any], row: Architecture) -> None:
    """Refuse keys that the reference reads and the row does not, unless they are neutral; name unknown ones once."""
    activation = raw.get("hidden_act") or row.defaults["hidden_act"]
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(
            f"The activation {shown(activation)} (hidden_act) is not supported.",
            "Supported: silu.",
            "Choose another model.",
        )
    for key, neutral in row.neutral.items():
        value = raw[key] if key in raw else row.defaults.get(key)
        if not neutral(value):
            raise _refused(key, value, "sets" if key in raw else "lacks")
    known = {*REQUIRED, *row.defaults, *row.neutral, *WITHOUT_EFFECT}
    unknown = sorted(str(key) for key in raw.keys() - known)
    if unknown:
        log.warning(
            "config.json has keys that the %s architecture does not read: %s", raw["model_type"], ", ".join(unknown)
        )


def _refused(key: str, value: Any, how: str) -> UnsupportedModelError:
    stated = f"sets {key} to {shown(value)}, which" if how == "sets" else f"lacks {key}, whose default {shown(value)}"
    return UnsupportedModelError(
        f"config.json {stated} is not supported.",
        "It changes the arithmetic, so ignoring it would give wrong text.",
        "Choose another model.",
    )


def _heads(values: Values) -> tuple[int, int, int]:
    """Query heads, K/V heads and their size."""
    heads, hidden = values.integer("num_attention_heads"), values.integer("hidden_size")
    kv_heads = values.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise bad_config(f"{heads} attention heads cannot share {kv_heads} key/value heads evenly.")
    if values.get("head_dim") is None and hidden % heads:
        raise bad_config(f"hidden_size {hidden} does not divide into {heads} heads, and no head_dim is given.")
    head_dim = values.integer("head_dim", hidden // heads or 1)
    if head_dim % 4:
        raise bad_config(f"head_dim {head_dim} is not a multiple of 4.")
    return heads, kv_heads, head_dim


def _quantization(raw: Mapping[str, Any]) -> Quantization | None:
    """The ``quantization`` block, which MLX also writes as ``quantization_config``. Other methods are refused by
    name."""
    block = raw.get("quantization") or raw.get("quantization_config")
    if block is None:
        return None
    if not isinstance(block, dict):
        raise bad_config(f"quantization is {shown(block)}; it must be an object.")
    method = block.get("quant_method", block.get("mode", "affine"))
    if method not in ("affine", "mlx"):
        raise UnsupportedModelError(
            f"The quantization {shown(method)} is not supported.",
            "Supported: MLX's affine mode with 4 or 8 bits.",
            "Choose another version of the model; float ones can be quantized while loading (--dtype int8).",
        )

    def pair(value: Mapping[str, Any]) -> tuple[int, int]:
        bits, group = value.get("bits", block.get("bits")), value.get("group_size", block.get("group_size"))
        mode = value.get("mode", "affine")
        if bits not in (4, 8) or group not in (32, 64, 128) or mode != "affine":
            raise UnsupportedModelError(
                f"Quantization with bits {bits!r}, group_size {group!r}, mode {mode!r} is not supported.",
                "Supported: 4 or 8 bits in groups of 32, 64 or 128, mode affine.",
                "Choose another version of the model.",
            )
        return bits, group

    modules = {
        k: pair(v) if isinstance(v, dict) else None for k, v in block.items() if isinstance(v, dict) or v is False
    }
    bits, group = pair({k: v for k, v in block.items() if not isinstance(v, dict)})
    return Quantization(bits, group, modules)


def _rope(raw: Mapping[str, Any]) -> Rope:
    """Either form: ``rope_parameters`` holds everything; ``rope_scaling`` leaves ``rope_theta`` outside."""
    block = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(block, dict):
        raise bad_config(f"rope_scaling is {shown(block)}; it must be an object.")
    kind = block.get("rope_type", block.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise UnsupportedModelError(
            f"The rope_type {shown(kind)} is not supported.",
            f"Supported: {', '.join(_ROPE_KEYS)}.",
            "Choose another model.",
        )
    if block.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise _refused("partial_rotary_factor", block["partial_rotary_factor"], "sets")
    given = Values(block, {"rope_theta": raw.get("rope_theta")})
    values: dict[str, Any] = {"rope_theta": given.number("rope_theta", 0.0, 1e12, 10000.0)}
    for key in _ROPE_KEYS[kind]:
        if block.get(key) is None:
            raise bad_config(f"rope_type {kind!r} needs {key}.")
        values[key] = given.number(key, 0.0, 2.0**24)
    if kind == "llama3":
        values["original_max_position_embeddings"] = int(values["original_max_position_embeddings"])
        if values["high_freq_factor"] <= values["low_freq_factor"]:
            raise bad_config("high_freq_factor must be above low_freq_factor.")
    return Rope(rope_type=kind, **values)
