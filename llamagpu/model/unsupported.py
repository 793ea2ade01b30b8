"""Architectures that this engine does not run, and what keeps it from them: errors name it."""

from llamagpu.model.encoder_config import ENCODERS, REFUSED_ENCODERS

_EXPERTS, _VISION = "mixture of experts", "vision parts"
REFUSED: dict[str, str] = {
    **dict.fromkeys(ENCODERS, "no decoder: Embedder and CrossEncoder run it"),
    **REFUSED_ENCODERS,
    **dict.fromkeys(
        ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "granitemoe", "granitemoeshared"), _EXPERTS
    ),
    **dict.fromkeys(
        ("gpt_oss", "ernie4_5_moe", "hunyuan_v1_moe", "llama4_text", "minimax", "dbrx", "jetmoe"), _EXPERTS
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "minicpm3", "kimi_k2"), "multi-head latent attention (MLA)"),
    **dict.fromkeys(
        ("mamba", "mamba2", "falcon_mamba", "bamba", "jamba", "zamba", "zamba2", "nemotron_h"), "Mamba layers"
    ),
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_text", "olmo_hybrid"), "DeltaNet layers"),
    **dict.fromkeys(("lfm2", "lfm2_moe"), "short convolutions"),
    **dict.fromkeys(("rwkv", "rwkv7", "xlstm", "recurrent_gemma"), "recurrent layers"),
    **dict.fromkeys(("gemma3", "gemma3n", "gemma4", "mistral3", "llama4", "mllama", "llava", "llava_next"), _VISION),
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "paligemma", "idefics3", "smolvlm", "phi4_multimodal"), _VISION
    ),
}
