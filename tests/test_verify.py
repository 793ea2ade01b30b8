"""``LLM(verify=True)`` and ``llamagpu verify``: models pass, and a broken shader is named by layer and kernel."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import random_models

from llamagpu import LLM, gpu
from llamagpu.cli.main import run
from llamagpu.engine.verify import verify
from llamagpu.errors import UsageError, WrongNumbersError
from llamagpu.gpu import linker

FULL, SLIDING = "full_attention", "sliding_attention"
CONFIGS = random_models.CONFIGS | {
    "two-masks": random_models.of("ministral", "attention_bias", "mlp_bias", sliding_window=5)
    | {"layer_types": [FULL, SLIDING]}
}


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a random model and returns its directory."""

    def write(name: str) -> Path:
        random_models.write_model(tmp_path, CONFIGS[name], random_models.tensors(CONFIGS[name], 5))
        random_models.write_tokenizer(tmp_path, CONFIGS[name]["vocab_size"])
        return tmp_path

    return write


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str, str], None]:
    """Edits a text of a copy of the shaders, which devices opened from then on link."""
    root = tmp_path / "shaders"

    def edit(file: str, old: str, new: str) -> None:
        shutil.copytree(gpu.shader_root(), root)
        text = (root / f"{file}.wgsl").read_text()
        assert old in text
        (root / f"{file}.wgsl").write_text(text.replace(old, new))
        forget()
        monkeypatch.setattr(linker, "shader_root", lambda: root)

    def forget() -> None:
        linker._source.cache_clear()
        linker.link.cache_clear()

    yield edit  # type: ignore[misc]
    monkeypatch.undo()
    forget()


def held(device: gpu.Device) -> int:
    """Bytes in buffers, without the staging memory that is kept for the next reading."""
    return device.ledger.held() - device.ledger.held("staging")


# File, text, edited text; model; form, layer, intermediate, kernel.
BROKEN = [
    ("lib/epilogue/glu", "* value.y", "* value.x", "gqa", "fused prompt", "layer 0, gate and up", "glu"),
    (
        "lib/mask/window",
        "params.window)",
        "params.window + 1u)",
        "two-masks",
        "fused prompt",
        "layer 1, attention",
        None,
    ),
    ("lib/prenorm", "dot(v, v)", "dot(v, v.yzwx)", "gqa", "fused prompt", "next attn norm", "begin_step"),
    (
        "lib/epilogue/add_norm",
        "early.weight",
        "2.0 * early.weight",
        "gqa",
        "fused step",
        "layer 0, next mlp norm",
        None,
    ),
    ("lib/epilogue/qkv", "v.y * t.x + v.x", "v.y * t.x - v.x", "gqa", "fused prompt", "layer 0, q", "qkv"),
    ("lib/epilogue/cap", "params.cap", "1.01 * params.cap", "gemma2", "fused prompt", "logits", "store"),
    ("qk_norm", "params.eps", "0.01", "qwen3", "fused prompt", "layer 0, q", "qk_norm"),
    ("rms_norm", "params.eps", "0.01", "gqa", "fused prompt", "layer 0, attn norm", "rms_norm"),
    ("gate", "params.in_stride2", "0u", "gqa", "unfused prompt", "layer 0, gated", "gate"),
    ("rope", "xb * rotation.x + xa", "xb * rotation.x - xa", "gqa", "unfused prompt", "layer 0, q and k", "rope"),
    ("attention_decode", "step_rows[row].z * params.table", "0u", "gqa", "fused step", "layer 0, attention", None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "old", "new", "name", "form", "where", "kernel"), BROKEN, ids=lambda v: str(v)[:20])
def test_the_first_wrong_layer_and_kernel_are_named(
    model: Callable[[str], Path],
    breaks: Callable[[str, str, str], None],
    file: str,
    old: str,
    new: str,
    name: str,
    form: str,
    where: str,
    kernel: str | None,
) -> None:
    directory = model(name)
    breaks(file, old, new)
    with gpu.open() as device:
        before = held(device)
        with pytest.raises(WrongNumbersError, match="Wrong numbers in the") as found:
            LLM(directory, device=device, verify=True)
        assert held(device) == before
    what, why = found.value.what, found.value.why
    assert f"in the {form}" in what
    assert where in what
    assert kernel is None or f"kernel {kernel}." in what
    assert "Its error is" in why
    assert "the tolerance" in why


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "kv"),
    [
        ("all-biases", "auto", "float16"),
        ("odd", "float16", "auto"),
        ("theta-f16", "int4", "auto"),
        ("deep-bf16", "auto", "auto"),
        ("vocab50257", "auto", "auto"),
        ("two-masks", "auto", "auto"),
        ("ministral3", "auto", "auto"),
        ("qwen3", "auto", "auto"),
        ("granite", "auto", "auto"),
        ("olmo2", "auto", "auto"),
        ("phi3-longrope", "auto", "auto"),
        ("gemma3", "auto", "auto"),
        ("exaone4", "auto", "auto"),
        ("nanochat", "auto", "auto"),
    ],
)
def test_models_pass(model: Callable[[str], Path], device: gpu.Device, name: str, dtype: str, kv: str) -> None:
    """Every intermediate of every layer is compared, in four forms."""
    with LLM(model(name), device=device, dtype=dtype, kv_dtype=kv, fused=name != "odd") as llm:
        seen = list(verify(llm, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2]))
        layers = set(range(len(llm.config.layers)))
    for form in ("fused prompt of 16 tokens", "fused step", "unfused prompt of 16 tokens", "unfused step"):
        mine = [s.intermediate for s in seen if s.form == form]
        for wanted in ("attention", "k", "v", "o", "down"):
            assert {i.layer for i in mine if i.name == wanted} == layers, (form, wanted)
        assert [i.layer for i in mine if i.name == "logits"] == [None]
        assert all(i.ok for i in mine)


def test_verifying_leaves_nothing_behind(story: LLM) -> None:
    """Also if it is left early, and for a prompt of one token."""
    tokens, before = story.generate("Once", max_tokens=4).token_ids, held(story.device)
    with pytest.raises(UsageError, match="9999"):
        next(verify(story, [9999]))
    checks = verify(story, [5])
    assert next(checks).form == "fused prompt of 1 tokens"
    checks.close()
    assert held(story.device) == before
    assert story.generate("Once", max_tokens=4).token_ids == tokens


@pytest.mark.parametrize("context", [1, 2, 5])
def test_short_contexts(device: gpu.Device, context: int) -> None:
    with LLM(device=device, context=context) as llm:
        forms = {s.form.split(" of")[0] for s in verify(llm)}
    assert forms == {
        f"{form} {part}" for form in ("fused", "unfused") for part in ("prompt", "step")[: min(context, 2)]
    }


@pytest.mark.slow
def test_command(capsys: pytest.CaptureFixture[str], breaks: Callable[[str, str, str], None]) -> None:
    assert run(["verify", "The sun was"]) == 0
    out = capsys.readouterr().out
    for part in ("fused step:", "unfused prompt of 4 tokens:", "logits", "attention_decode"):
        assert part in out
    breaks("gate", "params.in_stride2", "0u")
    assert run(["verify"]) == 1
    out, err = capsys.readouterr()
    assert "fused step:" in out
    assert "Wrong numbers in the unfused prompt of 16 tokens: layer 0, gated, by the kernel gate." in err
