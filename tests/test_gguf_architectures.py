"""GGUF architectures against llama.cpp's converter: configs, tensor names and orders of rows (goldens_gguf.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest

from llamagpu.errors import UnsupportedModelError
from llamagpu.model.architectures import ARCHITECTURES
from llamagpu.model.config import Config, parse_config
from llamagpu.model.sources.gguf import open_gguf
from llamagpu.model.sources.gguf.architectures import FAMILIES

GOLDENS = json.loads((Path(__file__).parent / "goldens_gguf.json").read_text())
# Keys of config.json that change no result, that files do not hold, or that hold the same as another key.
NOT_COMPARED = frozenset(
    (
        *("architectures", "attention_dropout", "bos_token_id", "dtype", "eos_token_id", "initializer_range"),
        *("pad_token_id", "pretraining_tp", "transformers_version", "use_cache", "embd_pdrop", "resid_pdrop"),
        *("max_window_layers", "no_rope_layer_interval", "sliding_window_pattern", "_sliding_window_pattern"),
        *("eod_token_id", "hidden_act", "hidden_activation", "use_bidirectional_attention"),
    )
)
# Neither the file nor llama.cpp knows these; their values here are the only ones that llama.cpp computes.
NEUTRAL = (None, False, "full_attention")


def write(folder: Path, name: str, **changes: Any) -> Path:
    """The golden's file: tensors hold the numbers of their rows."""
    golden = GOLDENS[name]
    tensors = {}
    for own, entry in golden["tensors"].items():
        shape = entry["shape"]
        if "values" in entry:
            data = np.array(entry["values"])
        else:
            rows = np.array(entry.get("rows", range(shape[0]))) + entry["plus"]
            data = np.broadcast_to(rows.reshape(-1, *[1] * (len(shape) - 1)), shape)
        tensors[own] = (np.ascontiguousarray(data, np.float32), "F32")
    metadata = {k: (kind, value) for k, (kind, value) in golden["metadata"].items()} | changes
    return gguf_files.write(folder / f"{name}.gguf", gguf_files.VOCABULARY | metadata, tensors)


@pytest.mark.parametrize("name", GOLDENS)
def test_configs_match_the_converted_models(tmp_path: Path, name: str) -> None:
    """Every key of the checkpoint's config.json comes back from the file, as far as it changes a result."""
    expected = GOLDENS[name]["config"]
    got = open_gguf(write(tmp_path, name)).config()
    # llama.cpp stores Mistral as llama, and its sliding window not at all.
    assert got["model_type"] == ("llama" if name == "mistral" else expected["model_type"])
    for key in sorted(expected.keys() - NOT_COMPARED - {"model_type", "rope_parameters", "head_dim"}):
        value = expected[key]
        if key not in got:
            assert value in NEUTRAL or all(v in NEUTRAL for v in value), (key, value)
        else:
            assert got[key] == value, key
    heads_of = expected["hidden_size"] // expected["num_attention_heads"]
    assert got["head_dim"] == (expected.get("head_dim") or heads_of)
    assert flat(got["rope_parameters"]) == pytest.approx(flat(expected["rope_parameters"]))
    if got["model_type"] in ARCHITECTURES:  # OLMo 3 has no row
        assert isinstance(parse_config(got), Config)


def flat(rope: dict[str, Any]) -> dict[str, Any]:
    """rope_parameters with the values of lists and of layer types under keys of their own."""
    out: dict[str, Any] = {}
    for key, value in rope.items():
        items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else None
        out |= {key: value} if items is None else {f"{key} {k}": v for k, v in items}
    return {k: v for k, v in out.items() if not (k == "partial_rotary_factor" and v == 1)}


@pytest.mark.parametrize("name", GOLDENS)
def test_rows_have_adjacent_pairs(tmp_path: Path, name: str) -> None:
    """Every tensor comes under its name in the checkpoint, with the checkpoint's rows in pairs."""
    golden = GOLDENS[name]
    source = open_gguf(write(tmp_path, name))
    config = source.config()
    if config["model_type"] not in ARCHITECTURES:
        pytest.skip(f"{config['model_type']} has no row")
    names = {e["name"] for e in golden["tensors"].values() if "name" in e}
    assert source.tensors().keys() == names
    for checkpoint in names:
        count = source.tensors()[checkpoint].shape[0]
        got = source.rows(checkpoint, np.arange(count))
        rows = got.reshape(count, -1)[:, 0].astype(int)
        assert list(rows) == list(expected_rows(checkpoint, count, config)), checkpoint


