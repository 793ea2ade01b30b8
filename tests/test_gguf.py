"""GGUF models: tensor types held exactly, mixed types, split files, and the errors for files that are not supported."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
import random_models
from safetensors.numpy import save_file

from llamagpu import LLM
from llamagpu.cli.main import run
from llamagpu.errors import LlamaGPUError, ModelNotFoundError, UnsupportedModelError
from llamagpu.gpu import Affine, Device
from llamagpu.kernels.quantization import dequantize_rows, quantize_rows, widen_rows
from llamagpu.model import parse_config, prepare
from llamagpu.model.sources.gguf import open_gguf
from llamagpu.model.sources.gguf.blocks import BLOCKS, repack

# Rows are multiples of 256 columns, the block of the K types.
SIZES = random_models.config(
    hidden_size=256, intermediate_size=256, num_attention_heads=8, num_key_value_heads=2, head_dim=32, vocab_size=300
) | {"tie_word_embeddings": True}
RNG = np.random.default_rng(5)
BAR = 5e-5  # of the largest logit
# Types of Q4_K_M and its like: the most important tensors have more bits.
MIXED = {"attn_v": "Q6_K", "ffn_down": "Q6_K", "token_embd": "Q8_0", "attn_k": "Q5_0", "ffn_gate": "Q5_K"}


def model_tensors(kinds: dict[str, str], default: str, seed: int = 0) -> dict[str, tuple[np.ndarray, str]]:
    """Random tensors of SIZES, with types by the name of a tensor without its layer."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in gguf_files.llama_shapes(SIZES).items():
        dtype = kinds.get(name.removesuffix(".weight").split(".")[-1], default)
        if len(shape) == 1:
            out[name] = (rng.uniform(0.5, 1.5, shape).astype(np.float32), "F32")
        elif dtype in BLOCKS:
            out[name] = (gguf_files.blocks(rng, *shape, dtype, 0.15), dtype)
        else:
            wide = rng.standard_normal(shape).astype(np.float32) * np.float32(0.06)
            out[name] = (gguf.quantize(wide, gguf.GGMLQuantizationType[dtype]), dtype)
    return out


def write_pair(folder: Path, tensors: dict[str, tuple[np.ndarray, str]]) -> tuple[Path, Path]:
    """A GGUF file, and a directory with the same values in float32 by the package ``gguf``."""
    path = gguf_files.write(folder / "model.gguf", gguf_files.llama_metadata(SIZES), tensors)
    source = open_gguf(path)
    halves = {}
    for name, own in source.own_names.items():
        data, dtype = tensors[own]
        wide = data if dtype == "F32" else gguf_files.values(data, dtype)
        halves[name] = np.ascontiguousarray(_half_split(wide) if "q_proj" in name or "k_proj" in name else wide)
    (folder / "wide").mkdir()
    save_file(halves, folder / "wide" / "model.safetensors")
    (folder / "wide" / "config.json").write_text(json.dumps(SIZES))
    (folder / "wide" / "tokenizer.json").write_text(source.tokenizer_file())
    return path, folder / "wide"


