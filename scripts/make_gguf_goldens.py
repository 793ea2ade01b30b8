"""What llama.cpp's converter makes of tiny models of every architecture: tests/goldens_gguf.json.

    python scripts/make_gguf_goldens.py LLAMA_CPP    # needs torch, transformers, and a checkout of llama.cpp

Each model's tensors hold the number of their row in every column, so the golden says where each row went: for every
tensor of the GGUF file its name in the checkpoint, its shape, and the order of rows (absent if it is the checkpoint's).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

OUT = Path(__file__).resolve().parent.parent / "tests" / "goldens_gguf.json"
SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.25, 1.5],
    "long_factor": [1.0, 2.0, 4.0],
    "original_max_position_embeddings": 64,
    "partial_rotary_factor": 0.75,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_GRANITE = {
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
# name: (the class of the model in transformers, the keys that differ from SMALL)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"rope_parameters": _LLAMA3, "head_dim": 16}),
    "llama-bias": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", {"sliding_window": None}),
    "ministral3": ("Ministral3ForCausalLM", {"rope_parameters": _YARN, "head_dim": 16}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16}),
    "smollm3": ("SmolLM3ForCausalLM", {"num_hidden_layers": 4, "pad_token_id": 0}),
    "granite": ("GraniteForCausalLM", _GRANITE),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "phi3": ("Phi3ForCausalLM", {"rope_parameters": _LONG, "pad_token_id": 0, "original_max_position_embeddings": 64}),
    "gemma": ("GemmaForCausalLM", {"head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}),
    "gemma3": (
        "Gemma3ForCausalLM",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 64,
            "num_hidden_layers": 6,
            "rope_parameters": _GEMMA3_ROPE,
        },
    ),
    "ernie4_5": ("Ernie4_5ForCausalLM", {"head_dim": 16}),
    "exaone4": (
        "Exaone4ForCausalLM",
        {"sliding_window": None, "layer_types": ["full_attention"] * 2, "rope_parameters": _LLAMA3},
    ),
    "exaone4-sliding": ("Exaone4ForCausalLM", {"sliding_window": 64, "num_hidden_layers": 4}),
    "hunyuan": ("HunYuanDenseV1ForCausalLM", {"head_dim": 16}),
}


def save(folder: Path, kind: str, changed: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write a model whose tensors hold their row numbers; its config and tensors."""
    import torch
    import transformers

    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**SMALL | {"bos_token_id": 1, "eos_token_id": 2, **changed}))
    for tensor in model.parameters():
        rows = torch.arange(tensor.shape[0], dtype=torch.float32)
        tensor.data = rows.reshape(-1, *[1] * (tensor.ndim - 1)).expand(tensor.shape).clone()
    model.save_pretrained(folder)
    vocab = {f"t{i}": i for i in range(SMALL["vocab_size"])}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))
    return json.loads((folder / "config.json").read_text()), model.state_dict()


def convert(folder: Path) -> Path:
    """The GGUF file that llama.cpp makes of a model, without its vocabulary."""
    import gguf
    from conversion import get_model_class
    from conversion.base import ModelBase, ModelType, TextModel, get_model_architecture

    hparams = ModelBase.load_hparams(folder, False)
    cls = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
    out = folder / "out.gguf"
    instance = cls(folder, gguf.LlamaFileType.ALL_F32, out)
    for part in (instance, getattr(instance, "impl", instance)):
        part.set_vocab = lambda: None
    assert isinstance(instance, TextModel)
    instance.write()
    return out


def golden(path: Path, config: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Metadata, config, and for each tensor of the file its place in the checkpoint."""
    import gguf

    reader = gguf.GGUFReader(path)
    metadata = {k: [v.types[0].name, v.contents()] for k, v in reader.fields.items() if not k.startswith("GGUF.")}
    architecture = metadata["general.architecture"][1]
    names = gguf.get_tensor_name_map(
        next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture), config["num_hidden_layers"]
    )
    own = {names.get_name(name, (".weight", ".bias")): name for name in tensors}
    found = {}
    for tensor in reader.tensors:
        data = np.asarray(tensor.data)
        entry: dict[str, Any] = {"shape": list(data.shape)}
        checkpoint = own.get(tensor.name)
        if checkpoint is None:
            entry["values"] = data.tolist()
        else:
            rows = data.reshape(data.shape[0], -1)[:, 0]
            entry["name"] = checkpoint
            entry["plus"] = float(rows.min())
            order = (rows - rows.min()).astype(int).tolist()
            if order != list(range(len(order))):
                entry["rows"] = order
        found[tensor.name] = entry
    kept = {k: v for k, v in metadata.items() if k.startswith((f"{architecture}.", "general.architecture"))}
    return {"metadata": kept, "config": config, "tensors": found}


def main() -> None:
    """Convert every model and write the goldens."""
    root = Path(sys.argv[1])
    sys.path[:0] = [str(root), str(root / "gguf-py")]
    out = {}
    for name, (kind, changed) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            config, tensors = save(Path(folder), kind, changed)
            out[name] = golden(convert(Path(folder)), config, tensors)
            print(name, out[name]["metadata"]["general.architecture"][1], len(out[name]["tensors"]), "tensors")
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in out.items()]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