def expected_rows(name: str, count: int, config: dict[str, Any]) -> np.ndarray:
    """The checkpoint's rows with element i of the first half of a head's rotated part before element i of the second
    half. Ernie's pairs are adjacent in its checkpoints."""
    d, rows = config["head_dim"], np.arange(count)
    rotary = int(d * config["rope_parameters"].get("partial_rotary_factor", 1))
    rotated = any(part in name for part in ("q_proj", "k_proj", "q_norm", "k_norm", "query_layernorm", "key_layernorm"))
    paired = rows.copy()
    if count % d == 0:
        heads = paired.reshape(-1, d)
        heads[:, :rotary] = heads[:, :rotary].reshape(-1, 2, rotary // 2).swapaxes(1, 2).reshape(-1, rotary)
    if "qkv_proj" in name:
        kv = config["num_key_value_heads"] * d
        return np.concatenate([paired[: count - kv], rows[count - kv :]])
    return paired if rotated and config["model_type"] != "ernie4_5" else rows


def test_every_family_has_a_golden() -> None:
    covered = {g["metadata"]["general.architecture"][1] for g in GOLDENS.values()}
    assert FAMILIES.keys() - covered == {"granitehybrid"}


def test_an_attention_only_hybrid_is_a_granite(tmp_path: Path) -> None:
    """Older converters wrote Granite 4 without state-space layers as granitehybrid, with a list of K/V heads."""
    renamed = {k.replace("granite.", "granitehybrid."): v for k, v in GOLDENS["granite"]["metadata"].items()}
    golden = {**renamed, "general.architecture": ("STRING", "granitehybrid")}
    golden |= {"granitehybrid.ssm.inner_size": ("UINT32", 64), "granitehybrid.rope.scaling.finetuned": ("BOOL", True)}
    plain = open_gguf(write(tmp_path, "granite")).config()
    both = golden | {"granitehybrid.attention.head_count_kv": ("ARRAY", [2, 2])}
    assert open_gguf(write(tmp_path, "granite", **both)).config() == plain
    for changed, word in (
        ({"granitehybrid.attention.head_count_kv": ("ARRAY", [0, 0])}, "state-space"),
        ({"granitehybrid.attention.head_count_kv": ("ARRAY", [2, 0])}, "layers that differ"),
        ({"granitehybrid.rope.scaling.finetuned": ("BOOL", False)}, "without rotary"),
    ):
        with pytest.raises(UnsupportedModelError, match=word):
            open_gguf(write(tmp_path, "granite", **both | changed)).config()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"general.architecture": ("STRING", "mamba")}, "mamba.*not supported.*\n.*gemma3"),
        ({"llama.expert_count": ("UINT32", 8)}, "expert_count"),
        ({"llama.attention.sliding_window": ("UINT32", 512)}, "sliding_window"),
        ({"llama.attention.value_length": ("UINT32", 8)}, "value_length"),
        ({"llama.block_count": ("STRING", "two")}, "block_count"),
        ({"llama.attention.layer_norm_rms_epsilon": ("FLOAT32", float("nan"))}, "layer_norm_rms_epsilon"),
        ({"llama.rope.scaling.type": ("STRING", "ntk")}, "rope.scaling.type"),
        ({"llama.attention.causal": ("BOOL", False)}, "attention.causal"),
        ({"llama.feed_forward_length": ("ARRAY", [48, 64])}, "layers that differ"),
    ],
)
def test_values_that_change_the_arithmetic_are_refused(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UnsupportedModelError, match=word):
        open_gguf(write(tmp_path, "llama", **changes)).config()


def test_neutral_values_pass(tmp_path: Path) -> None:
    changes = {"llama.expert_count": ("UINT32", 0), "llama.feed_forward_length": ("ARRAY", [48, 48])}
    changes["llama.attention.causal"] = ("BOOL", True)
    assert open_gguf(write(tmp_path, "llama", **changes)).config()["intermediate_size"] == 48


def test_other_rotary_factors_keep_their_values(tmp_path: Path) -> None:
    """Factors that llama3 scaling does not give come in the general form."""
    golden = GOLDENS["llama"]["tensors"]["rope_freqs.weight"]
    kept = list(golden["values"])
    try:
        golden["values"] = [1.0, 1.5, *kept[2:]]
        rope = open_gguf(write(tmp_path, "llama")).config()["rope_parameters"]
    finally:
        golden["values"] = kept
    assert rope["rope_type"] == "longrope"
    assert rope["attention_factor"] == 1.0
    assert rope["short_factor"] == rope["long_factor"] == pytest.approx([1.0, 1.5, *kept[2:]])