def _half_split(values: np.ndarray) -> np.ndarray:
    """Rows with adjacent rotary pairs, in the order of Hugging Face checkpoints."""
    d = SIZES["head_dim"]
    return values.reshape(-1, d // 2, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def assert_same_logits(path: Path, wide: Path, device: Device) -> None:
    ids = random_models.prompt(SIZES, 40, 1)
    with LLM(path, device=device, kv_dtype="float32") as llm:
        got = llm.logits(ids)
        steps = llm.generate(ids, max_tokens=3).token_ids
    with LLM(wide, device=device, dtype="float32", kv_dtype="float32") as llm:
        expected = llm.logits(ids)
        assert llm.generate(ids, max_tokens=3).token_ids == steps
    assert np.abs(got - expected).max() <= BAR * np.abs(expected).max()


@pytest.mark.parametrize("size", [0.05, 1000.0])  # with and without subnormal scales
@pytest.mark.parametrize("dtype", BLOCKS)
def test_blocks_are_held_exactly(dtype: str, size: float) -> None:
    """Every bit pattern of a block: scale · q + bias in float32 is what the package ``gguf`` makes of it."""
    rows = gguf_files.blocks(np.random.default_rng(1), 64, 1024, dtype, size)
    expected = gguf_files.values(rows, dtype)
    affine = BLOCKS[dtype].affine
    stored = repack(rows, dtype)
    assert (dequantize_rows(stored, affine).astype(np.float32) == expected).all()
    packed, scales, biases = stored
    q = (
        packed.view(np.uint8)
        if affine.bits == 8
        else np.stack([packed.view(np.uint8) & 15, packed.view(np.uint8) >> 4], -1)
    )
    groups = q.reshape(64, -1, affine.group).astype(np.float32)
    in_float32 = groups * scales.astype(np.float32)[..., None] + biases.astype(np.float32)[..., None]
    assert (in_float32.reshape(64, -1) == expected).all()
    assert scales.dtype == (np.float16 if affine.scales == "f16" else np.float32)


@pytest.mark.parametrize(
    ("formats", "common"),
    [
        (["int8-g32-f16-z128"], "int8-g32-f16-z128"),
        (["int4-g32-f16-z8", "int8-g32-f16-z128"], "int8-g32-f16-z128"),
        (["int4-g32-f16", "int8-g32-f16"], "int8-g32-f16"),
        (["int4-g32-f32", "int8-g16-f32-z32"], "int8-g16-f32"),
        (["int8-g16-f32-z32", "int8-g32-f16-z128"], "int8-g16-f32"),
        (["int4-g32-f16", "int8-g32-f16-z128"], "int8-g32-f32"),
        (["int4-g16-f32-z8", "int4-g32-f16-z8"], "int4-g16-f32-z8"),
        (["int4-g64-bf16", "int8-g128-f16"], "int8-g64-f32"),
    ],
)
def test_common_formats_hold_the_same_values(formats: list[str], common: str) -> None:
    known = [Affine.parse(f) for f in formats]
    assert str(Affine.common(known)) == common
    wider, rng = Affine.parse(common), np.random.default_rng(3)
    for affine in known:
        stored = quantize_rows(rng.standard_normal((5, 256)), affine)
        values = dequantize_rows(stored, affine)
        assert (dequantize_rows(widen_rows(stored, affine, wider), wider) == values).all(), affine


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BLOCKS)
def test_logits_match_the_dequantized_weights(tmp_path: Path, device: Device, dtype: str) -> None:
    path, wide = write_pair(tmp_path, model_tensors({}, dtype))
    assert {str(m.format) for m in prepare(path).layout.matrices.values()} == {str(BLOCKS[dtype].affine)}
    assert_same_logits(path, wide, device)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_float_types(tmp_path: Path, device: Device, dtype: str) -> None:
    path, wide = write_pair(tmp_path, model_tensors({}, dtype))
    assert {m.format for m in prepare(path).layout.matrices.values()} == {dtype.lower()}
    assert_same_logits(path, wide, device)


def test_mixed_types_share_an_exact_format(tmp_path: Path, device: Device) -> None:
    path, wide = write_pair(tmp_path, model_tensors(MIXED, "Q4_K"))
    formats = {key.role: str(m.format) for key, m in prepare(path).layout.matrices.items()}
    assert formats == {
        "embed": "int8-g32-f16-z128",
        "qkv": "int8-g16-f32",
        "o": "int4-g32-f32",
        "gate_up": "int8-g32-f32",
        "down": "int8-g16-f32-z32",
    }
    assert_same_logits(path, wide, device)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_other_dtypes_convert(tmp_path: Path, device: Device, dtype: str) -> None:
    path, _ = write_pair(tmp_path, model_tensors(MIXED, "Q4_K"))
    ids = random_models.prompt(SIZES, 20, 1)
    with LLM(path, device=device, kv_dtype="float32") as llm:
        expected = llm.logits(ids)
    with LLM(path, device=device, dtype=dtype, kv_dtype="float32") as llm:
        assert (
            np.abs(llm.logits(ids) - expected).max() <= (BAR if dtype == "float32" else 0.05) * np.abs(expected).max()
        )


def test_norm_weights_of_gemma_survive(tmp_path: Path) -> None:
    """Files hold 1 + w in float32; the model adds 1 again to the w of the source."""
    rng = np.random.default_rng(0)
    w = np.concatenate([rng.standard_normal(500) * s for s in (1e-6, 1e-3, 0.1, 1, 30)]).astype(np.float32)
    held = w + np.float32(1)
    shapes = {"token_embd.weight": (np.zeros((4, 32), np.float32), "F32"), "output_norm.weight": (held, "F32")}
    path = gguf_files.write(tmp_path / "a.gguf", {"general.architecture": ("STRING", "gemma")}, shapes)
    source = open_gguf(path)
    vars(source)["_config"] = parse_config(random_models.CONFIGS["gemma"])  # the file has no sizes
    got = source.rows("model.norm.weight", np.arange(len(w)))
    assert (got + np.float32(1) == held).all()


