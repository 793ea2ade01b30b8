"""The architectures of GGUF files: which config, tensor names and order of rows each of them means.

Written after llama.cpp's conversion scripts (``conversion/``) and ``src/llama-model.cpp``. Values come out under their
names in config.json of the same model, so that ``parse_config`` reads both alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llamagpu.errors import UnsupportedModelError, shown
from llamagpu.model.sources.gguf.metadata import Metadata
from llamagpu.model.sources.gguf.rope import add_rope

Values = dict[str, Any]
Read = Callable[[str], list[float]]  # the values of a small tensor by its name; empty if there is none

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_GEMMA_NORMS = _POST_NORMS | {"ffn_norm": "pre_feedforward_layernorm"}
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_MOST_LAYERS = 1024
_NUMBERS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
}


@dataclass(frozen=True)
class Family:
    """A value of ``general.architecture``.

    Attributes:
        model_type: in config.json.
        halves: whether the rotary pairs of q and k lie half a head apart, as in Hugging Face checkpoints; otherwise
            they are adjacent rows.
        names: tensor names that differ from ``NAMES`` or add to it.
        constants: keys of config.json with the same value for every model.
        finish: reads the keys that only this architecture has.
        norms_plus_one: whether files hold 1 + w for the weight w of a norm.
    """

    model_type: str
    halves: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[Metadata, Values], None] = lambda m, c: None
    norms_plus_one: bool = False

    def tensor_name(self, name: str) -> str | None:
        """The name in a Hugging Face checkpoint; None for a tensor that belongs to the config."""
        if name in _ROPE_TENSORS:
            return None
        stem, _, suffix = name.rpartition(".")
        layer = _LAYER.fullmatch(stem)
        known = ({**NAMES, **self.names}).get(layer[2] if layer else stem)
        if known is None or suffix not in ("weight", "bias"):
            raise UnsupportedModelError(
                f"The GGUF file has a tensor {shown(name)}, which this architecture does not support.",
                "Mixtures of experts, latent attention and state-space layers are not supported.",
                "Choose another model.",
            )
        return f"model.layers.{layer[1]}.{known}.{suffix}" if layer else f"{known}.{suffix}"


def family_of(fields: Mapping[str, Any]) -> Family:
    """The family of a file.

    Raises:
        UnsupportedModelError: the file is no language model, or its architecture is not supported.
    """
    kind = fields.get("general.type", "model")
    if kind != "model":
        raise UnsupportedModelError(
            f"The GGUF file holds {shown(kind)}, not a model (general.type).",
            "Adapters and projectors change or extend a model, and are not supported by themselves.",
            "Give the GGUF file of the model.",
        )
    name = fields.get("general.architecture")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UnsupportedModelError(
            f"The GGUF architecture {shown(name)} is not supported.",
            f"Supported: {', '.join(sorted(FAMILIES))}.",
            "Choose another model.",
        )
    return FAMILIES[name]


def config_of(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], read: Read) -> Values:
    """The keys of config.json, without those of the tokenizer.

    Args:
        shapes: of the file's tensors, under their names there.
        read: the values of a small tensor (rotary factors).

    Raises:
        UnsupportedModelError: a value is missing or not supported; it is named.
    """
    family, m = family_of(fields), Metadata(str(fields.get("general.architecture")), fields)
    c: Values = {"model_type": family.model_type} | {key: m.integer(name) for key, name in _NUMBERS.items()}
    c["num_hidden_layers"] = m.integer("block_count", most=_MOST_LAYERS)  # lists have an item for each
    c["num_key_value_heads"] = m.integer("attention.head_count_kv", c["num_attention_heads"])
    c["rms_norm_eps"] = m.number("attention.layer_norm_rms_epsilon")
    c["head_dim"] = _head_dim(m, c)
    if not shapes.get("token_embd.weight"):
        raise UnsupportedModelError(
            "The GGUF file has no tensor token_embd.weight.", "It may hold a vocabulary only.", "Choose another file."
        )
    c["vocab_size"] = shapes["token_embd.weight"][0]
    c["tie_word_embeddings"] = "output.weight" not in shapes
    c |= family.constants
    add_rope(m, c, read)
    family.finish(m, c)
    for key, name in (("attention_bias", "blk.0.attn_q.bias"), ("mlp_bias", "blk.0.ffn_gate.bias")):
        if family.model_type in ("llama", "granite"):
            c[key] = name in shapes
    if m.get("attention.causal") is False:
        raise m.bad("attention.causal", "models that see all positions are not supported")
    m.refuse_unread()
    return c


def _head_dim(m: Metadata, c: Values) -> int:
    heads = c["num_attention_heads"]
    head_dim = m.integer("attention.key_length", c["hidden_size"] // heads if heads else 0)
    if m.integer("attention.value_length", head_dim) != head_dim:
        raise m.bad("attention.value_length", f"keys have {head_dim} values")
    return head_dim


def _sliding(m: Metadata, c: Values, period: int, default: int | None = None) -> None:
    """``sliding_window`` and ``layer_types``; every ``period``-th layer sees everything, unless the file says more."""
    window = m.integer("attention.sliding_window", 0 if default is None else default) or None
    count = c["num_hidden_layers"]
    local = m.flags("attention.sliding_window_pattern", count)
    if local is None:
        period = m.integer("attention.sliding_window_pattern", period)
        local = [bool(period) and (i + 1) % period != 0 for i in range(count)]
    c["sliding_window"] = window
    c["layer_types"] = ["sliding_attention" if window and flag else "full_attention" for flag in local]


def _one_theta(m: Metadata, c: Values) -> None:
    theta = c["rope_parameters"]["rope_theta"]
    if m.number("rope.freq_base_swa", theta) != theta:
        raise m.bad("rope.freq_base_swa", "the layers of this architecture have one base")


def _mistral3(m: Metadata, c: Values) -> None:
    beta = m.number("attention.temperature_scale", 0.0)
    c["sliding_window"] = None
    if beta:
        c["model_type"] = "ministral3"
        c["rope_parameters"]["llama_4_scaling_beta"] = beta


def _smollm3(m: Metadata, c: Values) -> None:
    c["no_rope_layers"] = [int((i + 1) % 4 != 0) for i in range(c["num_hidden_layers"])]


def _granite(m: Metadata, c: Values) -> None:
    if m.get("rope.scaling.finetuned") is False:
        raise m.bad("rope.scaling.finetuned", "models without rotary embedding are not supported")
    # 0, or nothing, means that there is no factor.
    c["attention_multiplier"] = m.number("attention.scale", 0.0) or (c["head_dim"] or 1) ** -0.5
    c["embedding_multiplier"] = m.number("embedding_scale", 0.0) or 1.0
    c["residual_multiplier"] = m.number("residual_scale", 0.0) or 1.0
    c["logits_scaling"] = m.number("logit_scale", 0.0) or 1.0


def _granite_hybrid(m: Metadata, c: Values) -> None:
    """A hybrid whose layers are all attention is a Granite; what state-space layers would have is not read."""
    if not c["num_key_value_heads"]:
        raise m.bad("attention.head_count_kv", "state-space layers are not supported")
    for key in ("conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count"):
        m.get(f"ssm.{key}")
    _granite(m, c)


def _olmo2(m: Metadata, c: Values) -> None:
    if m.integer("attention.sliding_window", 0):
        c["model_type"] = "olmo3"
        _sliding(m, c, 4)
        _one_theta(m, c)


def _phi3(m: Metadata, c: Values) -> None:
    c["sliding_window"] = m.integer("attention.sliding_window", 0) or None


def _gemma2(m: Metadata, c: Values) -> None:
    _sliding(m, c, 2, 4096)
    _one_theta(m, c)
    c["attn_logit_softcapping"] = m.number("attn_logit_softcapping", 0.0) or None
    c["final_logit_softcapping"] = m.number("final_logit_softcapping", 0.0) or None
    large = c["num_hidden_layers"] == 46  # the model of 27B; files do not store the scale
    c["query_pre_attn_scalar"] = c["hidden_size"] // (c["num_attention_heads"] or 1) if large else c["head_dim"]


def _gemma3(m: Metadata, c: Values) -> None:
    _sliding(m, c, 6)
    c["attn_logit_softcapping"] = None
    c["final_logit_softcapping"] = m.number("final_logit_softcapping", 0.0) or None
    large = c["num_hidden_layers"] == 62
    c["query_pre_attn_scalar"] = c["hidden_size"] // (c["num_attention_heads"] or 1) if large else c["head_dim"]
    local = {"rope_type": "default", "rope_theta": m.number("rope.freq_base_swa", 10000.0)}
    c["rope_parameters"] = {"full_attention": c["rope_parameters"], "sliding_attention": local}


def _exaone4(m: Metadata, c: Values) -> None:
    _sliding(m, c, 4 if m.integer("attention.sliding_window", 0) else 0)
    _one_theta(m, c)


_NO_WINDOW = {"use_sliding_window": False}
_BIASES = {"attention_bias": False, "mlp_bias": False}
FAMILIES: dict[str, Family] = {
    "llama": Family("llama"),
    "mistral3": Family("mistral", finish=_mistral3),
    "qwen2": Family("qwen2", halves=True, constants=_NO_WINDOW),
    "qwen3": Family("qwen3", halves=True, constants=_NO_WINDOW | {"attention_bias": False}),
    "smollm3": Family("smollm3", constants=_NO_WINDOW | _BIASES | {"no_rope_layer_interval": 4}, finish=_smollm3),
    "granite": Family("granite", finish=_granite),
    "granitehybrid": Family("granite", finish=_granite_hybrid),
    "olmo2": Family("olmo2", halves=True, names=_POST_NORMS, constants={"attention_bias": False}, finish=_olmo2),
    "phi3": Family(
        "phi3", halves=True, names={"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}, finish=_phi3
    ),
    "gemma": Family(
        "gemma",
        halves=True,
        constants={"hidden_act": "gelu_pytorch_tanh", "attention_bias": False},
        norms_plus_one=True,
    ),
    "gemma2": Family(
        "gemma2",
        halves=True,
        names=_GEMMA_NORMS,
        constants={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
        finish=_gemma2,
        norms_plus_one=True,
    ),
    "gemma3": Family(
        "gemma3_text",
        halves=True,
        names=_GEMMA_NORMS,
        constants={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
        finish=_gemma3,
        norms_plus_one=True,
    ),
    "ernie4_5": Family("ernie4_5", constants={"use_bias": False}),
    "exaone4": Family("exaone4", halves=True, names=_POST_NORMS, finish=_exaone4),
    "hunyuan-dense": Family(
        "hunyuan_v1_dense",
        halves=True,
        names={"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
        constants={"attention_bias": False},
    ),
}
