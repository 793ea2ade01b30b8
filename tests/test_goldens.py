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
    about, config = ABOUT[name], random_models.CONFIGS[name]
    assert about["gap"] > 1e-3
    write(name, config, tmp_path)
    prompt = random_models.prompt(config, random_models.PROMPTS[-1], about["seed"])
    with LLM(tmp_path, device=device, kv_dtype="float32") as llm:
        assert llm.generate(prompt, max_tokens=24, ignore_eos=True).token_ids == about["greedy"]


@pytest.mark.parametrize("name", ["mqa", "head80", "all-biases", "deep-bf16"])
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


def scaled(**changes: Any) -> dict[str, Any]:
    return {"rope_scaling": random_models.LLAMA3 | changes}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gqa", {"rope_theta": 10500.0}),
        ("gqa", {"rope_scaling": {"rope_type": "linear", "factor": 1.05}}),
        ("attention-bias", {"rms_norm_eps": 1.2e-3}),
        ("attention-bias", {"attention_bias": False}),
        ("all-biases", {"mlp_bias": False}),
        ("llama3", {"rope_scaling": None}),
        ("llama3", scaled(factor=9.0)),
        ("llama3", scaled(low_freq_factor=1.1)),
        ("llama3", scaled(high_freq_factor=4.4)),
        ("llama3", scaled(original_max_position_embeddings=512)),
        ("linear", {"rope_scaling": {"type": "linear", "factor": 4.1}}),
        ("mha-tied", {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8}),
        ("gqa", {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}),
        ("deep-bf16", {"rms_norm_eps": 1e-3}),
        ("mistral", {"rope_theta": 1050000.0}),
        ("qwen2", {"rms_norm_eps": 3e-5}),
        ("qwen2", {"rope_theta": 10500.0}),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else v,
)
def test_the_tolerance_detects_every_config_field(
    name: str, changes: dict[str, Any], device: gpu.Device, tmp_path: Path
) -> None:
    """Changing a single config field exceeds the tolerance, so the goldens reveal a field that is not read."""
    assert error(name, random_models.CONFIGS[name] | changes, device, tmp_path, lengths=(600,)) > 2 * BAR


REFERENCE = json.loads((HERE / "reference_keys.json").read_text())["architectures"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_reference_key_is_handled(name: str) -> None:
    """Each key is read, refused unless neutral, or known to have no effect. Defaults match the reference."""
    row, keys = ARCHITECTURES[name], REFERENCE[name]
    known = {*REQUIRED, *row.defaults, *row.neutral, *WITHOUT_EFFECT}
    assert not keys.keys() - known
    for key in ("rms_norm_eps", "tie_word_embeddings", "max_position_embeddings", "hidden_act", "sliding_window"):
        if key in row.defaults:
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
