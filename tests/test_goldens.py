"""Random models against logits that transformers computed (scripts/make_goldens.py)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
from safetensors.numpy import load_file

from llamagpu import LLM, gpu
from llamagpu.model import parse_config
from llamagpu.model.architectures import ARCHITECTURES, REQUIRED, WITHOUT_EFFECT

HERE = Path(__file__).parent
GOLDENS = load_file(HERE / "goldens.safetensors")
ABOUT = json.loads((HERE / "goldens.json").read_text())["models"]
BAR = 5e-5
QUICK = ("qwen3", "gemma3", "olmo2")  # the architectures of the usual loop, beside Llama


def some(names: Iterable[str], *quick: str) -> list[Any]:
    """Parameters for all names. Those not in ``quick`` are marked slow."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


def write(name: str, config: dict[str, Any], folder: Path) -> None:
    """Write the golden's model under a config, which may switch biases off."""
    about, golden = ABOUT[name], random_models.CONFIGS[name]
    weights = random_models.tensors(golden, about["seed"], about["gain"])
    for key, part in (("attention_bias", "self_attn"), ("mlp_bias", "mlp"), ("use_bias", "_proj")):
        if golden.get(key) and not config.get(key):
            weights = {k: v for k, v in weights.items() if not (part in k and k.endswith("_proj.bias"))}
    random_models.write_model(folder, config, weights)


def error(
    name: str, config: dict[str, Any], device: gpu.Device, folder: Path, lengths=random_models.PROMPTS, **options: Any
) -> float:
    """The largest error over the golden's prompts, in units of max(1, max|logit|)."""
    about, golden = ABOUT[name], random_models.CONFIGS[name]
    columns, original = random_models.kept_columns(golden), config.get("original_max_position_embeddings", 0)

    def one(llm: LLM, length: int) -> float:
        got = llm.logits(random_models.prompt(golden, length, about["seed"]))[-random_models.LAST :]
        return float(np.abs(got[:, columns] - GOLDENS[f"{name}.{length}"]).max()) / max(1.0, about["max_logit"])

    write(name, config, folder)
    worst = 0.0
    for context in dict.fromkeys(
        original if n <= original else None for n in lengths
    ):  # longrope has two sets of angles
        with LLM(folder, device=device, kv_dtype="float32", context=context, **options) as llm:
            worst = max(worst, *(one(llm, n) for n in lengths if (n <= original) == (context is not None)))
    return worst


@pytest.mark.parametrize(
    "name",
    some(
        random_models.CONFIGS, "mqa", "gqa", "head80", "all-biases", "llama3", "deep-bf16", "qwen2", "mistral", *QUICK
    ),
)
def test_logits_match_transformers(name: str, device: gpu.Device, tmp_path: Path) -> None:
    assert ABOUT[name]["max_logit"] >= 5
    worst = error(name, random_models.CONFIGS[name], device, tmp_path)
    print(f"{name}: {worst:.1e}")
    assert worst <= BAR


@pytest.mark.parametrize("name", some(random_models.CONFIGS, "mqa", *QUICK))
def test_greedy_tokens_match_transformers(name: str, device: gpu.Device, tmp_path: Path) -> None:
    """24 greedy tokens after a prompt of 600, which is longer than every window; the reference's gap between best and
    second logit is stated."""
    golden, config = ABOUT[name]["greedy"], random_models.CONFIGS[name]
    assert golden["gap"] > 1e-3
    write(name, config, tmp_path)
    prompt = random_models.prompt(config, random_models.PROMPTS[-1], golden["prompt_seed"])
    with LLM(tmp_path, device=device, kv_dtype="float32") as llm:
        assert llm.generate(prompt, max_tokens=24, ignore_eos=True).token_ids == golden["tokens"]


@pytest.mark.parametrize("name", some(random_models.CONFIGS, "mqa", "head80", "all-biases", "deep-bf16"))
def test_logits_match_unfused(name: str, device: gpu.Device, tmp_path: Path) -> None:
    assert error(name, random_models.CONFIGS[name], device, tmp_path, fused=False) <= BAR


