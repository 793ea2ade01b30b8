"""Random checkpoints for goldens and tests. A seed gives the same checkpoint on every machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

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


def tensors(c: dict[str, Any], seed: int, gain: float = 1.0) -> dict[str, np.ndarray]:
    """float32 weights under their checkpoint names. Matrices have variance gain² / columns, norms are random."""
    rng = np.random.default_rng(seed)
    h, d, mlp = c["hidden_size"], c["head_dim"], c["intermediate_size"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    qkv_bias = c.get("attention_bias", c["model_type"] == "qwen2")
    o_bias, mlp_bias = c.get("attention_bias", False), c.get("mlp_bias", False)
    out: dict[str, np.ndarray] = {}

    def matrix(name: str, rows: int, columns: int, bias: bool = False) -> None:
        out[f"{name}.weight"] = rng.standard_normal((rows, columns)) * (gain / columns**0.5)
        if bias:
            out[f"{name}.bias"] = rng.standard_normal(rows) * 0.5

    def norm(name: str) -> None:
        out[f"{name}.weight"] = 1 + 0.3 * rng.standard_normal(h)

    matrix("model.embed_tokens", c["vocab_size"], h)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}"
        norm(f"{p}.input_layernorm")
        norm(f"{p}.post_attention_layernorm")
        for name, rows, columns in (("q", q, h), ("k", kv, h), ("v", kv, h), ("o", h, q)):
            matrix(f"{p}.self_attn.{name}_proj", rows, columns, o_bias if name == "o" else qkv_bias)
        for name, rows, columns in (("gate", mlp, h), ("up", mlp, h), ("down", h, mlp)):
            matrix(f"{p}.mlp.{name}_proj", rows, columns, mlp_bias)
    norm("model.norm")
    if not c["tie_word_embeddings"]:
        matrix("lm_head", c["vocab_size"], h)
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
