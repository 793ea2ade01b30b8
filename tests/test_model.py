"""Configs, checkpoints and tokenizers: how they are read, and the errors of broken ones."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
from safetensors.numpy import load_file, save_file

from llamagpu import LLM, gpu
from llamagpu.errors import LlamaGPUError, ModelNotFoundError, OutOfMemoryError, UnsupportedModelError, UsageError
from llamagpu.model import find_model, parse_config, prepare, prepare_model
from llamagpu.model.cache import kv_bytes
from llamagpu.model.rope_table import inverse_frequencies, rope_table

CONFIG = random_models.config(rope_scaling=random_models.LLAMA3, rope_theta=500000.0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small random model directory, which tests may damage."""
    return random_models.write_model(tmp_path / "model", CONFIG, random_models.tensors(CONFIG, 1))


def edit(model: Path, **changes: Any) -> None:
    raw = json.loads((model / "config.json").read_text()) | changes
    (model / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))


def error_of(model: Path, device: gpu.Device, **options: Any) -> LlamaGPUError:
    """The error of loading a model. Loading must leave nothing on the device."""
    held = device.ledger.held()
    with pytest.raises(LlamaGPUError) as caught:
        LLM(model, device=device, **options)
    assert device.ledger.held() == held
    assert caught.value.what
    assert not str(caught.value).startswith("(")
    return caught.value


# --- config.json ---------------------------------------------------------------------------


def test_both_forms_of_config_parse_alike() -> None:
    old = random_models.config(rope_theta=500000.0, rope_scaling=random_models.LLAMA3)
    new = random_models.config(rope_parameters=random_models.LLAMA3 | {"rope_theta": 500000.0}, dtype="float32")
    for key in ("rope_theta", "rope_scaling", "torch_dtype"):
        del new[key]
    assert parse_config(old) == parse_config(new)
    legacy = random_models.config(rope_scaling={"type": "linear", "factor": 2.0})
    assert parse_config(legacy).ropes[0].rope_type == "linear"


def test_defaults_and_generation_config() -> None:
    raw = random_models.config(eos_token_id=2)
    for key in ("num_key_value_heads", "head_dim", "rms_norm_eps", "attention_bias", "tie_word_embeddings"):
        del raw[key]
    c = parse_config(raw, {"eos_token_id": [3, 4], "bos_token_id": None})
    assert (c.num_key_value_heads, c.head_dim, c.rms_norm_eps) == (4, 16, 1e-6)
    assert c.eos_token_id == (3, 4)
    assert not c.layers[0].qkv_bias
    assert not c.tie_word_embeddings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt_oss"}, "architecture 'gpt_oss' is not supported"),
        ({"model_type": "absent"}, "architecture None"),
        ({"hidden_act": "gelu"}, r"activation 'gelu' \(hidden_act\)"),
        ({"model_type": "mixtral"}, "architecture 'mixtral' is not supported"),
        ({"rope_scaling": {"rope_type": "proportional"}}, "rope_type 'proportional' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'yarn' needs factor"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "needs short_factor, a list of 8"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}}, "mrope_section"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "needs low_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "factor is -1"),
        ({"rope_scaling": "linear"}, "must be an object"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": None}, "does not divide into 5 heads"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; it must be a whole number from 1 to 1,024"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"vocab_size": "absent"}, "vocab_size is missing"),
        ({"head_dim": 18}, "head_dim 18 is not a multiple of 4"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes'"),
        ({"eos_token_id": 105}, "eos_token_id is 105; token ids run from 0 to 104"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0; it must be a whole number from 1"),
        ({"model_type": "mistral", "sliding_window": "wide"}, "sliding_window is 'wide'"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"]}, "it must be a list of 2 layer types"),
        ({"model_type": "qwen2", "layer_types": ["linear_attention"] * 2}, "Layers of the type 'linear_attention'"),
        (
            {"model_type": "ministral", "sliding_window": None, "layer_types": ["sliding_attention"] * 2},
            "layer 0 has a sliding window, and sliding_window is missing",
        ),
        ({"model_type": "granitemoehybrid"}, "lacks num_local_experts"),
        ({"model_type": "granitemoehybrid", "num_local_experts": 0}, "layer_types is missing"),
        (
            {"model_type": "granitemoehybrid", "num_local_experts": 0, "layer_types": ["mamba", "attention"]},
            "Layers of the type 'mamba'",
        ),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers is"),
        ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling is 0"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "sets attn_logit_softcapping to 50.0"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": ["llama"]}, "architecture"),
        ({"partial_rotary_factor": 0.5}, "sets partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "sets partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization 'gptq' is not supported"),
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, "'mxfp4' is not supported"),
        ({"quantization": {"bits": 3, "group_size": 64}}, "bits 3"),
        ({"quantization": {"bits": 4, "group_size": 48}}, "group_size 48"),
        ({"quantization": {"bits": 4}}, "group_size None"),
    ],
)
def test_unsupported_configs_are_refused(
    model: Path, device: gpu.Device, changes: dict[str, Any], message: str
) -> None:
    edit(model, **changes)
    with pytest.raises(UnsupportedModelError, match=message):
        raise error_of(model, device)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": ' * 5000, "\udcff"])
