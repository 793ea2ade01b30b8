"""Random LoRA adapters for random models, as PEFT writes them. A seed gives the same adapter on every machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import random_models
from safetensors.numpy import save_file

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PREFIX = "base_model.model."
# The random model, and the settings of peft.LoraConfig.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("gqa", {"r": 8, "lora_alpha": 16, "target_modules": ALL}),
    "rslora": ("all-biases", {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
    "patterns": (
        "qwen2",
        {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "k_proj", "o_proj", "down_proj"]}
        | {"rank_pattern": {"layers.0.self_attn.q_proj": 9, "o_proj": 1}}
        | {"alpha_pattern": {r"^model\.layers\.1\..*_proj": 2.5, "down_proj": 11}},
    ),
    "post-norms": ("gemma2", {"r": 6, "lora_alpha": 12, "target_modules": ALL}),
    "fused": (
        "phi3",
        {"r": 5, "lora_alpha": 10, "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]},
    ),
    "one-layer": ("qwen3", {"r": 16, "lora_alpha": 8, "target_modules": ALL, "layers_to_transform": [1]}),
    "residual-scale": ("granite", {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}),
    "bf16": ("deep-bf16", {"r": 8, "lora_alpha": 16, "target_modules": ["gate_proj", "v_proj"]}),
}


def matrices(c: dict[str, Any], settings: dict[str, Any], seed: int, gain: float = 0.5) -> dict[str, np.ndarray]:
    """Tensors of an adapter for a random model's config, float32 under PEFT's names. The changes have about ``gain`` of
    the size of the weights."""
    rng = np.random.default_rng([seed, 1])
    targets, layers = settings["target_modules"], settings.get("layers_to_transform")
    out: dict[str, np.ndarray] = {}
    for name, weight in random_models.tensors(c, 1).items():
        module = name.removesuffix(".weight")
        found = re.match(r"model\.layers\.(\d+)\..*_proj$", module)
        listed = targets == "all-linear" or module.rpartition(".")[2] in targets
        if weight.ndim != 2 or found is None or not listed or (layers is not None and int(found[1]) not in layers):
            continue
        rank = next(
            (r for key, r in settings.get("rank_pattern", {}).items() if re.match(rf"(.*\.)?({key})$", module)),
            settings["r"],
        )
        scale = gain / weight.shape[1] ** 0.5
        out[f"{PREFIX}{module}.lora_A.weight"] = rng.standard_normal((rank, weight.shape[1])).astype(np.float32) * scale
        b = rng.standard_normal((weight.shape[0], rank)) * rank**-0.5
        out[f"{PREFIX}{module}.lora_B.weight"] = b.astype(np.float32)
    return out


def write_adapter(directory: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], bf16: bool = False) -> Path:
    """Write an adapter's directory; ``config`` is that of adapter_config.json, to which its type is added."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
    if bf16:
        random_models.save_bf16(directory / "adapter_model.safetensors", tensors)
    else:
        save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def write_random(directory: Path, c: dict[str, Any], settings: dict[str, Any], seed: int) -> Path:
    """Write a random adapter for a random model's config."""
    return write_adapter(directory, settings, matrices(c, settings, seed))
