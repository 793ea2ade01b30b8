"""Random checkpoints for goldens and tests. A seed gives the same checkpoint on every machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from llamagpu.model import parse_config
from llamagpu.model.architectures import ARCHITECTURES

PROMPTS = (1, 2, 31, 600)  # lengths in tokens
LAST = 4  # last positions of a prompt, whose logits a golden keeps
COLUMNS = 512  # vocabulary entries that a golden keeps if there are more than MANY
MANY = 2000


def config(**changes: Any) -> dict[str, Any]:
    """A small Llama's config.json, with changes."""
    base: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 105,
        "hidden_size": 64,
        "intermediate_size": 97,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 640,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "torch_dtype": "float32",
    }
    return base | changes


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
CONFIGS = {
    "gqa": config(),
    "mha-tied": config(num_key_value_heads=4, tie_word_embeddings=True),
    "mqa": config(num_attention_heads=8, num_key_value_heads=1, head_dim=8, intermediate_size=333),
    "head8": config(hidden_size=48, num_attention_heads=6, num_key_value_heads=3, head_dim=8),
    "head64-tied": config(hidden_size=120, num_attention_heads=3, num_key_value_heads=1, head_dim=64)
    | {"tie_word_embeddings": True},
    "head80": config(hidden_size=160, num_attention_heads=2, num_key_value_heads=2, head_dim=80),
    "head128": config(hidden_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=128),
    "attention-bias": config(attention_bias=True, rms_norm_eps=1e-3),
    "all-biases": config(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama3": config(rope_scaling=LLAMA3, rope_theta=500000.0),
    "llama3-new-form": config(rope_parameters=LLAMA3 | {"rope_theta": 500000.0}, num_key_value_heads=1),
    "linear": config(rope_scaling={"type": "linear", "factor": 4.0}),
    "odd": config(hidden_size=60, head_dim=20, num_attention_heads=3, num_key_value_heads=3, intermediate_size=333),
    "vocab50257": config(vocab_size=50257, num_hidden_layers=1, tie_word_embeddings=True),
    "deep-bf16": config(num_hidden_layers=6, torch_dtype="bfloat16"),
    "theta-f16": config(rope_theta=1000000.0, torch_dtype="float16", num_attention_heads=16, num_key_value_heads=4),
}


def without(c: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A config without some keys."""
    return {k: v for k, v in c.items() if k not in keys}


MISTRAL = without(config(architectures=["MistralForCausalLM"], model_type="mistral"), "attention_bias", "mlp_bias")
QWEN2 = without(
    config(architectures=["Qwen2ForCausalLM"], model_type="qwen2"), "attention_bias", "mlp_bias", "rope_scaling"
)
CONFIGS |= {
    "mistral": MISTRAL | {"sliding_window": None, "rope_theta": 1000000.0},
    "qwen2": QWEN2 | {"rms_norm_eps": 1e-6, "use_sliding_window": False, "sliding_window": 128, "max_window_layers": 1},
    "qwen2-tied": QWEN2 | {"num_attention_heads": 8, "num_key_value_heads": 1, "tie_word_embeddings": True},
}


def of(model_type: str, *without_keys: str, **changes: Any) -> dict[str, Any]:
    """A small config of another architecture, without keys that it does not know."""
    base = config(model_type=model_type, pad_token_id=None, **changes)
    return without(base, "architectures", "rope_scaling", *without_keys)


_BIASES = ("attention_bias", "mlp_bias")
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 160, "rope_theta": 20000.0}
_LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0 + 0.1 * i for i in range(12)],
    "long_factor": [1.5 + 0.7 * i for i in range(12)],
}
_GEMMA = of("gemma", "mlp_bias", hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True)
_GEMMA2 = without(_GEMMA, "hidden_act") | {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 24,
    "sliding_window": 50,
}
_MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.1,
    "logits_scaling": 4.0,
}
_SLIDING, _FULL = "sliding_attention", "full_attention"
CONFIGS |= {
    "dynamic": config(rope_scaling={"type": "dynamic", "factor": 4.0}),
    "yarn": config(rope_parameters=_YARN),
    "yarn-mscale": config(
        rope_parameters=_YARN
        | {"mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 8.0, "original_max_position_embeddings": 320},
        head_dim=32,
        num_key_value_heads=1,
    ),
    "mistral-window": MISTRAL | {"sliding_window": 37},
    "ministral": of("ministral", *_BIASES, sliding_window=100, num_hidden_layers=3)
    | {"layer_types": [_SLIDING, _FULL, _SLIDING]},
    "ministral3": of("ministral3", *_BIASES)
    | {"rope_parameters": _YARN | {"llama_4_scaling_beta": 0.4, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "qwen2-window": QWEN2
    | {"use_sliding_window": True, "sliding_window": 300, "max_window_layers": 1, "num_hidden_layers": 3},
    "qwen3": of("qwen3", "mlp_bias", head_dim=32, tie_word_embeddings=True, rms_norm_eps=1e-6),
    "qwen3-yarn": of("qwen3", "mlp_bias", attention_bias=True, num_attention_heads=8, num_hidden_layers=3)
    | {"use_sliding_window": True, "sliding_window": 270, "max_window_layers": 1}
    | {"rope_scaling": _YARN, "rope_theta": 20000.0},
    "smollm3": of("smollm3", num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0], rope_theta=2000000.0),
    "smollm3-window": of("smollm3", num_hidden_layers=3, no_rope_layer_interval=2, use_sliding_window=True)
    | {"sliding_window": 64, "mlp_bias": True, "attention_bias": True, "tie_word_embeddings": True},
    "granite": of("granite", attention_bias=True, mlp_bias=True, **_MULTIPLIERS),
    "granite-hybrid": of("granitemoehybrid", "mlp_bias", **_MULTIPLIERS)
    | {"num_local_experts": 0, "shared_intermediate_size": 77, "position_embedding_type": "rope"}
    | {"layer_types": ["attention", "attention"], "mamba_n_heads": 2, "tie_word_embeddings": True},
    "granite-nope": of("granitemoehybrid", "mlp_bias", attention_bias=True, **_MULTIPLIERS)
    | {"num_local_experts": 0, "shared_intermediate_size": 96, "position_embedding_type": "nope"}
    | {"layer_types": ["attention", "attention"], "mamba_n_heads": 2},
    "olmo2": of("olmo2", "mlp_bias", num_key_value_heads=4),
    "olmo2-gqa": of("olmo2", "mlp_bias", attention_bias=True, rope_theta=500000.0),
    "phi3": without(of("phi3", *_BIASES, sliding_window=64, hidden_size=48, num_attention_heads=3), "head_dim")
    | {"num_key_value_heads": 3, "tie_word_embeddings": True},
    "phi3-longrope": without(of("phi3", *_BIASES, num_attention_heads=2, num_key_value_heads=1), "head_dim")
    | {"original_max_position_embeddings": 256, "partial_rotary_factor": 0.75, "rope_scaling": _LONGROPE},
    "gemma": _GEMMA | {"head_dim": 256, "num_key_value_heads": 1, "attention_bias": True},
    "gemma2": _GEMMA2
    | {"model_type": "gemma2", "attention_bias": True, "final_logit_softcapping": 12.0, "attn_logit_softcapping": 3.0},
    "gemma3": _GEMMA2
    | {"model_type": "gemma3_text", "num_hidden_layers": 3, "sliding_window_pattern": 2, "rope_theta": 1000000.0}
    | {"rope_local_base_freq": 5000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    | {"sliding_window": 260, "final_logit_softcapping": 20.0},
    "gemma3-new-form": _GEMMA2
    | {"model_type": "gemma3_text", "layer_types": [_SLIDING, _FULL], "attention_bias": True, "head_dim": 32}
    | {"rope_parameters": {_SLIDING: {"rope_theta": 9000.0}, _FULL: {"rope_type": "linear", "factor": 4.0}}},
    "ernie4_5": of("ernie4_5", *_BIASES, use_bias=True, rope_theta=500000.0),
    "exaone4": of("exaone4", *_BIASES, num_hidden_layers=4, sliding_window=40, sliding_window_pattern=4)
    | {"rope_scaling": LLAMA3, "rope_theta": 1000000.0, "tie_word_embeddings": True},
    "exaone4-full": of("exaone4", *_BIASES, sliding_window=None, layer_types=[_FULL, _FULL]),
    "hunyuan": of("hunyuan_v1_dense", "mlp_bias", attention_bias=True)
    | {"rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}},
    "nanochat": of("nanochat", "mlp_bias", attention_bias=True, hidden_act="relu2", final_logit_softcapping=15.0),
}


def tensors(c: dict[str, Any], seed: int, gain: float = 1.0) -> dict[str, np.ndarray]:
    """float32 weights under their checkpoint names. Matrices have variance gain² / columns, norms are random.

    Names and biases are those of the architecture's row; ``scripts/make_goldens.py`` has transformers check them.
    """
    rng = np.random.default_rng(seed)
    model, row = parse_config(c), ARCHITECTURES[c["model_type"]]
    h, mlp, q, kv = model.hidden_size, model.intermediate_size, model.q_size, model.kv_size
    out: dict[str, np.ndarray] = {}

    def matrix(role: str, i: int | None, rows: int, columns: int, bias: bool = False) -> None:
        out[row.tensor(role, i)] = rng.standard_normal((rows, columns)) * (gain / columns**0.5)
        if bias:
            out[row.tensor(role, i, "bias")] = rng.standard_normal(rows) * 0.5

    def norm(role: str, i: int | None, size: int) -> None:
        if row.norm_weights:
            out[row.tensor(role, i)] = 1 + 0.3 * rng.standard_normal(size) - row.norm_offset

    matrix("embed", None, c["vocab_size"], h)
    for i, spec in enumerate(model.layers):
        for role in ("attn_norm", "mlp_norm") if spec.pre_norms else ():
            norm(role, i, h)
        for role in ("attn_post_norm", "mlp_post_norm") if spec.post_norms else ():
            norm(role, i, h)
        if spec.qk_norm:
            norm("q_norm", i, q if spec.qk_norm == "row" else model.head_dim)
            norm("k_norm", i, kv if spec.qk_norm == "row" else model.head_dim)
        parts = [("qkv", q + 2 * kv)] if "qkv" in row.modules else [("q", q), ("k", kv), ("v", kv)]
        for role, rows in parts:
            matrix(role, i, rows, h, spec.qkv_bias)
        matrix("o", i, h, q, spec.o_bias)
        parts = [("gate_up", 2 * mlp)] if "gate_up" in row.modules else [("gate", mlp), ("up", mlp)]
        for role, rows in parts if spec.gated else [("up", mlp)]:
            matrix(role, i, rows, h, spec.mlp_bias)
        matrix("down", i, h, mlp, spec.mlp_bias)
    norm("norm", None, h)
    if not c["tie_word_embeddings"]:
        matrix("head", None, c["vocab_size"], h)
    return {name: stored(a.astype(np.float32), c) for name, a in out.items()}


def stored(values: np.ndarray, c: dict[str, Any]) -> np.ndarray:
    """The values in the config's dtype, widened back to float32."""
    if c["torch_dtype"] == "float16":
        return values.astype(np.float16).astype(np.float32)
    if c["torch_dtype"] == "bfloat16":
        return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return values


def prompt(c: dict[str, Any], length: int, seed: int) -> list[int]:
    """Random token ids."""
    return np.random.default_rng([seed, length]).integers(0, c["vocab_size"], length).tolist()


def kept_columns(c: dict[str, Any]) -> np.ndarray:
    """Indices of the vocabulary entries that a golden keeps."""
    vocab = c["vocab_size"]
    return np.arange(vocab) if vocab <= MANY else np.linspace(0, vocab - 1, COLUMNS).astype(np.int64)


def write_model(directory: Path, c: dict[str, Any], weights: dict[str, np.ndarray], tokenizer: bool = True) -> Path:
    """Write a model directory in Hugging Face layout: tensors in the config's dtype and a byte-level tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(c))
    if c["torch_dtype"] == "bfloat16":
        save_bf16(directory / "model.safetensors", weights)
    else:
        kind = np.float16 if c["torch_dtype"] == "float16" else np.float32
        save_file(
            {k: np.ascontiguousarray(v.astype(kind)) for k, v in weights.items()}, directory / "model.safetensors"
        )
    if tokenizer:
        write_tokenizer(directory, c["vocab_size"])
    return directory


def save_bf16(path: Path, weights: dict[str, np.ndarray]) -> None:
    """Write a safetensors file with BF16, which the library's numpy interface cannot write."""
    header, at, chunks = {}, 0, []
    for name, values in weights.items():
        data = (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
        chunks.append(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(chunks))


def write_tokenizer(directory: Path, vocab_size: int) -> None:
    """Write a tokenizer of single bytes, limited to the size of the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: min(256, vocab_size)]
    tok = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, [], unk_token=alphabet[0]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.save(str(directory / "tokenizer.json"))


def quantization_input(dtype: str) -> np.ndarray:
    """Weights [48, 512] in f32, f16 or bf16, widened to float32. One row holds zeros, one holds a single sign."""
    w = np.random.default_rng(9).standard_normal((48, 512)).astype(np.float32)
    w[3], w[4] = 0, np.abs(w[4])
    return stored(w, {"torch_dtype": {"f16": "float16", "bf16": "bfloat16"}.get(dtype, "float32")})
