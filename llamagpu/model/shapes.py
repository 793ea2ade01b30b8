"""Named shapes: the configs of published models, for benchmarks with random weights that are made on the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llamagpu.errors import UsageError
from llamagpu.gpu import Affine, Device, Tensor
from llamagpu.kernels import noise
from llamagpu.model.architectures import ARCHITECTURES
from llamagpu.model.checkpoint import Checkpoint, Entry
from llamagpu.model.config import Config, parse_config
from llamagpu.model.layout import Layout, Matrix
from llamagpu.model.weights import Weights, assemble, empty_matrix

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
# Keys under their names in config.json, as the models' own files have them.
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


def shape_config(name: str) -> Config:
    """The config of a named shape.

    Raises:
        UsageError: there is no such shape.
    """
    if name not in SHAPES:
        raise UsageError(f"There is no shape {name!r}.", f"Known: {', '.join(SHAPES)}.")
    return parse_config({"model_type": "llama", "rms_norm_eps": 1e-5} | SHAPES[name])


def shape_layout(config: Config, dtype: str = "auto") -> Layout:
    """The layout of a checkpoint of this config, in bfloat16 where ``dtype`` says nothing else."""
    c, names = config, ARCHITECTURES[config.model_type].tensors
    h, mlp = c.hidden_size, c.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
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
    entries = {names["embed"]: (c.vocab_size, h), names["norm"]: (h,)}
    if not c.tie_word_embeddings:
        entries[names["head"]] = (c.vocab_size, h)
    for i in range(c.num_hidden_layers):
        entries |= {names[role].format(i=i): shape for role, shape in shapes.items()}
    nowhere = Path()
    return Layout(c, Checkpoint({n: Entry(nowhere, "BF16", s, 0, 0) for n, s in entries.items()}), dtype)


def random_weights(layout: Layout, device: Device) -> Weights:
    """Weights of a layout, uniform from -0.03 to 0.03, without a file or a transfer; norms are ones."""
    matrices = {key: _random(device, m, seed) for seed, (key, m) in enumerate(layout.matrices.items())}
    ones = [np.ones(sum(len(s.rows) for s in v), np.float32) for v in layout.vectors.values()]
    vectors = dict(zip(layout.vectors, device.windows(list(ones), purpose="weights"), strict=True))
    device.finish()
    return assemble(layout.config, matrices | vectors)


def _random(device: Device, matrix: Matrix, seed: int) -> Tensor:
    format, tensor = matrix.format, empty_matrix(device, matrix)
    if not isinstance(format, Affine):
        return noise(tensor, seed)
    scale = np.float32(0.06 / (2**format.bits - 1))
    pair = format.pack_meta(np.full((1, 1), scale), np.full((1, 1), np.float32(-0.03)))
    rows = np.tile(pair, (1, matrix.columns // format.group))
    for first in range(0, matrix.rows, 4096):
        count = min(4096, matrix.rows - first)
        device.upload_rows(tensor.meta, first, np.repeat(rows, count, axis=0), tensor.woven)
    return noise(tensor, seed)
