"""Random encoders for goldens and tests. A seed gives the same checkpoint on every machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from llamagpu.model.encoder_config import BUCKETS, ENCODERS, parse_encoder

LENGTHS = (1, 2, 31, 120, 300)  # of the texts of one pack, as far as the model goes
CLASSIFIERS = {"bert": 1, "roberta": 3, "distilbert": 2, "electra": 1, "ernie": 2, "mpnet": 1}  # labels


def config(model_type: str, **changes: Any) -> dict[str, Any]:
    """A small encoder's config.json, with changes."""
    base: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": 211,
        "hidden_size": 48,
        "intermediate_size": 97,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 140,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    return base | changes


CONFIGS: dict[str, dict[str, Any]] = {
    "bert": config("bert"),
    "bert-wide": config("bert", hidden_size=128, num_attention_heads=2, intermediate_size=256, layer_norm_eps=1e-5),
    "bert-tanh": config("bert", hidden_act="gelu_new", type_vocab_size=1),
    "roberta": config("roberta", type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5),
    "xlm-roberta": config("xlm-roberta", type_vocab_size=1, pad_token_id=3, hidden_size=64, num_attention_heads=8),
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 211,
        "dim": 48,
        "hidden_dim": 100,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 140,
        "activation": "gelu",
        "sinusoidal_pos_embds": False,
        "pad_token_id": 0,
    },
    "data2vec-text": config("data2vec-text", type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5),
    "electra": config("electra", embedding_size=48),
    "ernie": config("ernie", use_task_id=True, task_type_vocab_size=3),
    "ernie-plain": config("ernie", use_task_id=False, hidden_size=64),
    "mpnet": config("mpnet", pad_token_id=1, layer_norm_eps=1e-5, max_position_embeddings=302),
}
del CONFIGS["mpnet"]["type_vocab_size"]


def tensors(raw: dict[str, Any], seed: int, gain: float = 1.5) -> dict[str, np.ndarray]:
    """float32 weights under the names of a base model."""
    rng, c, row = np.random.default_rng(seed), parse_encoder(raw), ENCODERS[raw["model_type"]]
    h, mlp, out = c.hidden_size, c.intermediate_size, {}

    def put(role: str, i: int | None, *shape: int, size: float) -> None:
        out[f"{row.modules[role].format(i=i)}.weight"] = rng.standard_normal(shape) * size

    def layer_norm(role: str, i: int | None) -> None:
        name = row.modules[role].format(i=i)
        out[f"{name}.weight"], out[f"{name}.bias"] = 1 + 0.3 * rng.standard_normal(h), 0.3 * rng.standard_normal(h)

    put("words", None, c.vocab_size, h, size=1)
    put("positions", None, raw["max_position_embeddings"], h, size=0.7)
    if c.type_vocab_size:
        put("types", None, c.type_vocab_size, h, size=0.5)
    if c.task_type_vocab_size:
        put("tasks", None, c.task_type_vocab_size, h, size=0.5)
    if "relative" in row.modules:
        put("relative", None, BUCKETS, c.num_attention_heads, size=2)
    layer_norm("embed_norm", None)
    for i in range(c.num_hidden_layers):
        for role, rows, columns in (
            ("q", h, h),
            ("k", h, h),
            ("v", h, h),
            ("o", h, h),
            ("up", mlp, h),
            ("down", h, mlp),
        ):
            put(role, i, rows, columns, size=gain / columns**0.5)
            out[f"{row.modules[role].format(i=i)}.bias"] = 0.5 * rng.standard_normal(rows)
        layer_norm("attn_norm", i)
        layer_norm("mlp_norm", i)
    return {name: values.astype(np.float32) for name, values in out.items()}


def classifier(raw: dict[str, Any], labels: int, seed: int) -> dict[str, np.ndarray]:
    """The tensors of a model for sequence classification."""
    rng, h, kind = np.random.default_rng([seed, 5]), parse_encoder(raw).hidden_size, raw["model_type"]
    row = ENCODERS[kind]
    shapes = {
        "bert": {"bert.pooler.dense": h, "classifier": labels},
        "roberta": {"classifier.dense": h, "classifier.out_proj": labels},
        "distilbert": {"pre_classifier": h, "classifier": labels},
        "electra": {"classifier.dense": h, "classifier.out_proj": labels},
        "ernie": {"ernie.pooler.dense": h, "classifier": labels},
        "mpnet": {"classifier.dense": h, "classifier.out_proj": labels},
    }[kind]
    out = {f"{row.prefix}{name}": values for name, values in tensors(raw, seed).items()}
    for name, rows in shapes.items():
        out[f"{name}.weight"] = (rng.standard_normal((rows, h)) / h**0.5).astype(np.float32)
        out[f"{name}.bias"] = (0.5 * rng.standard_normal(rows)).astype(np.float32)
    return out


def texts(raw: dict[str, Any], seed: int) -> list[tuple[list[int], list[int]]]:
    """Random ids, which are no padding, and token types."""
    rng, types = np.random.default_rng([seed, 7]), raw.get("type_vocab_size", 0)
    first = raw["pad_token_id"] + 1
    return [
        (rng.integers(first, raw["vocab_size"], n).tolist(), rng.integers(0, max(1, types), n).tolist())
        for n in LENGTHS
        if n <= parse_encoder(raw).positions
    ]


def write_model(directory: Path, raw: dict[str, Any], weights: dict[str, np.ndarray], special: bool = False) -> Path:
    """A model directory in Hugging Face layout, with a tokenizer of words a0, a1, …; ``special`` puts a1 and a2 around
    texts, as BERT's tokenizers have it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, directory / "model.safetensors")
    made = Tokenizer(models.WordLevel({f"a{i}": i for i in range(raw["vocab_size"])}, unk_token="a0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokens = [("a1", 1), ("a2", 2)]
        made.post_processor = processors.TemplateProcessing(
            single="a1 $A a2", pair="a1 $A a2 $B:1 a2:1", special_tokens=tokens
        )
    made.save(str(directory / "tokenizer.json"))
    return directory