def test_config_that_is_not_json(model: Path, device: gpu.Device, text: str) -> None:
    (model / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert error_of(model, device).exit_code == 4


# --- finding a model -----------------------------------------------------------------------


def test_model_not_found(device: gpu.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for missing, message in (
        (tmp_path / "nowhere", "no model directory"),
        ("./nowhere", "no model directory"),
        ("someone/some-model", "could not be fetched"),
        (tmp_path, r"no config\.json"),
        ("", "is not a model"),
        (5, "is not a model"),
    ):
        error = error_of(missing, device)  # type: ignore[arg-type]
        assert error.exit_code == (2 if missing in ("", 5) else 3)
        with pytest.raises((ModelNotFoundError, UsageError), match=message):
            raise error


def test_find_model(model: Path) -> None:
    with pytest.raises(UsageError, match="no revision"):
        find_model(model, "main")
    with pytest.raises(UsageError, match="no revision"):
        find_model(None, "main")
    with pytest.raises(UsageError, match="exclude one another"):
        prepare_model(None, "smollm2-135m", revision="main")
    assert find_model(model) == model
    assert find_model(model / "model.safetensors") == model
    assert (find_model(None) / "config.json").exists()
    with pytest.raises(ModelNotFoundError, match="is not a model"):
        find_model(model / "config.json")


# --- weights -------------------------------------------------------------------------------


def rewrite_header(path: Path, change: Any) -> None:
    """Change the header of a safetensors file and keep its data."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    text = change(raw[8 : 8 + length].decode())
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + raw[8 + length :])


def header_edit(change: Any) -> Any:
    def edit(text: str) -> str:
        header = json.loads(text)
        change(header)
        return json.dumps(header)

    return edit


def overlap(header: dict[str, Any]) -> None:
    a, b = "model.norm.weight", "model.layers.0.input_layernorm.weight"
    header[a]["data_offsets"] = header[b]["data_offsets"]


def beyond(header: dict[str, Any]) -> None:
    entry = header["model.norm.weight"]
    entry["data_offsets"] = [n + 10**9 for n in entry["data_offsets"]]


def negative(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["data_offsets"] = [-256, 0]


def wrong_size(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["shape"] = [63]


def unknown_dtype(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["dtype"] = "F3"


def no_shape(header: dict[str, Any]) -> None:
    del header["model.norm.weight"]["shape"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (header_edit(overlap), "overlap"),
        (header_edit(beyond), "truncated"),
        (header_edit(negative), "the entry of .* is not valid"),
        (header_edit(wrong_size), "needs another number"),
        (header_edit(unknown_dtype), "unknown dtype 'F3'"),
        (header_edit(no_shape), "the entry of .* is not valid"),
        (lambda text: "{" + text.strip()[1:-1] + ', "model.norm.weight": {}}', "occurs twice"),
        (lambda text: text.rstrip()[:-1], "header cannot be read"),
        (lambda text: "[1]", "header cannot be read"),
    ],
)
def test_broken_headers(model: Path, device: gpu.Device, change: Any, message: str) -> None:
    rewrite_header(model / "model.safetensors", change)
    with pytest.raises(UnsupportedModelError, match=message):
        raise error_of(model, device)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "only 0 bytes"),
        (b"1234", "only 4 bytes"),
        (struct.pack("<Q", 2) + b"{}xx", "the file at 12"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
        (struct.pack("<Q", 2**60) + b"{}", "header claims"),
    ],
)
def test_files_that_are_not_weights(model: Path, device: gpu.Device, content: bytes, message: str) -> None:
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=message):
        raise error_of(model, device)


def test_truncated_weights(model: Path, device: gpu.Device) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UnsupportedModelError, match="truncated"):
        raise error_of(model, device)


def shard(model: Path) -> dict[str, Any]:
    """Split a model into two shards, and return their index."""
    weights = load_file(model / "model.safetensors")
    names = sorted(weights)
    index: dict[str, Any] = {"metadata": {}, "weight_map": {}}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        name = f"model-{i:05}-of-00002.safetensors"
        save_file({n: weights[n] for n in part}, model / name)
        index["weight_map"] |= dict.fromkeys(part, name)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards_load_as_one_model(model: Path, device: gpu.Device) -> None:
    with LLM(model, device=device) as llm:
        expected = llm.logits([1, 2, 3])
    shard(model)
    with LLM(model, device=device) as llm:
        assert np.array_equal(llm.logits([1, 2, 3]), expected)


def test_broken_shards(model: Path, device: gpu.Device, tmp_path: Path) -> None:
    index = shard(model)
    path, second = model / "model.safetensors.index.json", model / "model-00002-of-00002.safetensors"
    outside = tmp_path / "outside.safetensors"
    shutil.copy(second, outside)
    for name in ("../outside.safetensors", str(outside), "..", "a\\b"):
        path.write_text(json.dumps({"weight_map": index["weight_map"] | {"model.norm.weight": name}}))
        with pytest.raises(UnsupportedModelError, match="not a file of this directory"):
            raise error_of(model, device)
    path.write_text(json.dumps({"weight_map": dict.fromkeys(index["weight_map"], second.name)}))
    with pytest.raises(UnsupportedModelError, match="it lacks"):
        raise error_of(model, device)
    path.write_text("{}")
    with pytest.raises(UnsupportedModelError, match="no weight_map"):
        raise error_of(model, device)
    path.write_text(json.dumps(index))
    second.unlink()
    error = error_of(model, device)
    assert error.exit_code == 3
    assert "model-00002-of-00002.safetensors is missing" in error.what


def change_weights(model: Path, **changes: np.ndarray | None) -> None:
    weights = load_file(model / "model.safetensors")
    for name, value in changes.items():
        name = name.replace("__", ".")
        weights.pop(name, None)
        if value is not None:
            weights[name] = value
    save_file(weights, model / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model__norm__weight", None, r"no tensor model\.norm\.weight"),
        ("model__norm__weight", np.ones(65, "f4"), r"shape \[65\], not \[64\]"),
        ("model__layers__1__mlp__up_proj__weight", np.ones((64, 97), "f4"), r"shape \[64, 97\], not \[97, 64\]"),
        ("model__norm__weight", np.ones(64, "f8"), "dtype F64"),
        ("lm_head__weight", None, r"no tensor lm_head\.weight"),
        ("model__layers__0__self_attn__q_proj__bias", np.ones(64, "f4"), r"q_proj\.bias that config\.json"),
        ("model__layers__0__self_attn__q_norm__weight", np.ones(16, "f4"), r"q_norm\.weight that config\.json"),
    ],
)
def test_tensors_that_do_not_fit(
    model: Path, device: gpu.Device, name: str, value: np.ndarray | None, message: str
) -> None:
    change_weights(model, **{name: value})
    with pytest.raises(UnsupportedModelError, match=message):
        raise error_of(model, device)


def test_known_extras_are_ignored(model: Path, device: gpu.Device) -> None:
    change_weights(model, model__layers__0__self_attn__rotary_emb__inv_freq=np.ones(8, "f4"))
    LLM(model, device=device).close()


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight", "both"])
def test_tied_tensors_under_either_name(tmp_path: Path, device: gpu.Device, kept: str) -> None:
    c = random_models.config(tie_word_embeddings=True)
    weights = random_models.tensors(c, 3)
    random_models.write_model(tmp_path / "a", c, weights)
    embed = weights["model.embed_tokens.weight"]
    if kept != "both":
        del weights["model.embed_tokens.weight"]
    weights = weights | ({"lm_head.weight": embed} if kept == "both" else {kept: embed})
    random_models.write_model(tmp_path / "b", c, weights)
    with LLM(tmp_path / "a", device=device) as a, LLM(tmp_path / "b", device=device) as b:
        assert np.array_equal(a.logits([1, 2, 3]), b.logits([1, 2, 3]))


def test_base_model_names(tmp_path: Path, device: gpu.Device) -> None:
    """Checkpoints of the base model lack the prefix ``model.``."""
    c = random_models.config(tie_word_embeddings=True)
    weights = random_models.tensors(c, 3)
    random_models.write_model(tmp_path / "a", c, weights)
    random_models.write_model(tmp_path / "b", c, {k.removeprefix("model."): v for k, v in weights.items()})
    with LLM(tmp_path / "a", device=device) as a, LLM(tmp_path / "b", device=device) as b:
        assert np.array_equal(a.logits([1, 2, 3]), b.logits([1, 2, 3]))


def test_dtypes_on_load(model: Path, device: gpu.Device) -> None:
    ids = list(range(20))
    with LLM(model, device=device) as llm:
        exact, size = llm.logits(ids), llm.sizes.weights
    for dtype, most in (("float16", 2e-2), ("bfloat16", 1e-1)):
        with LLM(model, device=device, dtype=dtype, kv_dtype="float32") as llm:
            assert llm.sizes.weights < 0.6 * size
            error = np.abs(llm.logits(ids) - exact).max() / np.abs(exact).max()
            assert 1e-5 < error < most
    with LLM(model, device=device, kv_dtype="float16") as llm:
        assert 1e-7 < np.abs(llm.logits(ids) - exact).max() / np.abs(exact).max() < 2e-2
    for bad in ({"dtype": "int3"}, {"kv_dtype": "bfloat16"}):
        assert error_of(model, device, **bad).exit_code == 2


def test_float16_overflow_is_refused(model: Path, device: gpu.Device) -> None:
    change_weights(model, lm_head__weight=np.full((105, 64), 1e5, "f4"))
    with pytest.raises(UnsupportedModelError, match="beyond float16"):
        raise error_of(model, device, dtype="float16")


def test_models_beyond_the_memory_limit_are_refused_with_numbers(model: Path) -> None:
    prepared = prepare(model)
    with gpu.open() as device:
        weights = prepared.layout.held(woven=device.tuning.order == "woven")
    with gpu.open(memory_limit=weights // 2) as small:
        error = error_of(model, small)
        assert isinstance(error, OutOfMemoryError)
        assert error.exit_code == 6
        assert f"Weights {weights / 1e6:,.1f} MB" in error.why
    with gpu.open(memory_limit=weights + 600_000) as tight:
        with LLM(model, device=tight) as llm:
            assert 16 <= llm.context < 640
            fits = llm.context
        error = error_of(model, tight, context=640)
        assert f"--context {fits}" in error.hint
    with LLM(model, context=32) as whole:
        sizes = whole.sizes
        needed = sizes.weights + sizes.activations + kv_bytes(whole.config, 32, "f32")
    with gpu.open(memory_limit=needed - weights // 4) as half:
        assert "float16" in error_of(model, half, context=32).hint
    with gpu.open(memory_limit=weights // 4) as nothing:
        assert "smaller model" in error_of(model, nothing).hint


def test_context_argument(model: Path, device: gpu.Device) -> None:
    for bad in (0, -1, 641):
        assert isinstance(error_of(model, device, context=bad), UsageError)
    with LLM(model, device=device, context=33) as llm:
        assert llm.context == 33
    with LLM(model, device=device) as llm:
        assert llm.context == 640


# --- tokenizer -----------------------------------------------------------------------------


def test_tokenizer_problems(model: Path, device: gpu.Device) -> None:
    path = model / "tokenizer.json"
    text = path.read_text()
    path.write_text("{}")
    assert error_of(model, device).exit_code == 4
    random_models.write_tokenizer(model, 106)
    with pytest.raises(UnsupportedModelError, match="ids up to 105, the model only 105"):
        raise error_of(model, device)
    path.unlink()
    assert error_of(model, device).exit_code == 3
    path.write_text(text)
    (model / "tokenizer_config.json").write_text("{")
    assert error_of(model, device).exit_code == 4


# --- rotary tables -------------------------------------------------------------------------


def test_rope_tables() -> None:
    (rope,) = parse_config(CONFIG).ropes
    assert rope is not None
    inverse = inverse_frequencies(rope, 50)
    plain = 500000.0 ** (-np.arange(0, 16, 2) / 16)
    wavelength = 2 * np.pi / plain
    assert np.allclose(inverse[wavelength < 256 / 4], plain[wavelength < 256 / 4], rtol=1e-6)
    assert np.allclose(inverse[wavelength > 256], plain[wavelength > 256] / 8, rtol=1e-6)
    table = rope_table(rope, 16, 50).reshape(50, 8, 2)
    assert np.allclose(np.hypot(table[..., 0], table[..., 1]), 1, atol=1e-6)
    assert np.array_equal(table[0], np.tile([1.0, 0.0], (8, 1)))
    assert np.allclose(table[7, :, 1], np.sin(7 * inverse.astype("f8")), atol=1e-6)
