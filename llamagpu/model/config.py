"""A model's config: the keys of config.json under their own names, checked before anything is allocated."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llamagpu.errors import UnsupportedModelError, printable, shown
from llamagpu.model.architecture import FULL, SLIDING, Architecture, LayerSpec, OuterSpec
from llamagpu.model.architectures import ARCHITECTURES, REQUIRED, WITHOUT_EFFECT
from llamagpu.model.config_values import Values, bad_config
from llamagpu.model.rope import Rope, RopeContext, parse_rope
from llamagpu.model.unsupported import REFUSED

log = logging.getLogger("llamagpu")


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
    """The values of config.json that the forward pass reads, under their own names; ``layers`` has a spec per layer,
    ``outer`` one of embedding and head."""

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
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_id: tuple[int, ...]
    layers: tuple[LayerSpec, ...]
    outer: OuterSpec
    quantization: Quantization | None = None

    @property
    def ropes(self) -> tuple[Rope | None, ...]:
        """The rotary embeddings of the layers, each once."""
        return tuple(dict.fromkeys(spec.rope for spec in self.layers))

    @property
    def window(self) -> int | None:
        """The largest sliding window if all layers have one; None if a layer sees everything."""
        windows = [spec.window for spec in self.layers]
        return None if None in windows else max(w for w in windows if w is not None)

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
    row = _architecture(raw.get("model_type"))
    _check_keys(raw, row)
    values = Values(raw, row.defaults)
    heads, kv_heads, head_dim = _heads(values)
    values.ropes = _ropes(raw, row, values, head_dim)
    vocab, layers = values.integer("vocab_size"), values.integer("num_hidden_layers")
    ids = Values({**raw, **{k: v for k, v in (generation or {}).items() if v is not None}}, row.defaults)
    return Config(
        model_type=str(raw["model_type"]),
        vocab_size=vocab,
        hidden_size=values.integer("hidden_size"),
        intermediate_size=values.integer(row.intermediate),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=values.integer("max_position_embeddings"),
        rms_norm_eps=values.number("rms_norm_eps", 0.0, 1.0),
        tie_word_embeddings=values.flag("tie_word_embeddings"),
        bos_token_id=ids.token_id("bos_token_id", vocab),
        eos_token_id=ids.token_ids("eos_token_id", vocab),
        layers=_layers(values, row, layers),
        outer=row.outer(values),
        quantization=_quantization(raw),
    )


def _architecture(model_type: Any) -> Architecture:
    """The row of a model_type.

    Raises:
        UnsupportedModelError: there is none; the message names why, where that is known.
    """
    if isinstance(model_type, str) and model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    reason = REFUSED.get(model_type) if isinstance(model_type, str) else None
    why = f"It has {reason}. " if reason else ""
    supported = f"Supported: {', '.join(sorted(ARCHITECTURES))}."
    raise UnsupportedModelError(
        f"The architecture {shown(model_type)} is not supported.", f"{why}{supported}", "Choose another model."
    )


def _layers(values: Values, row: Architecture, count: int) -> tuple[LayerSpec, ...]:
    """The spec of every layer, with its window and rotary embedding."""
    specs = []
    for i, slides in enumerate(_slides(values, row, count)):
        window = values["sliding_window"] if slides else None
        if slides and window is None:
            raise bad_config(f"layer {i} has a sliding window, and sliding_window is missing.")
        rope = None if row.no_rope(values, i, slides) else values.rope(SLIDING if slides else FULL)
        spec = row.layer(values, i)
        scaling = spec.query_scaling if rope is not None else None
        activation = values.activation()
        specs.append(replace(spec, window=window, rope=rope, query_scaling=scaling, activation=activation))
    return tuple(specs)


def _slides(values: Values, row: Architecture, count: int) -> list[bool]:
    """Whether each layer has a sliding window: by ``layer_types``, otherwise by the architecture's rule."""
    given = values.get("layer_types") if "layer_types" in row.defaults else None
    if given is None:
        if "layer_types" in row.defaults and SLIDING not in row.layer_types:
            raise bad_config("layer_types is missing; without it, layers are not attention layers.")
        return [bool(row.slides(values, i)) for i in range(count)]
    if not isinstance(given, list) or len(given) != count:
        raise bad_config(f"layer_types is {shown(given)}; it must be a list of {count} layer types.")
    for kind in given:
        if not isinstance(kind, str) or kind not in row.layer_types:
            raise UnsupportedModelError(
                f"Layers of the type {shown(kind)} (layer_types) are not supported.",
                f"Supported: {', '.join(row.layer_types)}.",
                "Choose another model.",
            )
    return [row.layer_types[kind] == SLIDING for kind in given]


def _ropes(raw: Mapping[str, Any], row: Architecture, values: Values, head_dim: int) -> dict[str, Rope]:
    """The rotary embedding by layer type. ``rope_parameters`` holds everything, for all types or nested by type;
    ``rope_scaling`` leaves ``rope_theta`` outside."""
    block = raw.get("rope_parameters") or raw.get("rope_scaling") or row.rope_default
    if not isinstance(block, dict):
        raise bad_config(f"rope_scaling is {shown(block)}; it must be an object.")
    nested = any(kind in block for kind in (FULL, SLIDING))
    found = {}
    for kind in (FULL, SLIDING):
        own = block.get(kind) if nested else block
        local = kind == SLIDING and SLIDING in row.thetas  # a type with a theta of its own, which scaling leaves
        if local and not nested:
            own = {}
        if own is None and nested and kind not in block:
            own = {}
        if not isinstance(own, dict):
            raise bad_config(f"the rope parameters of {kind} are {shown(own)}; they must be an object.")
        stated = raw.get("rope_local_base_freq") if local else raw.get("rope_theta")
        theta = row.thetas.get(kind, row.thetas[FULL]) if stated is None else stated
        found[kind] = parse_rope(
            own,
            RopeContext(
                theta,
                head_dim,
                values.integer("max_position_embeddings"),
                values.get("original_max_position_embeddings") if row.partial_rotary else None,
                values.get("partial_rotary_factor") if row.partial_rotary else None,
                row.rope_types,
                row.backwards,
            ),
        )
    return found


def _check_keys(raw: Mapping[str, Any], row: Architecture) -> None:
    """Refuse keys that the reference reads and the row does not, unless they are neutral; name unknown ones once."""
    for key, neutral in row.neutral.items():
        value = raw[key] if key in raw else row.defaults.get(key)
        if not neutral(value):
            raise _refused(key, value, "sets" if key in raw else "lacks")
    known = {*REQUIRED, *row.defaults, *row.neutral, *WITHOUT_EFFECT}
    unknown = printable(", ".join(sorted(raw.keys() - known)))
    if unknown:
        log.warning("config.json has keys that the %s architecture does not read: %s", raw["model_type"], unknown)


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
        if not _is_one(bits, (4, 8)) or not _is_one(group, (32, 64, 128)) or mode != "affine":
            stated = f"bits {shown(bits)}, group_size {shown(group)}, mode {shown(mode)}"
            raise UnsupportedModelError(
                f"Quantization with {stated} is not supported.",
                "Supported: 4 or 8 bits in groups of 32, 64 or 128, mode affine.",
                "Choose another version of the model.",
            )
        return bits, group

    modules = {
        k: pair(v) if isinstance(v, dict) else None for k, v in block.items() if isinstance(v, dict) or v is False
    }
    bits, group = pair({k: v for k, v in block.items() if not isinstance(v, dict)})
    return Quantization(bits, group, modules)


def _is_one(value: Any, known: tuple[int, ...]) -> bool:
    return isinstance(value, int) and value in known
