"""Affine quantization: the same bytes as MLX, models against their dequantized weights, the quantize command."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import random_models
from safetensors.numpy import load_file, save_file

from llamagpu import LLM, gpu
from llamagpu.cli.main import run
from llamagpu.errors import LlamaGPUError, UnsupportedModelError
from llamagpu.gpu import Affine
from llamagpu.kernels.quantization import dequantize_rows, quantize_rows
from llamagpu.model import prepare
from llamagpu.model.quantize import quantize_checkpoint

MLX = json.loads((Path(__file__).parent / "goldens_mlx.json").read_text())
# Every row is a multiple of 128 columns, so groups of all sizes divide it.
EVEN = random_models.config(hidden_size=128, intermediate_size=256, head_dim=32, vocab_size=300)


@pytest.mark.parametrize("case", MLX["cases"], ids=lambda c: f"{c['dtype']}-{c['bits']}-{c['group']}")
def test_quantize_gives_the_same_bytes_as_mlx(case: dict) -> None:
    """The same packed values, scales and biases as mlx.core.quantize, by hash (scripts/make_goldens.py --mlx)."""
    values = random_models.quantization_input(case["dtype"])
    stored = quantize_rows(values, Affine(case["bits"], case["group"], case["dtype"]))
    assert [hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest() for a in stored] == case["sha256"]


@pytest.mark.parametrize("format", ["int8-g64-f16", "int4-g32-f32", "int4-g32-f16-z8", "int8-g32-f16-z128"])
def test_quantization_error_is_within_a_step(format: str) -> None:
    affine = Affine.parse(format)
    rng = np.random.default_rng(0)
    w = rng.standard_normal((50, 256)).astype(np.float32)
    w[3] = 0
    back = dequantize_rows(quantize_rows(w, affine), affine)
    groups = w.reshape(50, -1, affine.group)
    reach = 2 * np.abs(groups).max(-1) if affine.zero else groups.max(-1) - groups.min(-1)
    step = np.repeat(reach / (2**affine.bits - 1), affine.group, axis=1)
    # Half a step, or a whole one at the far end, because scales are adjusted to meet the near end; plus f16 rounding.
    assert (np.abs(back - w) <= 1.1 * step + 2e-3 * np.abs(w) + 1e-6).all()
    assert np.abs(back - w).mean() < 0.35 * step.mean()


def test_affine_formats_are_checked() -> None:
    for bad in ((3, 64), (4, 48), (8, 64, "f8")):
        with pytest.raises(LlamaGPUError, match=r"affine format .* is not supported"):
            Affine(*bad)
    assert str(Affine.parse("int4-g32-bf16-z8")) == "int4-g32-bf16-z8"


@pytest.mark.parametrize(
    "torch_dtype", ["float16", *(pytest.param(d, marks=pytest.mark.slow) for d in ("float32", "bfloat16"))]
)
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 64), (4, 128)])
def test_a_quantized_checkpoint_matches_its_dequantized_weights(
    tmp_path: Path, device: gpu.Device, bits: int, group: int, torch_dtype: str
) -> None:
    """A checkpoint in MLX's layout loads as stored. Its logits match those of the dequantized float32 weights."""
    c = EVEN | {"torch_dtype": torch_dtype, "attention_bias": True}
    random_models.write_model(tmp_path / "a", c, random_models.tensors(c, 5))
    prepared = prepare(tmp_path / "a")
    written = quantize_checkpoint(prepared, tmp_path / "q", bits, group)
    assert not written.unquantized
    assert json.loads((tmp_path / "q" / "config.json").read_text())["quantization"]["bits"] == bits
    assert (tmp_path / "q" / "tokenizer.json").exists()
    quantized = prepare(tmp_path / "q")
    assert {str(m.format) for m in quantized.layout.matrices.values()} == {
        f"int{bits}-g{group}-{ {'float32': 'f32', 'float16': 'f16', 'bfloat16': 'bf16'}[torch_dtype] }"
    }
    ids = random_models.prompt(c, 40, 1)
    with LLM(tmp_path / "q", device=device, kv_dtype="float32") as q:
        got = q.logits(ids)
        assert q.generate(ids, max_tokens=3).completion_tokens == 3
    with LLM(tmp_path / "q", device=device, dtype="float32") as wide:
        assert wide.sizes.weights > 3 * prepared.layout.with_dtype("int8").nbytes * bits / 8 / 1.3
        expected = wide.logits(ids)
    assert np.abs(got - expected).max() <= 2e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantizing_while_loading(story: LLM, device: gpu.Device, dtype: str) -> None:
    ids = story.tokenize("Once upon a time there was a little girl who had a big red ball.")
    exact = story.logits(ids)
    with LLM(device=device, dtype=dtype) as llm:
        assert llm.sizes.weights < story.sizes.weights * (0.55 if dtype == "int8" else 0.3)
        assert llm.sizes.kv_dtype == "f16"
        got = llm.logits(ids)
        assert llm.generate(ids, max_tokens=5).completion_tokens == 5
    error = np.sqrt(((got - exact) ** 2).mean() / (exact**2).mean())
    assert error < (0.01 if dtype == "int8" else 0.2)


