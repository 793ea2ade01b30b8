"""GGUF files for tests: written with the package ``gguf``, from metadata and arrays, or from a tiny random Llama."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from llamagpu.model.sources.gguf.blocks import BLOCKS

Metadata = Mapping[str, tuple[str, Any]]
# Bytes of a block that are float16: random ones would be NaN or huge.
HALVES = {
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
VOCABULARY: dict[str, tuple[str, Any]] = {
    "tokenizer.ggml.model": ("STRING", "gpt2"),
    "tokenizer.ggml.pre": ("STRING", "gpt-2"),
    "tokenizer.ggml.tokens": ("ARRAY", ["a", "b", "ab", *(f"<{i}>" for i in range(3, 300))]),
    "tokenizer.ggml.merges": ("ARRAY", ["a b"]),
}


def write(path: Path, metadata: Metadata, tensors: Mapping[str, tuple[np.ndarray, str]]) -> Path:
    """A GGUF file. Metadata values come with GGUF's names of their types; arrays of floats with a type, arrays of
    blocks (uint8) too."""
    writer = GGUFWriter(path, str(metadata["general.architecture"][1]))
    for key, (kind, value) in metadata.items():
        if key == "general.architecture":
            continue
        if kind == "ARRAY":
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, gguf.GGUFValueType[kind])
    for name, (values, dtype) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=GGMLQuantizationType[dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(rng: np.random.Generator, rows: int, columns: int, dtype: str, size: float = 0.05) -> np.ndarray:
    """Random valid rows of a type (uint8 [rows, bytes]); every bit pattern of the values occurs. ``size`` is about the
    largest weight."""
    kind = BLOCKS[dtype]
    data = rng.integers(0, 256, (rows * columns // kind.values, kind.nbytes), dtype=np.uint8)
    factors = 2 ** rng.uniform(-5, 0, (len(HALVES[dtype]), len(data), 1)) * rng.choice([-1, 1], (len(data), 1))
    top = np.abs(values(_with_halves(data, dtype, factors), dtype)).max()
    return _with_halves(data, dtype, factors * size / top).reshape(rows, -1)


def _with_halves(data: np.ndarray, dtype: str, factors: np.ndarray) -> np.ndarray:
    out = data.copy()
    for at, half in zip(HALVES[dtype], factors.astype(np.float16), strict=True):
        out[:, at : at + 2] = half.view(np.uint8)
    return out


def values(data: np.ndarray, dtype: str) -> np.ndarray:
    """The float32 values of rows, by the package ``gguf``."""
    return gguf.dequantize(data, GGMLQuantizationType[dtype])


def llama_metadata(config: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """The metadata of a Llama with a config of ``random_models``."""
    return VOCABULARY | {
        "general.architecture": ("STRING", "llama"),
        "llama.block_count": ("UINT32", config["num_hidden_layers"]),
        "llama.context_length": ("UINT32", config["max_position_embeddings"]),
        "llama.embedding_length": ("UINT32", config["hidden_size"]),
        "llama.feed_forward_length": ("UINT32", config["intermediate_size"]),
        "llama.attention.head_count": ("UINT32", config["num_attention_heads"]),
        "llama.attention.head_count_kv": ("UINT32", config["num_key_value_heads"]),
        "llama.attention.layer_norm_rms_epsilon": ("FLOAT32", config["rms_norm_eps"]),
        "llama.attention.key_length": ("UINT32", config["head_dim"]),
        "llama.attention.value_length": ("UINT32", config["head_dim"]),
        "llama.rope.freq_base": ("FLOAT32", 10000.0),
        "tokenizer.ggml.eos_token_id": ("UINT32", 2),
    }


def llama_shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Llama by its GGUF name."""
    h, mlp, d = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    out: dict[str, tuple[int, ...]] = {"token_embd.weight": (c["vocab_size"], h), "output_norm.weight": (h,)}
    if not c["tie_word_embeddings"]:
        out["output.weight"] = (c["vocab_size"], h)
    for i in range(c["num_hidden_layers"]):
        layer = {"attn_norm": (h,), "ffn_norm": (h,), "attn_q": (q, h), "attn_k": (kv, h), "attn_v": (kv, h)}
        layer |= {"attn_output": (h, q), "ffn_gate": (mlp, h), "ffn_up": (mlp, h), "ffn_down": (h, mlp)}
        out |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    return out
