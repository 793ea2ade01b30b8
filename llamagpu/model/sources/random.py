"""Published shapes with random weights, for benchmarks: nothing is stored; the GPU generates the values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import ModelNotFoundError, UsageError
from llamagpu.model.architectures import ARCHITECTURES
from llamagpu.model.config import Config, parse_config
from llamagpu.model.sources.source import Entry, Quantized, Rows, Stored

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LLAMA3 = {
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": _LLAMA3_ROPE,
    "tie_word_embeddings": True,
    "intermediate_size": 8192,
    "num_key_value_heads": 8,
}
# Keys under their names in config.json, with the values of the models' own files.
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
    "tinyllama-1.1b": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "llama-3.2-1b": _LLAMA3 | {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64},
    "llama-3.2-3b": _LLAMA3
    | {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128},
}


class RandomWeights:
    """A named shape as a source of bfloat16 tensors without stored values.

    Raises:
        UsageError: the shape is unknown.
    """

    def __init__(self, name: str):
        if name not in SHAPES:
            raise UsageError(f"Unknown shape {name!r}.", f"Known: {', '.join(SHAPES)}.")
        self.name = name

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Nothing: no file has these tensors."""
        return {}

    def config(self) -> dict[str, Any]:
        """See ``Source.config``."""
        return {"model_type": "llama", "rms_norm_eps": 1e-5} | SHAPES[self.name]

    def generation_config(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def tokenizer_config(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def tokenizer_file(self) -> str | bytes:
        """Raises ModelNotFoundError: a shape has no tokenizer."""
        raise ModelNotFoundError(f"The shape {self.name} has no tokenizer.", "Its weights are random.")

    def chat_templates(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def tensors(self) -> Mapping[str, Stored]:
        """See ``Source.tensors``."""
        c = parse_config(self.config())
        row = ARCHITECTURES[c.model_type]
        shapes = _layer_shapes(c)
        found = {row.tensor("embed"): (c.vocab_size, c.hidden_size), row.tensor("norm"): (c.hidden_size,)}
        if not c.tie_word_embeddings:
            found[row.tensor("head")] = (c.vocab_size, c.hidden_size)
        for i in range(c.num_hidden_layers):
            found |= {row.tensor(role, i): shape for role, shape in shapes.items()}
        return {name: Stored(shape, "bf16") for name, shape in found.items()}

    def rows(self, name: str, rows: Rows) -> npt.NDArray[Any] | Quantized:
        """Ones, as bits of bf16. Only the weights of norms are read: ``weights.fill_random`` makes all others."""
        return np.full(len(rows), 0x3F80, np.uint16)


def _layer_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    h, mlp = c.hidden_size, c.intermediate_size
    return {
        "q": (c.q_size, h),
        "k": (c.kv_size, h),
        "v": (c.kv_size, h),
        "o": (h, c.q_size),
        "gate": (mlp, h),
        "up": (mlp, h),
        "down": (h, mlp),
        "attn_norm": (h,),
        "mlp_norm": (h,),
    }