def test_undivided_tensors_stay_and_are_listed(
    tmp_path: Path, device: gpu.Device, caplog: pytest.LogCaptureFixture
) -> None:
    c = random_models.config(intermediate_size=97)
    random_models.write_model(tmp_path / "a", c, random_models.tensors(c, 5))
    with LLM(tmp_path / "a", device=device, dtype="int8") as llm:
        llm.logits([1, 2, 3])
    (line,) = [r.getMessage() for r in caplog.records if "not quantized" in r.getMessage()]
    assert "model.layers.1.mlp.down_proj.weight" in line
    written = quantize_checkpoint(prepare(tmp_path / "a"), tmp_path / "q", 4, 64)
    assert written.unquantized == ("model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight")
    block = json.loads((tmp_path / "q" / "config.json").read_text())["quantization"]
    assert block["model.layers.0.mlp.down_proj"] is False
    with LLM(tmp_path / "q", device=device) as llm:
        assert llm.logits([1, 2, 3]).shape == (3, 105)


def test_broken_quantized_checkpoints(tmp_path: Path, device: gpu.Device) -> None:
    random_models.write_model(tmp_path / "a", EVEN, random_models.tensors(EVEN, 5))
    quantize_checkpoint(prepare(tmp_path / "a"), tmp_path / "q", 4, 64)
    path = tmp_path / "q" / "model.safetensors"
    whole = load_file(path)
    name = "model.layers.0.mlp.up_proj"
    for change, message in (
        ({f"{name}.biases": None}, r"no tensor model\.layers\.0\.mlp\.up_proj\.biases"),
        ({f"{name}.scales": whole[f"{name}.scales"][:, :1]}, "shape"),
        ({f"{name}.biases": whole[f"{name}.biases"].astype(np.float16)}, "dtype f16"),
        ({f"{name}.scales": None}, "dtype U32"),
    ):
        save_file({k: v for k, v in (whole | change).items() if v is not None}, path)
        with pytest.raises(UnsupportedModelError, match=message):
            LLM(tmp_path / "q", device=device)
    save_file(whole, path)
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    del config["quantization"], config["quantization_config"]
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="does not say how"):
        LLM(tmp_path / "q", device=device)


# --- the command ---------------------------------------------------------------------------


def test_quantize_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from llamagpu.model import bundled_models

    model, out = str(bundled_models() / "stories"), tmp_path / "out"
    assert run(["quantize", model, str(out), "--bits", "4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bytes"] < 0.3 * facts["bytes_before"]
    assert facts["unquantized"] == []
    for arguments, message in (
        ([model, str(out)], "exists"),
        ([model, str(tmp_path / "b"), "--bits", "3"], "bits is 3"),
        ([model, str(tmp_path / "b"), "--group-size", "48"], "group_size is 48"),
        ([model, str(tmp_path / "no" / "where")], "no directory"),
        ([str(out), str(tmp_path / "b")], "quantized already"),
    ):
        assert run(["quantize", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_quantize_takes_the_model_as_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(random_models.write_model(tmp_path / "m", EVEN, random_models.tensors(EVEN, 5)))
    assert run(["quantize", str(tmp_path / "a"), "-m", model]) == 0
    assert run(["quantize", model, str(tmp_path / "b")]) == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    capsys.readouterr()
    for arguments in ([model, "c", "-m", model], [model], [model, "c", "d"], []):
        assert run(["quantize", *arguments]) == 2
        assert "error: " in capsys.readouterr().err
    assert not Path("c").exists()


def test_a_broken_tokenizer_is_not_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = random_models.write_model(tmp_path / "m", EVEN, random_models.tensors(EVEN, 5))
    (model / "tokenizer.json").write_text("{")
    assert run(["quantize", str(model), str(tmp_path / "out")]) == 4
    assert "tokenizer.json cannot be read" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_groups_that_divide_few_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c = random_models.config(hidden_size=96, intermediate_size=160, head_dim=24)
    command = ["quantize", str(random_models.write_model(tmp_path / "m", c, random_models.tensors(c, 5)))]
    command.append(str(tmp_path / "out"))
    assert run(command) == 2
    err = capsys.readouterr().err
    assert "Groups of 64 would quantize 0% of the weights" in err
    assert "32: 100%" in err
    assert not (tmp_path / "out").exists()
    assert run([*command, "--group-size", "32"]) == 0
    command[-1] += "2"
    assert run([*command, "--force"]) == 0


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, device: gpu.Device) -> None:
    weights = random_models.tensors(EVEN, 1)
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = np.nan
    random_models.write_model(tmp_path / "a", EVEN, weights)
    with pytest.raises(UnsupportedModelError, match=r"up_proj\.weight holds NaN"):
        quantize_checkpoint(prepare(tmp_path / "a"), tmp_path / "q", 4, 64)
    assert not (tmp_path / "q").exists()
    with pytest.raises(UnsupportedModelError, match=r"up_proj\.weight holds NaN"):
        LLM(tmp_path / "a", device=device, dtype="int8")


def test_a_full_disk_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamagpu.model import bundled_models
    from llamagpu.model import quantize as module

    real, calls = module._write_tensor, []

    def full(*arguments):
        calls.append(1)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(module, "_write_tensor", full)
    with pytest.raises(LlamaGPUError, match="No space left"):
        quantize_checkpoint(prepare(bundled_models() / "stories"), tmp_path / "out", 4, 64)
    assert list(tmp_path.iterdir()) == []
