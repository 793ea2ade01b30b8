"""Published models by architecture: ids on the hub whose config.json has this ``model_type``."""

from __future__ import annotations

KNOWN: dict[str, tuple[str, ...]] = {
    "llama": (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        "meta-llama/Llama-3.2-1B-Instruct",
        "meta-llama/Llama-3.2-3B-Instruct",
    ),
    "mistral": ("mistralai/Mistral-7B-Instruct-v0.3",),
    "qwen2": ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-3B-Instruct"),
    "qwen3": ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B"),
    "smollm3": ("HuggingFaceTB/SmolLM3-3B",),
    "granite": ("ibm-granite/granite-3.3-2b-instruct",),
    "granitemoehybrid": ("ibm-granite/granite-4.0-micro",),
    "olmo2": ("allenai/OLMo-2-0425-1B-Instruct",),
    "phi3": ("microsoft/Phi-3-mini-4k-instruct", "microsoft/Phi-4-mini-instruct"),
    "gemma": ("google/gemma-2b-it",),
    "gemma2": ("google/gemma-2-2b-it",),
    "gemma3_text": ("google/gemma-3-270m-it", "google/gemma-3-1b-it"),
    "ernie4_5": ("baidu/ERNIE-4.5-0.3B-PT",),
    "exaone4": ("LGAI-EXAONE/EXAONE-4.0-1.2B",),
    "hunyuan_v1_dense": ("tencent/Hunyuan-0.5B-Instruct",),
}