@pytest.mark.parametrize("name", some(random_models.CONFIGS, "mqa", "head80", "all-biases"))
def test_decode_matches_prefill(name: str, device: gpu.Device, tmp_path: Path) -> None:
    """Log-probabilities of fused decode steps match the logits of an unfused prefill."""
    about, config = ABOUT[name], random_models.CONFIGS[name]
    random_models.write_model(tmp_path, config, random_models.tensors(config, about["seed"], about["gain"]))
    prompt = random_models.prompt(config, 31, about["seed"])
    with LLM(tmp_path, device=device, kv_dtype="float32") as llm:
        result = llm.generate(prompt, max_tokens=4, logprobs=3, ignore_eos=True)
    with LLM(tmp_path, device=device, kv_dtype="float32", fused=False) as llm:
        rows = llm.logits([*prompt, *result.token_ids])[len(prompt) - 1 : -1].astype(np.float64)
    expected = rows - rows.max(axis=1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
    for token, row in zip(result.logprobs or [], expected, strict=True):
        for found, logprob in token.top:
            assert abs(logprob - row[found]) <= 3 * BAR * max(1.0, about["max_logit"])


@pytest.mark.slow
@pytest.mark.parametrize("tuning", gpu.variants(frozenset(), 0), ids=lambda t: f"{t.matvec}-{t.matmul}-{t.order}")
@pytest.mark.parametrize("name", ["mqa", "head80", "all-biases"])
def test_logits_match_in_other_variants(name: str, tuning: gpu.Tuning, device: gpu.Device, tmp_path: Path) -> None:
    with device.using(tuning):
        assert error(name, random_models.CONFIGS[name], device, tmp_path) <= BAR


def rope(name: str, **changes: Any) -> tuple[str, dict[str, Any]]:
    """A golden's name, and changes of its rope parameters in either form."""
    config = random_models.CONFIGS[name]
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    return name, {key: config[key] | changes}


_GEMMA3 = random_models.CONFIGS["gemma3-new-form"]["rope_parameters"]
_SHORT, _LONG = (random_models.CONFIGS["phi3-longrope"]["rope_scaling"][f"{kind}_factor"] for kind in ("short", "long"))
_FULL, _SLIDING = "full_attention", "sliding_attention"
SENSITIVITY = [
    ("gqa", {"rope_theta": 10500.0}),
    ("gqa", {"rope_scaling": {"rope_type": "linear", "factor": 1.05}}),
    ("attention-bias", {"rms_norm_eps": 1.2e-3}),
    ("attention-bias", {"attention_bias": False}),
    ("all-biases", {"mlp_bias": False}),
    ("llama3", {"rope_scaling": None}),
    rope("llama3", factor=9.0),
    rope("llama3", low_freq_factor=1.1),
    rope("llama3", high_freq_factor=4.4),
    rope("llama3", original_max_position_embeddings=512),
    rope("linear", factor=4.1),
    ("mha-tied", {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8}),
    ("gqa", {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}),
    ("gqa", {"hidden_act": "gelu_pytorch_tanh"}),
    ("deep-bf16", {"rms_norm_eps": 1e-3}),
    ("mistral", {"rope_theta": 1050000.0}),
    ("qwen2", {"rope_theta": 10500.0}),
    rope("yarn", factor=4.2),
    rope("yarn", original_max_position_embeddings=400),
    rope("yarn", attention_factor=1.15),
    rope("yarn-mscale", mscale=1.1),
    rope("yarn-mscale", mscale_all_dim=0.6),
    rope("yarn-mscale", beta_fast=4.0),
    rope("yarn-mscale", beta_slow=2.0),
    rope("yarn-mscale", truncate=False),
    ("mistral-window", {"sliding_window": 38}),
    ("mistral-window", {"sliding_window": None}),
    ("ministral", {"sliding_window": 105}),
    ("ministral", {"layer_types": [_SLIDING, _SLIDING, _FULL]}),
    rope("ministral3", llama_4_scaling_beta=0.41),
    rope("ministral3", original_max_position_embeddings=150),
    ("ministral3", {"sliding_window": 300}),
    ("qwen2-window", {"use_sliding_window": False}),
    ("qwen2-window", {"max_window_layers": 2}),
    ("qwen2-window", {"sliding_window": 305}),
    ("qwen3", {"rope_theta": 10500.0}),
    ("qwen3-yarn", {"attention_bias": False}),
    ("qwen3-yarn", {"use_sliding_window": False}),
    ("qwen3-yarn", {"sliding_window": 275}),
    ("qwen3-yarn", {"max_window_layers": 2}),
    ("qwen3-yarn", {"layer_types": [_SLIDING, _FULL, _SLIDING]}),
    ("qwen2-window", {"layer_types": [_SLIDING, _FULL, _SLIDING]}),
    ("smollm3-window", {"layer_types": [_SLIDING, _FULL, _FULL]}),
    ("smollm3-window", {"attention_bias": False}),
    ("granite", {"attention_bias": False}),
    ("granite", {"mlp_bias": False}),
    ("granite-nope", {"attention_bias": False}),
    *(
        ("granite-hybrid", {key: random_models.CONFIGS["granite-hybrid"][key] * 1.02})
        for key in ("embedding_multiplier", "residual_multiplier", "logits_scaling")
    ),
    ("gemma", {"attention_bias": False}),
    ("gemma2", {"attention_bias": False}),
    ("gemma3", {"final_logit_softcapping": 21.0}),
    ("gemma3", {"hidden_activation": "silu"}),
    ("exaone4", {"layer_types": [_FULL, _SLIDING, _SLIDING, _SLIDING]}),
    ("nanochat", {"attention_bias": False}),
    ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}),
    ("smollm3", {"rope_theta": 2100000.0}),
    ("smollm3-window", {"no_rope_layer_interval": 3}),
    ("smollm3-window", {"sliding_window": 66}),
    ("smollm3-window", {"use_sliding_window": False}),
    ("smollm3-window", {"mlp_bias": False}),
    *(
        ("granite", {key: random_models.CONFIGS["granite"][key] * 1.02})
        for key in ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
    ),
    ("granite-hybrid", {"position_embedding_type": "nope"}),
    ("granite-nope", {"position_embedding_type": "rope"}),
    ("granite-nope", {"attention_multiplier": 0.11}),
    ("olmo2-gqa", {"attention_bias": False}),
    ("phi3", {"sliding_window": 66}),
    ("phi3-longrope", {"original_max_position_embeddings": 300}),
    ("phi3-longrope", {"max_position_embeddings": 800}),
    rope("phi3-longrope", long_factor=[_LONG[0] * 1.05, *_LONG[1:]]),
    rope("phi3-longrope", attention_factor=1.2),
    rope("phi3-longrope", factor=3.0),
    (
        "phi3-longrope",
        {
            "partial_rotary_factor": 0.5,
            "rope_scaling": {"type": "su", "short_factor": _SHORT[:8]} | {"long_factor": _LONG[:8]},
        },
    ),
    ("gemma", {"hidden_act": "silu"}),
    ("gemma2", {"query_pre_attn_scalar": 25}),
    ("gemma2", {"final_logit_softcapping": 12.5}),
    ("gemma2", {"attn_logit_softcapping": 3.3}),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma2", {"sliding_window": 52}),
    ("gemma2", {"layer_types": [_FULL, _SLIDING]}),
    ("gemma2", {"hidden_activation": "silu"}),
    ("gemma3", {"sliding_window_pattern": 3}),
    ("gemma3", {"sliding_window": 265}),
    ("gemma3", {"rope_local_base_freq": 5500.0}),
    ("gemma3", {"rope_theta": 1100000.0}),
    ("gemma3", {"query_pre_attn_scalar": 25}),
    rope("gemma3", factor=8.4),
    rope("gemma3-new-form", **{_SLIDING: {"rope_theta": 10000.0}}),
    rope("gemma3-new-form", **{_FULL: _GEMMA3[_FULL] | {"factor": 4.2}}),
    ("gemma3-new-form", {"layer_types": [_FULL, _SLIDING]}),
    ("gemma3-new-form", {"attention_bias": False}),
    ("ernie4_5", {"use_bias": False}),
    ("ernie4_5", {"rope_theta": 520000.0}),
    ("exaone4", {"sliding_window": 42}),
    ("exaone4", {"sliding_window_pattern": "LG"}),
    rope("exaone4", factor=9.0),
    ("exaone4-full", {"rope_theta": 10500.0}),
    rope("hunyuan", alpha=1100.0),
    ("hunyuan", {"attention_bias": False}),
    ("nanochat", {"final_logit_softcapping": 16.0}),
    ("nanochat", {"hidden_act": "silu"}),
    ("nanochat", {"rope_theta": 10500.0}),
    ("granite", {"rope_theta": 10500.0}),
    ("granite-hybrid", {"rope_theta": 10500.0}),
    ("olmo2", {"rope_theta": 10500.0}),
    ("phi3", {"rope_theta": 10500.0}),
    ("gemma", {"rope_theta": 10500.0}),
    ("gemma2", {"rope_theta": 10500.0}),
    ("ministral", {"rope_theta": 10500.0}),
]
FIRST = {config["model_type"]: name for name, config in reversed(random_models.CONFIGS.items())}
SENSITIVITY += [
    (name, {"rms_norm_eps": 1.0 if "embedding_multiplier" in random_models.CONFIGS[name] else 1e-2})
    for model_type, name in FIRST.items()
    if model_type != "llama"
]
# Keys that state no arithmetic or whose change alone gives other shapes; and layer types where there is but one.
NOT_SENSITIVE = {"bos_token_id", "eos_token_id", "head_dim", "max_position_embeddings", "num_key_value_heads"} | {
    "tie_word_embeddings",
    "shared_intermediate_size",
    *("rope_theta", "rope_scaling", "rope_parameters", "hidden_act"),  # one of the first three is tested
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param(n, c, id=f"{n}-{'-'.join(c)}-{i}", marks=[pytest.mark.slow] if i > 17 else [])
        for i, (n, c) in enumerate(SENSITIVITY)
    ],
)
def test_the_tolerance_detects_every_config_field(
    name: str, changes: dict[str, Any], device: gpu.Device, tmp_path: Path
) -> None:
    """Changing a single config field exceeds the tolerance, so the goldens reveal a field that is not read."""
    assert error(name, random_models.CONFIGS[name] | changes, device, tmp_path, lengths=(600,)) > 2 * BAR


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sensitivity_covers_every_key(name: str) -> None:
    """Every key that a row reads is changed alone in one of its models."""
    changes = [c for n, c in SENSITIVITY if random_models.CONFIGS[n]["model_type"] == name]
    changed = {key for c in changes for key in c}
    assert changed & {"rope_theta", "rope_scaling", "rope_parameters"}
    unchanged = ARCHITECTURES[name].defaults.keys() - NOT_SENSITIVE - changed
    assert unchanged <= ({"layer_types"} if name == "granitemoehybrid" else set())


