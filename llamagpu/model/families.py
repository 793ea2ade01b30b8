"""Published models by family and size, for a proposal when a model does not fit."""

from __future__ import annotations

# Millions of parameters of hub ids, by a part of the names in their family. Tied weights count once.
FAMILIES: dict[str, dict[str, int]] = {
    "llama-3.2": {"meta-llama/Llama-3.2-3B-Instruct": 3213, "meta-llama/Llama-3.2-1B-Instruct": 1236},
    "smollm2": {
        "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1711,
        "HuggingFaceTB/SmolLM2-360M-Instruct": 362,
        "HuggingFaceTB/SmolLM2-135M-Instruct": 135,
    },
    "qwen3-embedding": {"Qwen/Qwen3-Embedding-4B": 4022, "Qwen/Qwen3-Embedding-0.6B": 596},
    "qwen3": {"Qwen/Qwen3-4B": 4022, "Qwen/Qwen3-1.7B": 1721, "Qwen/Qwen3-0.6B": 596},
    "qwen2.5": {
        "Qwen/Qwen2.5-3B-Instruct": 3086,
        "Qwen/Qwen2.5-1.5B-Instruct": 1544,
        "Qwen/Qwen2.5-0.5B-Instruct": 494,
    },
    "gemma-3": {"google/gemma-3-1b-it": 1000, "google/gemma-3-270m-it": 268},
    "bge": {"BAAI/bge-large-en-v1.5": 335, "BAAI/bge-base-en-v1.5": 109, "BAAI/bge-small-en-v1.5": 33},
    "multilingual-e5": {
        "intfloat/multilingual-e5-large": 560,
        "intfloat/multilingual-e5-base": 278,
        "intfloat/multilingual-e5-small": 118,
    },
    "minilm": {"sentence-transformers/all-MiniLM-L12-v2": 33, "sentence-transformers/all-MiniLM-L6-v2": 23},
}
# The family of models whose name does not tell, by the architecture of config.json.
_BY_TYPE = {"llama": "smollm2", "qwen2": "qwen2.5", "qwen3": "qwen3", "gemma3_text": "gemma-3"}
_BYTES = {"": 2.0, " with --dtype int8": 1.2, " with --dtype int4": 0.7}  # of a parameter, generously
_FLOAT32 = ("bge", "multilingual-e5", "minilm")  # families that are stored in float32; the others have 16 bits


def smaller_models(name: str, model_type: str, parameters: int, room: int) -> list[str]:
    """The largest smaller model of a family whose weights fit ``room`` bytes, in words; empty if there is none.

    Args:
        name: the model's name: a hub id, or a directory that may have the family in its name.
        room: bytes beside the cache and activations of the model, which those of a smaller one do not exceed.
    """
    family = next((key for key in FAMILIES if key in name.lower()), _BY_TYPE.get(model_type, ""))
    for id, millions in FAMILIES.get(family, {}).items():
        for suffix, size in (_BYTES | ({"": 4.0} if family in _FLOAT32 else {})).items():
            if millions * 1e6 < 0.9 * parameters and millions * 1e6 * size <= room:
                return [f"a smaller model of its family: {id} ({millions:,} M parameters){suffix}"]
    return []
