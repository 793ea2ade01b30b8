"""A model's config.json: the keys under their own names, checked before anything is allocated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamagpu.errors import ModelNotFoundError, UnsupportedModelError
from llamagpu.model.architectures import ARCHITECTURES

# The largest values that a config may state; beyond them a file is broken or hostile.
_MOST = {
    "vocab_size": 2**22,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_hidden_layers": 1024,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 256,
    "max_position_embeddings": 2**24,
}
# Keys that change the arithmetic in ways not implemented, with the values that do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "sliding_window": (None,),
    "partial_rotary_factor": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "qk_norm": (None, False),
    "use_qk_norm": (None, False),
    "no_rope_layers": (None,),
    "num_local_experts": (None, 0, 1),
    "num_experts": (None, 0),
    "parallel_attn": (None, False),
    "query_pre_attn_scalar": (None,),
}
_ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: ``rope_type`` default, linear or llama3, and what that type reads."""

    rope_type: str = "default"
    rope_theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class Quantization:
    """MLX's ``quantization`` block: bits and group of every quantised tensor, and what some modules have instead
    (None: not quantised)."""

    bits: int
    group_size: int
    modules: Mapping[str, tuple[int, int] | None]

    def of(self, module: str) -> tuple[int, int] | None:
        """(bits, group) of a module."""
        return self.modules.get(module, (self.bits, self.group_size))


@dataclass(frozen=True)
class Config:
    """The parts of config.json that the forward pass reads, under their own names."""

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
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_id: tuple[int, ...]
    quantization: Quantization | None = None

    @property
    def q_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_key_value_heads * self.head_dim


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelNotFoundError: there is no such file.
        UnsupportedModelError: it holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"There is no {path.name} in {str(path.parent)!r}.",
            "A model directory holds config.json, tokenizer.json and *.safetensors.",
            "Check the path, or download the model again.",
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise UnsupportedModelError(f"{path} cannot be read as JSON.", str(e), "Download the file again.") from None
    if not isinstance(value, dict):
        raise UnsupportedModelError(f"{path} holds no JSON object.", "", "Download the file again.")
    return value


def load_config(directory: Path) -> Config:
    """Read and check config.json (and the token ids of generation_config.json, which take precedence)."""
    raw = load_json(directory / "config.json")
    return parse_config(raw, load_generation_config(directory))


def load_generation_config(directory: Path) -> dict[str, Any]:
    """generation_config.json, or nothing where there is none."""
    path = directory / "generation_config.json"
    return load_json(path) if path.exists() else {}


