"""Random decoders that embed, in the form in which sentence-transformers stores them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import random_models
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from llamagpu.model.architecture import BASE

CONFIGS: dict[str, dict[str, Any]] = {
    # Qwen3-Embedding: the last token, which the tokenizer adds; prompts; names without the head's prefix
    "qwen3-last": random_models.CONFIGS["qwen3"] | {"architectures": ["Qwen3ForCausalLM"]},
    "mistral-mean": random_models.of("mistral", sliding_window=50) | {"architectures": ["MistralModel"]},
}
POOLING = {"qwen3-last": "lasttoken", "mistral-mean": "mean_tokens"}
END = "</s>"


def texts() -> list[str]:
    """Texts of 1 to 550 tokens."""
    rng = np.random.default_rng(11)
    return [" ".join(f"a{i}" for i in rng.integers(0, 100, n)) for n in (1, 2, 15, 16, 31, 90, 550)]


def write(directory: Path, name: str) -> Path:
    """The directory of a model."""
    raw, seed = CONFIGS[name], list(CONFIGS).index(name) + 1
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    weights = random_models.tensors(raw, seed)
    weights.pop("lm_head.weight", None)
    bare = {n.removeprefix(BASE): np.ascontiguousarray(v, np.float32) for n, v in weights.items()}
    save_file(bare, directory / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(directory, raw["vocab_size"])
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": raw["hidden_size"], f"pooling_mode_{POOLING[name]}": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    prompts = {"prompts": {"query": "a1 a2 ", "document": ""}, "similarity_fn_name": "cosine"}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return directory


def _write_tokenizer(directory: Path, vocab: int) -> None:
    """Words a0, a1, …, and an end that is added to every text."""
    words = {f"a{i}": i for i in range(vocab - 1)} | {END: vocab - 1}
    made = Tokenizer(models.WordLevel(words, unk_token="a0"))
    made.add_special_tokens([END])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, vocab - 1)])
    made.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END, "padding_side": "left"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 640}))
