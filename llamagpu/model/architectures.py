"""The architectures: each is a row of data for the same decoder forward pass.

To add one, write a row: the names in the checkpoint by role, the defaults of the config keys that it reads, a
function from those keys to the spec of a layer, and the remaining keys that the reference implementation reads, each
with a test for values that change nothing. ``tests/reference_keys.json`` lists the keys of the reference, and a test
checks that each is accounted for.
"""

from __future__ import annotations

from llamagpu.model.architecture import FULL, MODULES, SLIDING, Architecture, LayerSpec, OuterSpec, anything, one_of
from llamagpu.model.config_values import Values

# Keys that every row reads, and keys that change no result of a forward pass.
REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_theta": None,
    "rope_scaling": None,
    "rope_parameters": None,
}
WITHOUT_EFFECT = frozenset(
    (
        *("_attn_implementation_autoset", "_name_or_path", "architectures", "attention_dropout", "auto_map"),
        *("cache_implementation", "chunk_size_feed_forward", "dtype", "embd_pdrop", "eod_token_id", "id2label"),
        *("initializer_range", "label2id", "model_type", "output_attentions", "output_hidden_states"),
        *("output_router_logits", "pad_token_id", "pretraining_tp", "problem_type", "quantization"),
        *("quantization_config", "resid_pdrop", "return_dict", "torch_dtype", "transformers_version", "use_cache"),
    )
)
NEUTRAL = {"partial_rotary_factor": one_of(None, 1, 1.0), "is_encoder_decoder": one_of(None, False)}
_WINDOW = {"sliding_window": None, "layer_types": None}
_GEMMA_MODULES = MODULES | {
    "attn_post_norm": "model.layers.{i}.post_attention_layernorm",
    "mlp_norm": "model.layers.{i}.pre_feedforward_layernorm",
    "mlp_post_norm": "model.layers.{i}.post_feedforward_layernorm",
}
_POST_MODULES = {k: v for k, v in MODULES.items() if k not in ("attn_norm", "mlp_norm")} | {
    "attn_post_norm": "model.layers.{i}.post_attention_layernorm",
    "mlp_post_norm": "model.layers.{i}.post_feedforward_layernorm",
}
_FUSED_QKV = {"qkv": "model.layers.{i}.self_attn.qkv_proj", "gate_up": "model.layers.{i}.mlp.gate_up_proj"}
_MULTIPLIERS = {
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}
_WITHOUT_ACT = {k: v for k, v in DEFAULTS.items() if k != "hidden_act"}
_GEMMA = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "attention_bias": False,
}
_MINISTRAL3_ROPE = {
    "type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_BIDIRECTIONAL = {"use_bidirectional_attention": one_of(None, False)}


def _has_window(c: Values, i: int) -> bool:
    return c["sliding_window"] is not None


def _late_windows(c: Values, i: int) -> bool:
    return c["use_sliding_window"] and _has_window(c, i) and i >= c["max_window_layers"]


def _smollm3_rotates(c: Values, i: int) -> bool:
    return bool(c["no_rope_layers"][i] if c["no_rope_layers"] else (i + 1) % c["no_rope_layer_interval"])


def _exaone4_slides(c: Values, i: int) -> bool:
    """The last layer of every group of sliding_window_pattern layers sees everything."""
    pattern = c["sliding_window_pattern"]
    return _has_window(c, i) and (i + 1) % (len(pattern) if isinstance(pattern, str) else pattern or 1) != 0


def _granite_layer(c: Values, i: int) -> LayerSpec:
    bias = c["attention_bias"]
    scales = {"attention_scale": c["attention_multiplier"], "residual_scale": c["residual_multiplier"]}
    return LayerSpec(bias, bias, c.get("mlp_bias") is True, **scales)


def _granite_outer(c: Values) -> OuterSpec:
    return OuterSpec(c["embedding_multiplier"], logit_scale=1 / c["logits_scaling"])


def _gemma_layer(c: Values, i: int, **more: object) -> LayerSpec:
    bias = c["attention_bias"]
    return LayerSpec(bias, bias, **more)  # type: ignore[arg-type]


def _gemma2_layer(c: Values, i: int) -> LayerSpec:
    scale = c["query_pre_attn_scalar"] ** -0.5
    return _gemma_layer(c, i, post_norms=True, attention_scale=scale, score_cap=c["attn_logit_softcapping"])


def _gemma3_layer(c: Values, i: int) -> LayerSpec:
    return _gemma_layer(c, i, post_norms=True, attention_scale=c["query_pre_attn_scalar"] ** -0.5, qk_norm="head")


def _gemma_outer(c: Values) -> OuterSpec:
    return OuterSpec(c["hidden_size"] ** 0.5, logit_cap=c["final_logit_softcapping"])


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        DEFAULTS | {"attention_bias": False, "mlp_bias": False},
        lambda c, i: LayerSpec(c["attention_bias"], c["attention_bias"], c["mlp_bias"]),
        NEUTRAL,
    ),
    "mistral": Architecture(
        DEFAULTS | {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
        lambda c, i: LayerSpec(),
        NEUTRAL | {"layer_types": one_of(None)},
        slides=_has_window,
    ),
    "ministral": Architecture(
        DEFAULTS | _WINDOW | {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
        lambda c, i: LayerSpec(),
        NEUTRAL,
        slides=_has_window,
    ),
    "ministral3": Architecture(
        DEFAULTS
        | {"max_position_embeddings": 262144, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5}
        | {"sliding_window": None},
        lambda c, i: LayerSpec(query_scaling=c.rope(FULL).query_scaling),
        NEUTRAL | {"layer_types": one_of(None)},
        slides=_has_window,
        rope_default=_MINISTRAL3_ROPE,
    ),
    "qwen2": Architecture(
        DEFAULTS
        | {"max_position_embeddings": 32768, "num_key_value_heads": 32, "layer_types": None}
        | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
        lambda c, i: LayerSpec(qkv_bias=True),
        NEUTRAL,
        slides=_late_windows,
    ),
    "qwen3": Architecture(
        DEFAULTS
        | {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128, "attention_bias": False}
        | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None},
        lambda c, i: LayerSpec(c["attention_bias"], c["attention_bias"], qk_norm="head"),
        NEUTRAL,
        slides=_late_windows,
    ),
    "smollm3": Architecture(
        DEFAULTS
        | {"max_position_embeddings": 32768, "num_key_value_heads": 4, "tie_word_embeddings": True}
        | {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "sliding_window": None}
        | {"no_rope_layers": None, "no_rope_layer_interval": 4, "layer_types": None},
        lambda c, i: LayerSpec(c["attention_bias"], c["attention_bias"], c["mlp_bias"]),
        NEUTRAL,
        slides=lambda c, i: c["use_sliding_window"] and _has_window(c, i) and not _smollm3_rotates(c, i),
        no_rope=lambda c, i, slides: not _smollm3_rotates(c, i),
        thetas={FULL: 2000000.0},
    ),
    "granite": Architecture(
        DEFAULTS | _MULTIPLIERS | {"attention_bias": False, "mlp_bias": False},
        _granite_layer,
        NEUTRAL,
        outer=_granite_outer,
    ),
    "granitemoehybrid": Architecture(
        DEFAULTS
        | _MULTIPLIERS
        | {"attention_bias": False, "position_embedding_type": None, "shared_intermediate_size": 1024}
        | {"layer_types": None},
        _granite_layer,
        NEUTRAL
        | {"num_local_experts": one_of(0), "layers_block_type": anything}
        | dict.fromkeys(("num_experts_per_tok", "router_aux_loss_coef", "time_step_limit"), anything)
        | dict.fromkeys(("mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head"), anything)
        | dict.fromkeys(("mamba_d_conv", "mamba_expand", "mamba_chunk_size"), anything)
        | dict.fromkeys(("mamba_conv_bias", "mamba_proj_bias"), anything),
        no_rope=lambda c, i, slides: c["position_embedding_type"] != "rope",
        outer=_granite_outer,
        modules=MODULES
        | {"gate_up": "model.layers.{i}.shared_mlp.input_linear", "down": "model.layers.{i}.shared_mlp.output_linear"},
        intermediate="shared_intermediate_size",
        layer_types={FULL: FULL, "attention": FULL},
    ),
    "olmo2": Architecture(
        DEFAULTS | {"rms_norm_eps": 1e-5, "attention_bias": False},
        lambda c, i: LayerSpec(
            c["attention_bias"], c["attention_bias"], pre_norms=False, post_norms=True, qk_norm="row"
        ),
        NEUTRAL,
        modules=_POST_MODULES,
    ),
    "phi3": Architecture(
        DEFAULTS
        | {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
        | {"sliding_window": None, "partial_rotary_factor": 1.0},
        lambda c, i: LayerSpec(),
        {"is_encoder_decoder": one_of(None, False), "attention_bias": one_of(None, False)},
        slides=_has_window,
        modules=MODULES | _FUSED_QKV,
        partial_rotary=True,
        rope_types={"su": "longrope", "yarn": "longrope"},
    ),
    "gemma": Architecture(
        DEFAULTS | _GEMMA | {"num_key_value_heads": 16, "hidden_act": "gelu_pytorch_tanh"},
        _gemma_layer,
        NEUTRAL | _BIDIRECTIONAL | {"hidden_activation": one_of(None, "gelu_pytorch_tanh")},
        outer=lambda c: OuterSpec(c["hidden_size"] ** 0.5),
        norm_offset=1.0,
    ),
    "gemma2": Architecture(
        _WITHOUT_ACT
        | _GEMMA
        | {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 4096}
        | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "layer_types": None},
        _gemma2_layer,
        NEUTRAL | _BIDIRECTIONAL | {"hidden_act": anything},
        slides=lambda c, i: i % 2 == 0,
        outer=_gemma_outer,
        modules=_GEMMA_MODULES,
        norm_offset=1.0,
    ),
    "gemma3_text": Architecture(
        _WITHOUT_ACT
        | _GEMMA
        | {"max_position_embeddings": 131072, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256}
        | {"final_logit_softcapping": None, "layer_types": None}
        | {"sliding_window": 4096, "sliding_window_pattern": 6, "rope_local_base_freq": None},
        _gemma3_layer,
        NEUTRAL
        | _BIDIRECTIONAL
        | {"attn_logit_softcapping": one_of(None), "hidden_act": anything, "_sliding_window_pattern": anything},
        slides=lambda c, i: (i + 1) % c["sliding_window_pattern"] != 0,
        outer=_gemma_outer,
        modules=_GEMMA_MODULES,
        thetas={FULL: 1000000.0, SLIDING: 10000.0},
        norm_offset=1.0,
    ),
    "ernie4_5": Architecture(
        DEFAULTS
        | {"max_position_embeddings": 131072, "num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-5}
        | {"tie_word_embeddings": True, "use_bias": False},
        lambda c, i: LayerSpec(c["use_bias"], c["use_bias"], c["use_bias"]),
        NEUTRAL,
        thetas={FULL: 500000.0},
        neighbours=True,
    ),
    "exaone4": Architecture(
        DEFAULTS
        | {"num_key_value_heads": 32, "rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4}
        | {"layer_types": None},
        lambda c, i: LayerSpec(pre_norms=False, post_norms=True, qk_norm="head"),
        NEUTRAL,
        slides=_exaone4_slides,
        no_rope=lambda c, i, slides: _has_window(c, i) and not slides,
        modules=_POST_MODULES,
    ),
    "hunyuan_v1_dense": Architecture(
        DEFAULTS | {"rms_norm_eps": 1e-5, "attention_bias": False},
        lambda c, i: LayerSpec(c["attention_bias"], c["attention_bias"], qk_norm="head_last"),
        NEUTRAL,
        rope_types={"dynamic": "ntk_alpha"},
        modules=MODULES
        | {
            "q_norm": "model.layers.{i}.self_attn.query_layernorm",
            "k_norm": "model.layers.{i}.self_attn.key_layernorm",
        },
    ),
    "nanochat": Architecture(
        DEFAULTS | {"hidden_act": "relu2", "final_logit_softcapping": 15.0, "attention_bias": False},
        lambda c, i: LayerSpec(c["attention_bias"], c["attention_bias"], qk_norm="head_last", gated=False),
        NEUTRAL,
        outer=lambda c: OuterSpec(embed_norm=True, logit_cap=c["final_logit_softcapping"]),
        modules=MODULES | {"up": "model.layers.{i}.mlp.fc1", "down": "model.layers.{i}.mlp.fc2"},
        norm_weights=False,
        backwards=True,
    ),
}