def parse_config(raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> Config:
    """A Config from config.json's object, in its older form (``rope_theta``, ``rope_scaling``, ``torch_dtype``) or that
    of transformers 5 (``rope_parameters``, ``dtype``).

    Raises:
        UnsupportedModelError: something is missing, out of range, contradictory or not implemented; it is named.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        names = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModelError(
            f"The architecture {model_type!r} is not supported.", f"Supported: {names}.", "Choose another model."
        )
    _refuse(raw)
    heads, hidden = _integer(raw, "num_attention_heads"), _integer(raw, "hidden_size")
    kv_heads = _integer(raw, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise _bad(f"{heads} attention heads cannot share {kv_heads} key/value heads evenly.")
    if raw.get("head_dim") is None and hidden % heads:
        raise _bad(f"hidden_size {hidden} does not divide into {heads} heads, and no head_dim is given.")
    head_dim = _integer(raw, "head_dim", hidden // heads or 1)
    if head_dim % 4:
        raise _bad(f"head_dim {head_dim} is not a multiple of 4.")
    ids = {**raw, **{k: v for k, v in (generation or {}).items() if v is not None}}
    vocab = _integer(raw, "vocab_size")
    eos = ids.get("eos_token_id")
    eos_ids = tuple(
        _token_id(t, "eos_token_id", vocab) for t in (eos if isinstance(eos, list) else [eos]) if t is not None
    )
    bos = ids.get("bos_token_id")
    return Config(
        model_type=str(model_type),
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=_integer(raw, "intermediate_size"),
        num_hidden_layers=_integer(raw, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=_integer(raw, "max_position_embeddings", 2048),
        rms_norm_eps=_number(raw, "rms_norm_eps", 1e-6, low=0.0, high=1.0),
        rope=_rope(raw),
        attention_bias=_flag(raw, "attention_bias", False),
        mlp_bias=_flag(raw, "mlp_bias", False),
        tie_word_embeddings=_flag(raw, "tie_word_embeddings", False),
        bos_token_id=None if bos is None else _token_id(bos, "bos_token_id", vocab),
        eos_token_id=eos_ids,
        quantization=_quantization(raw),
    )


def _bad(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"config.json: {what}", "", "Check the file, or download the model again.")


def _refuse(raw: Mapping[str, Any]) -> None:
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(
            f"The activation {activation!r} (hidden_act) is not supported.", "Supported: silu.", "Choose another model."
        )
    for key, neutral in _NEUTRAL.items():
        if key in raw and raw[key] not in neutral:
            raise UnsupportedModelError(
                f"config.json sets {key} to {raw[key]!r}, which is not supported.",
                "It changes the arithmetic, so ignoring it would give wrong text.",
                "Choose another model.",
            )


def _integer(raw: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = raw.get(key)
    value = default if value is None else value
    if value is None:
        raise _bad(f"{key} is missing.")
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST[key]:
        raise _bad(f"{key} is {value!r}; it must be a whole number from 1 to {_MOST[key]:,}.")
    return value


def _number(raw: Mapping[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = raw.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value <= high:
        raise _bad(f"{key} is {value!r}; it must be above {low:g} and at most {high:g}.")
    return float(value)


def _flag(raw: Mapping[str, Any], key: str, default: bool) -> bool:
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise _bad(f"{key} is {value!r}; it must be true or false.")
    return value


def _token_id(value: Any, key: str, vocab: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab:
        raise _bad(f"{key} is {value!r}; token ids run from 0 to {vocab - 1}.")
    return value


def _quantization(raw: Mapping[str, Any]) -> Quantization | None:
    """``quantization``, which MLX also writes as ``quantization_config``. Other methods are refused by name."""
    block = raw.get("quantization") or raw.get("quantization_config")
    if block is None:
        return None
    if not isinstance(block, dict):
        raise _bad(f"quantization is {block!r}; it must be an object.")
    method = block.get("quant_method", block.get("mode", "affine"))
    if method not in ("affine", "mlx"):
        raise UnsupportedModelError(
            f"The quantisation {method!r} is not supported.",
            "Supported: MLX's affine mode with 4 or 8 bits.",
            "Choose another version of the model; float ones can be quantised while loading (--dtype int8).",
        )

    def pair(value: Mapping[str, Any]) -> tuple[int, int]:
        bits, group = value.get("bits", block.get("bits")), value.get("group_size", block.get("group_size"))
        mode = value.get("mode", "affine")
        if bits not in (4, 8) or group not in (32, 64, 128) or mode != "affine":
            raise UnsupportedModelError(
                f"Quantisation with bits {bits!r}, group_size {group!r}, mode {mode!r} is not supported.",
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
        raise _bad(f"rope_scaling is {block!r}; it must be an object.")
    kind = block.get("rope_type", block.get("type", "default"))
    if kind not in _ROPE_KEYS:
        raise UnsupportedModelError(
            f"The rope_type {kind!r} is not supported.", f"Supported: {', '.join(_ROPE_KEYS)}.", "Choose another model."
        )
    _refuse({k: v for k, v in block.items() if k in _NEUTRAL})
    theta = block.get("rope_theta", raw.get("rope_theta"))
    values: dict[str, Any] = {"rope_theta": _number({"rope_theta": theta}, "rope_theta", 10000.0, 0.0, 1e12)}
    for key in _ROPE_KEYS[kind]:
        if block.get(key) is None:
            raise _bad(f"rope_type {kind!r} needs {key}.")
        values[key] = _number(block, key, 1.0, 0.0, 2.0**24)
    if kind == "llama3":
        values["original_max_position_embeddings"] = int(values["original_max_position_embeddings"])
        if values["high_freq_factor"] <= values["low_freq_factor"]:
            raise _bad("high_freq_factor must be above low_freq_factor.")
    return Rope(rope_type=kind, **values)