def write_split(folder: Path) -> list[Path]:
    tensors = list(model_tensors({}, "Q8_0").items())
    paths = []
    for i in range(3):
        part = dict(tensors[i * 7 : (i + 1) * 7 if i < 2 else None])
        metadata = gguf_files.llama_metadata(SIZES) if i == 0 else {"general.architecture": ("STRING", "llama")}
        split = {
            "split.no": ("UINT16", i),
            "split.count": ("UINT16", 3),
            "split.tensors.count": ("INT32", len(tensors)),
        }
        paths.append(gguf_files.write(folder / f"m-{i + 1:05}-of-00003.gguf", {**metadata, **split}, part))
    return paths


def test_split_files(tmp_path: Path) -> None:
    """Any part may be given. A part that is missing is named."""
    whole = gguf_files.write(tmp_path / "w.gguf", gguf_files.llama_metadata(SIZES), model_tensors({}, "Q8_0"))
    paths = write_split(tmp_path)
    expected = open_gguf(whole)
    for path in (paths[0], paths[2]):
        source = open_gguf(path)
        assert source.tensors() == expected.tensors()
        assert source.config() == expected.config()
        for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"):
            parts = zip(source.rows(name, np.arange(5)), expected.rows(name, np.arange(5)), strict=True)
            assert all((a == b).all() for a, b in parts)
    paths[1].rename(tmp_path / "gone")
    with pytest.raises(ModelNotFoundError, match=r"m-00002-of-00003\.gguf is missing"):
        open_gguf(paths[0])
    (tmp_path / "gone").rename(paths[1])
    renamed = paths[0].rename(tmp_path / "first.gguf")
    with pytest.raises(UnsupportedModelError, match="one of 3 parts"):
        open_gguf(renamed)
    renamed.rename(paths[1])
    with pytest.raises(LlamaGPUError, match=r"is missing|names another part"):
        open_gguf(paths[2])


def test_unsupported_tensor_types_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((300, 256)).astype(np.float32)
    for dtype in ("TQ1_0", "MXFP4"):
        data = gguf.quantize(wide, gguf.GGMLQuantizationType[dtype])
        tensors = model_tensors({}, "F32") | {"token_embd.weight": (data, dtype)}
        path = gguf_files.write(tmp_path / f"{dtype}.gguf", gguf_files.llama_metadata(SIZES), tensors)
        with pytest.raises(UnsupportedModelError, match=f"type {dtype}.*\n.*Q4_K"):
            open_gguf(path)


def test_unsupported_tensors_and_kinds_are_named(tmp_path: Path) -> None:
    metadata = gguf_files.llama_metadata(SIZES)
    plain = model_tensors({}, "F32")
    more = plain | {"blk.0.ffn_gate_inp.weight": (np.zeros((8, 256), np.float32), "F32")}
    cases = {
        "ffn_gate_inp": (metadata, more),
        "clip": (metadata | {"general.architecture": ("STRING", "clip")}, {}),
        "adapter": (metadata | {"general.type": ("STRING", "adapter")}, {}),
        "expert_count": (metadata | {"llama.expert_count": ("UINT32", 8)}, plain),
        "Only matrices": (
            metadata,
            plain | {"output_norm.weight": (gguf_files.blocks(RNG, 1, 256, "Q8_0")[0], "Q8_0")},
        ),
        "token_embd": (metadata, {}),
    }
    for word, (fields, tensors) in cases.items():
        path = gguf_files.write(tmp_path / f"{word}.gguf", fields, tensors)
        with pytest.raises(UnsupportedModelError, match=word):
            prepare(path)


def test_inspect_shows_the_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``inspect`` shows the types of the file, and the bytes that they take here."""
    path = gguf_files.write(tmp_path / "m.gguf", gguf_files.llama_metadata(SIZES), model_tensors(MIXED, "Q4_K"))
    assert run(["inspect", str(path), "--json", "--tensors"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["stored"] == ["F32", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0"]
    assert {"name": "blk.0.attn_v.weight", "dtype": "Q6_K", "shape": [64, 256]} in report["tensor_list"]
    assert report["weight_bytes"]["auto"] < report["weight_bytes"]["float16"]


def test_generate_takes_a_gguf_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = gguf_files.write(tmp_path / "m.gguf", gguf_files.llama_metadata(SIZES), model_tensors({}, "Q4_0"))
    assert run(["generate", "-m", str(path), "-p", "ab", "--max-tokens", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["completion_tokens"] in (1, 2)