def test_the_tolerance_detects_the_short_factors(device: gpu.Device, tmp_path: Path) -> None:
    """longrope reads them up to its original context."""
    name, changes = rope("phi3-longrope", short_factor=[_SHORT[0] * 1.05, *_SHORT[1:]])
    assert error(name, random_models.CONFIGS[name] | changes, device, tmp_path, lengths=(31,)) > 2 * BAR


REFERENCE = json.loads((HERE / "reference_keys.json").read_text())["architectures"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_reference_key_is_handled(name: str) -> None:
    """Each key is read, refused unless neutral, or known to have no effect. Defaults match the reference."""
    row, keys = ARCHITECTURES[name], REFERENCE[name]
    known = {*REQUIRED, *row.defaults, *row.neutral, *WITHOUT_EFFECT}
    assert not keys.keys() - known
    for key in ("rms_norm_eps", "tie_word_embeddings", "max_position_embeddings", "hidden_act", "sliding_window"):
        if key in row.defaults and (key != "sliding_window" or "use_sliding_window" not in keys):
            assert row.defaults[key] == keys[key], key
    for key in ("attention_bias", "mlp_bias", "num_key_value_heads"):
        if row.defaults.get(key) is not None:
            assert row.defaults[key] == keys[key], key


def test_unknown_keys_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """The log names them; transformers does not read them either."""
    parse_config(random_models.config(is_llama_config=True, final_logit_softcapping=30.0))
    (line,) = [r.getMessage() for r in caplog.records]
    assert "final_logit_softcapping, is_llama_config" in line
    caplog.clear()
    for config in random_models.CONFIGS.values():
        parse_config(config)
    assert not caplog.records


def test_goldens_are_small() -> None:
    assert sum(p.stat().st_size for p in HERE.glob("goldens.*")) < 2_000_000
