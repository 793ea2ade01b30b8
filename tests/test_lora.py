"""LoRA adapters: against peft, in company, added and removed at run time, merged, and hostile ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import gguf_files
import numpy as np
import pytest
import random_adapters
import random_models
from random_adapters import ALL, write_adapter, write_random
from safetensors.numpy import load_file
from test_budgets import decode_census, others
from test_quantize import EVEN

from llamagpu import LLM, gpu
from llamagpu.cli.main import run
from llamagpu.errors import LlamaGPUError, OutOfMemoryError, UsageError
from llamagpu.gpu.census import census
from llamagpu.kernels.kv_write import PAGE
from llamagpu.model import prepare
from llamagpu.model.lora import read_lora
from llamagpu.model.merge import merge_checkpoint

HERE = Path(__file__).parent
GOLDENS = load_file(HERE / "goldens_lora.safetensors")
ABOUT = json.loads((HERE / "goldens_lora.json").read_text())["adapters"]
MODELS = json.loads((HERE / "goldens.json").read_text())["models"]
BAR = 5e-5
QUICK = ("all", "fused")
SETTINGS = {"r": 4, "lora_alpha": 8, "target_modules": ALL}
GREEDY: dict[str, Any] = {"max_tokens": 6, "ignore_eos": True, "reuse": "none"}


def write_base(folder: Path, name: str = "gqa") -> Path:
    about, c = MODELS[name], random_models.CONFIGS[name]
    return random_models.write_model(folder, c, random_models.tensors(c, about["seed"], about["gain"]))


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in random_adapters.CASES]
)
def test_peft_gives_the_same(name: str, device: gpu.Device, tmp_path: Path) -> None:
    """Logits and greedy tokens of peft, with adapter_config.json as peft writes it; the unfused form too."""
    (model, settings), about = random_adapters.CASES[name], ABOUT[name]
    c = random_models.CONFIGS[model]
    tensors = random_adapters.matrices(c, settings, about["seed"])
    adapter = write_adapter(tmp_path / "adapter", about["config"], tensors, bf16=name == "bf16")
    ids = random_models.prompt(c, 40, about["prompt_seed"])
    for fused in (True, False) if name in QUICK else (True,):
        with LLM(
            write_base(tmp_path / "model", model),
            device=device,
            kv_dtype="float32",
            adapters={"one": adapter},
            fused=fused,
        ) as llm:
            got = llm.logits(ids, adapter="one")[-random_models.LAST :]
            assert np.abs(got - GOLDENS[name]).max() <= BAR * max(1.0, about["max_logit"])
            assert np.abs(llm.logits(ids)[-random_models.LAST :] - GOLDENS[name]).max() > 0.5
            made = llm.generate(ids, max_tokens=len(about["tokens"]), ignore_eos=True, adapter="one")
            assert about["gap"] > 1e-3
            assert made.token_ids == about["tokens"]


# --- company -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A model whose weights can be quantized, and eight adapters of other ranks and modules."""
    folder = tmp_path_factory.mktemp("eight")
    random_models.write_model(folder / "model", EVEN, random_models.tensors(EVEN, 3))
    adapters = {}
    for i in range(8):
        settings = {"r": 1 + 3 * i, "lora_alpha": 9, "target_modules": ALL[i % 7 :] if i % 2 else ALL[: i + 1]}
        adapters[f"a{i}"] = write_random(folder / f"a{i}", EVEN, settings, i)
    return folder / "model", adapters


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow), pytest.param("int4", marks=pytest.mark.slow)]
)
def test_company_changes_no_bit(eight: tuple[Path, dict[str, Path]], device: gpu.Device, dtype: str) -> None:
    """Eight adapters, other scales, and none in one batch: the results of lone runs, with log-probabilities. Adapters
    that are added later change nothing."""
    model, adapters = eight
    prompts = [random_models.prompt(EVEN, 5 + i % 3, i) for i in range(10)]
    used = [*({"adapter": name} for name in adapters), {}, {"adapter": "a1", "adapter_scale": -0.5}]
    items = [{"prompt": p, **u} for p, u in zip(prompts, used, strict=True)]

    def facts(result: Any) -> Any:
        return [(t.id, t.logprob) for t in result.logprobs]

    with LLM(model, device=device, dtype=dtype) as llm:
        plain = facts(llm.generate(prompts[8], logprobs=1, **GREEDY))
    with LLM(model, device=device, dtype=dtype, adapters={"a1": adapters["a1"]}) as llm:
        first = facts(llm.generate(items[1], logprobs=1, **GREEDY))
        for name in adapters.keys() - {"a1"}:
            llm.add_adapter(name, adapters[name])
        alone = [facts(llm.generate(item, logprobs=1, **GREEDY)) for item in items]
        together = [facts(r) for r in llm.generate(items, logprobs=1, **GREEDY)]
    assert together == alone
    assert alone[1] == first
    assert alone[8] == plain
    assert len({str(a) for a in alone}) == len(alone)


def test_the_cache_knows_the_adapter(eight: tuple[Path, dict[str, Path]], device: gpu.Device) -> None:
    """Pages serve requests with the same adapter and scale alone; a name does not matter, but the matrices do."""
    model, adapters = eight
    ids = random_models.prompt(EVEN, 3 * PAGE, 1)

    def cached(llm: LLM, **used: Any) -> int:
        return llm.generate(ids, max_tokens=1, **used).cached_tokens

    with LLM(model, device=device, adapters={"x": adapters["a0"], "y": adapters["a1"]}) as llm:
        ways: list[dict[str, Any]] = [{}, {"adapter": "x"}, {"adapter": "y"}, {"adapter": "x", "adapter_scale": 2}]
        assert [cached(llm, **way) for way in ways] == [0] * 4
        assert [cached(llm, **way) for way in ways] == [2 * PAGE] * 4
        llm.remove_adapter("x")
        llm.add_adapter("x", adapters["a2"])
        llm.add_adapter("z", adapters["a0"])
        assert [cached(llm, adapter=name) for name in ("x", "z", "y")] == [0, 2 * PAGE, 2 * PAGE]


@pytest.mark.slow
def test_drafts_and_losses_keep_the_adapter(
    eight: tuple[Path, dict[str, Path]], device: gpu.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speculation changes no token; a sequence goes on with its adapter after a loss of the device."""
    model, adapters = eight
    monkeypatch.setattr(gpu.recovery, "AGAIN_SECONDS", 0.0)
    options = GREEDY | {"max_tokens": 24, "adapter": "a3"}
    ids = random_models.prompt(EVEN, 9, 1) * 3
    with LLM(model, device=device, adapters=adapters) as llm:
        expected = llm.generate(ids, **options).token_ids
        assert expected != llm.generate(ids, **options | {"adapter": None}).token_ids
    with LLM(model, adapters={"a3": adapters["a3"]}, speculate="prompt") as llm:
        assert llm.generate(ids, **options).token_ids == expected
        with faults.Fault("submit", 9).injected() as fault:
            assert llm.generate(ids, **options).token_ids == expected
        assert fault.fired
        assert list(llm.adapters) == ["a3"]


@pytest.mark.slow
def test_isolated_models_have_adapters(eight: tuple[Path, dict[str, Path]], device: gpu.Device) -> None:
    model, adapters = eight
    ids = random_models.prompt(EVEN, 9, 1)
    with LLM(model, device=device, adapters={"a3": adapters["a3"]}) as llm:
        expected = llm.generate(ids, adapter="a3", **GREEDY).token_ids
    with LLM(model, isolate=True, adapters={"a3": str(adapters["a3"])}) as llm:
        assert list(llm.adapters) == ["a3"]
        assert llm.generate(ids, adapter="a3", **GREEDY).token_ids == expected
        for call in (lambda: llm.add_adapter("x", adapters["a0"]), lambda: llm.remove_adapter("a3")):
            with pytest.raises(UsageError, match=r"no (add|remove)_adapter here"):
                call()
        with pytest.raises(UsageError, match="There is no adapter 'x'"):
            llm.generate(ids, adapter="x")


# --- costs ---------------------------------------------------------------------------------


def test_costs(tmp_path: Path, device: gpu.Device) -> None:
    """Two more dispatches for each product that adapters change, none without an adapter; adding one uploads little
    more than its matrices, and loads nothing again."""
    base, c = write_base(tmp_path / "model"), random_models.CONFIGS["gqa"]
    some = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    a, b = write_random(tmp_path / "a", c, some, 1), write_random(tmp_path / "b", c, SETTINGS, 2)
    layers = c["num_hidden_layers"]
    plain = 5 * layers + others(device, c["vocab_size"])
    with LLM(base, device=device, adapters={"a": a}) as llm:
        counts = decode_census(llm, 8, adapter="a")
        assert counts.dispatches == 8 * (plain + 2 * layers)
        assert sum(counts.objects.values()) <= 3 * 8
        assert counts.bytes["up"] <= 64 * 8
        held = device.ledger.by_purpose()
        with census() as added:
            llm.add_adapter("b", b)
        size = (b / "adapter_model.safetensors").stat().st_size
        assert added.bytes["up"] <= 1.5 * size  # the rows of A and B are padded, and B has a row for the longest rank
        assert decode_census(llm, 8).dispatches == 8 * plain
        assert decode_census(llm, 8, adapter="b").dispatches == 8 * (plain + 8 * layers)
        for name in ("a", "b"):
            llm.remove_adapter(name)
        now = device.ledger.by_purpose()
        assert {k: now[k] for k in ("weights", "kv")} == {k: held[k] for k in ("weights", "kv")}
        assert now["adapters"] < 4096  # the slots
    assert "adapters" not in device.ledger.by_purpose()


def test_names_and_memory(tmp_path: Path, device: gpu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are unique, an adapter in use stays, and one that does not fit changes nothing."""
    base, c = write_base(tmp_path / "model"), random_models.CONFIGS["gqa"]
    a, ids = write_random(tmp_path / "a", c, SETTINGS, 1), random_models.prompt(c, 9, 1)
    before = device.ledger.by_purpose().get("adapters", 0)
    with LLM(base, device=device, adapters={"a": a}) as llm:
        assert llm.memory.estimate["adapters"] == device.ledger.by_purpose()["adapters"] - before
        expected = llm.generate(ids, adapter="a", **GREEDY).token_ids
        with pytest.raises(UsageError, match="already"):
            llm.add_adapter("a", a)
        with pytest.raises(UsageError, match="There is no adapter 'b'"):
            llm.remove_adapter("b")
        with pytest.raises(UsageError, match="Item 1: There is no adapter 'b'"):
            llm.generate([ids, {"prompt": ids, "adapter": "b"}])
        for options in ({"adapter": 3}, {"adapter": "a", "adapter_scale": float("nan")}, {"adapter_scale": 1e9}):
            with pytest.raises(UsageError, match="adapter"):
                llm.generate(ids, **options)
        for name in ("", "a\n", 3, "x" * 201):
            with pytest.raises(UsageError, match="not a name"):
                llm.add_adapter(name, a)
        with llm.stream(ids, max_tokens=500, ignore_eos=True, adapter="a") as stream:
            next(stream)
            with pytest.raises(UsageError, match="cannot be removed"):
                llm.remove_adapter("a")
        held = device.ledger.by_purpose()["adapters"]
        monkeypatch.setattr(device.ledger, "limit", device.ledger.held() + 20_000)
        with pytest.raises(OutOfMemoryError):
            llm.add_adapter("b", a)
        with pytest.raises(OutOfMemoryError, match=r"LoRA adapters 0\.\d MB"):
            LLM(base, device=device, adapters={"a": a})
        monkeypatch.setattr(device.ledger, "limit", None)
        assert list(llm.adapters) == ["a"]
        assert device.ledger.by_purpose()["adapters"] == held
        assert llm.generate(ids, adapter="a", **GREEDY).token_ids == expected
    with pytest.raises(LlamaGPUError, match="closed"):
        llm.add_adapter("c", a)
    with pytest.raises(UsageError, match="adapters is"):
        LLM(base, device=device, adapters=[a])


# --- merging and GGUF ------------------------------------------------------------------------


def test_merged_models(tmp_path: Path, device: gpu.Device, capsys: pytest.CaptureFixture[str]) -> None:
    """A merged model gives what its base gives with the adapter; the weights keep their dtype. Quantized models are
    refused."""
    base, c = write_base(tmp_path / "model"), random_models.CONFIGS["gqa"]
    a, ids = write_random(tmp_path / "a", c, SETTINGS, 1), random_models.prompt(c, 33, 1)
    assert run(["merge", str(base), str(a), str(tmp_path / "merged"), "--scale", "0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] == 7 * c["num_hidden_layers"]
    with LLM(base, device=device, adapters={"a": a}) as llm:
        expected = llm.logits(ids, adapter="a", adapter_scale=0.5)
    with LLM(tmp_path / "merged", device=device) as llm:
        assert np.abs(llm.logits(ids) - expected).max() <= BAR * np.abs(expected).max()
    assert run(["merge", str(base), str(a), str(tmp_path / "merged")]) == 2
    assert "exists" in capsys.readouterr().err
    deep = write_base(tmp_path / "bf16", "deep-bf16")
    b = write_random(tmp_path / "b", random_models.CONFIGS["deep-bf16"], SETTINGS, 2)
    merged = merge_checkpoint(prepare(deep), b, tmp_path / "merged-bf16")
    assert merged.nbytes == prepare(deep).layout.nbytes - _padding(deep)
    assert all(s.format == "bf16" for s in prepare(merged.path).source.tensors().values())
    assert run(["quantize", str(base), str(tmp_path / "int4"), "--bits", "4", "--group-size", "32", "--force"]) == 0
    capsys.readouterr()
    assert run(["merge", str(tmp_path / "int4"), str(a), str(tmp_path / "x")]) == 2
    assert "quantized" in capsys.readouterr().err


def _padding(folder: Path) -> int:
    layout = prepare(folder).layout
    stored = sum(int(np.prod(s.shape)) * 2 for s in layout.source.tensors().values())
    return layout.nbytes - stored


def permuted(b: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k as llama.cpp's conversion orders them: the halves of a head's rotary pairs become neighbours."""
    return b.reshape(heads, 2, b.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(b.shape)


def write_gguf(path: Path, c: dict[str, Any], tensors: dict[str, np.ndarray], **changes: Any) -> Path:
    """A GGUF adapter with the matrices of one of PEFT's, as llama.cpp's convert_lora_to_gguf.py writes it."""
    from llamagpu.model.sources.gguf.architectures import NAMES

    short = {long: name for name, long in NAMES.items()}
    out = {}
    for name, values in tensors.items():
        found = re.fullmatch(r".*layers\.(\d+)\.(.+)\.lora_(A|B)\.weight", name)
        assert found is not None
        layer, module, kind = found.groups()
        heads = {"self_attn.q_proj": c["num_attention_heads"], "self_attn.k_proj": c["num_key_value_heads"]}.get(module)
        if kind == "B" and heads:
            values = permuted(values, heads)
        out[f"blk.{layer}.{short[module]}.weight.lora_{kind.lower()}"] = (np.ascontiguousarray(values), "F32")
    metadata = {
        "general.architecture": ("STRING", "llama"),
        "general.type": ("STRING", "adapter"),
        "adapter.type": ("STRING", "lora"),
        "adapter.lora.alpha": ("FLOAT32", 8.0),
    }
    return gguf_files.write(path, metadata | changes, out)


def test_gguf_adapters(tmp_path: Path, device: gpu.Device) -> None:
    """A GGUF adapter and PEFT's give the same bits, on a directory and on a GGUF file."""
    c = random_models.CONFIGS["gqa"] | {"vocab_size": 300}
    weights = random_models.tensors(c, 4)
    base = random_models.write_model(tmp_path / "model", c, weights)
    tensors = random_adapters.matrices(c, SETTINGS, 1)
    adapters = {"peft": write_adapter(tmp_path / "a", SETTINGS, tensors)}
    adapters["gguf"] = write_gguf(tmp_path / "a.gguf", c, tensors)
    shapes = gguf_files.llama_shapes(c)
    rng = np.random.default_rng(0)
    file = gguf_files.write(
        tmp_path / "model.gguf",
        gguf_files.llama_metadata(c),
        {n: ((rng.standard_normal(s) / s[-1] ** 0.5).astype(np.float32), "F32") for n, s in shapes.items()},
    )
    ids = random_models.prompt(c, 33, 1)
    for model in (base, file):
        with LLM(model, device=device, adapters=adapters) as llm:
            both = [llm.logits(ids, adapter=name) for name in adapters]
            assert np.array_equal(*both)
            assert not np.allclose(both[0], llm.logits(ids))


# --- adapters that are refused ---------------------------------------------------------------

Change = Callable[[dict[str, Any], dict[str, np.ndarray]], Any]
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


def setting(**values: Any) -> Change:
    return lambda config, tensors: config.update(values)


def tensor(name: str, values: Any) -> Change:
    return lambda config, tensors: tensors.update({name: np.asarray(values, np.float32)})


REFUSED: dict[str, tuple[Change, str]] = {
    "dora": (setting(use_dora=True), "use_dora"),
    "bias": (setting(bias="all"), "sets 'bias' to 'all'"),
    "modules": (setting(modules_to_save=["lm_head"]), "modules_to_save"),
    "fan": (setting(fan_in_fan_out=True), "fan_in_fan_out"),
    "tokens": (setting(trainable_token_indices=[1, 2]), "trainable_token_indices"),
    "lora bias": (setting(lora_bias=True), "lora_bias"),
    "replication": (setting(layer_replication=[[0, 2]]), "layer_replication"),
    "parameters": (setting(target_parameters=["x"]), "target_parameters"),
    "pissa": (setting(init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
    "new setting": (setting(use_something_new=1), "use_something_new"),
    "type": (setting(peft_type="IA3"), "peft_type is 'IA3'"),
    "rank 0": (setting(r=0), "the rank is 0"),
    "rank text": (setting(r="4"), "the rank is '4'"),
    "other rank": (setting(r=5), "which rank 5 does not give"),
    "alpha": (setting(lora_alpha=float("nan")), "lora_alpha is nan"),
    "rslora": (setting(use_rslora="yes"), "use_rslora is 'yes'"),
    "pattern": (setting(rank_pattern={"(a+)+b": 3}), "has the pattern"),
    "patterns": (setting(alpha_pattern=[1]), "alpha_pattern is"),
    "missing target": (setting(target_modules=[*ALL, "x_proj"]), "no tensors for the target module 'x_proj'"),
    "missing layer": (
        lambda config, tensors: [tensors.pop(Q + k) for k in ("A.weight", "B.weight")],
        "no matrices for layers.0.self_attn.q_proj",
    ),
    "missing half": (lambda config, tensors: tensors.pop(Q + "B.weight"), "has no lora_B"),
    "head": (
        lambda config, tensors: tensors.update(
            {f"base_model.model.lm_head.lora_{k}.weight": np.ones((4, 4), np.float32) for k in "AB"}
        ),
        "changes 'lm_head'",
    ),
    "embedding": (tensor("base_model.model.model.embed_tokens.lora_embedding_A", [[1.0]]), "not a LoRA matrix"),
    "magnitude": (tensor(Q[:-5] + "lora_magnitude_vector", [1.0]), "not a LoRA matrix"),
    "other layer": (
        lambda config, tensors: tensors.update(
            {f"base_model.model.model.layers.7.mlp.up_proj.lora_{k}.weight": np.ones((4, 4), np.float32) for k in "AB"}
        ),
        "which the model does not have",
    ),
    "shape": (tensor(Q + "A.weight", np.ones((4, 60))), "as \\[64, 60\\]; the model's is \\[64, 64\\]"),
    "axes": (tensor(Q + "A.weight", np.ones((4, 4, 4))), "have the shapes"),
    "nan": (tensor(Q + "B.weight", np.full((64, 4), np.nan)), "holds NaN or infinity"),
    "integers": (
        lambda config, tensors: tensors.update({Q + "A.weight": np.ones((4, 64), np.int32)}),
        "has the dtype I32",
    ),
    "nothing": (lambda config, tensors: (tensors.clear(), config.update(target_modules=None)), "has no matrices"),
}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return prepare(write_base(tmp_path_factory.mktemp("base"))).layout


def test_what_is_refused(layout: Any, tmp_path: Path) -> None:
    """Every setting and tensor that is not supported is named, before anything is on a device."""
    c = random_models.CONFIGS["gqa"]
    for name, (change, message) in REFUSED.items():
        config, tensors = dict(SETTINGS), random_adapters.matrices(c, SETTINGS, 1)
        change(config, tensors)
        with pytest.raises(LlamaGPUError, match=message):
            read_lora(write_adapter(tmp_path / name, config, tensors), layout)
    with pytest.raises(LlamaGPUError, match="There is no LoRA adapter"):
        read_lora(tmp_path / "none", layout)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LlamaGPUError, match=r"no adapter_config\.json"):
        read_lora(tmp_path / "empty", layout)
    (tmp_path / "empty" / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(LlamaGPUError, match="pickle"):
        read_lora(tmp_path / "empty", layout)
    tensors = random_adapters.matrices(c, SETTINGS, 1)
    for key, value, message in (
        ("general.type", "model", "general.type is 'model'"),
        ("general.architecture", "qwen2", "made for qwen2"),
        ("adapter.type", "control_vector", "adapter.type 'control_vector'"),
    ):
        with pytest.raises(LlamaGPUError, match=message):
            read_lora(write_gguf(tmp_path / "x.gguf", c, tensors, **{key: ("STRING", value)}), layout)


def test_damaged_files(layout: Any, tmp_path: Path) -> None:
    """Files with changed bytes are read, or an error that is ours."""
    c, rng = random_models.CONFIGS["gqa"], np.random.default_rng(0)
    folder = write_random(tmp_path / "a", c, SETTINGS, 1)
    file = write_gguf(tmp_path / "a.gguf", c, random_adapters.matrices(c, SETTINGS, 1))
    for path in (folder / "adapter_config.json", folder / "adapter_model.safetensors", file):
        data = path.read_bytes()
        for _ in range(40):
            copy = bytearray(data[: rng.integers(len(data))] if rng.integers(4) == 0 else data)
            for at in rng.integers(0, min(len(copy), 3000) or 1, 3):
                copy[at : at + 1] = bytes([rng.integers(256)])
            path.write_bytes(copy)
            try:
                read_lora(file if path == file else folder, layout)
            except LlamaGPUError:
                pass
        path.write_bytes(data)


# --- the command line ------------------------------------------------------------------------


@pytest.mark.slow
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, c = write_base(tmp_path / "model"), random_models.CONFIGS["gqa"]
    a, texts = write_random(tmp_path / "a", c, SETTINGS, 1), []
    for more in ([], ["--adapter", f"x={a}"], ["--adapter", str(a), "--adapter-scale", "0"]):
        assert run(["generate", "-m", str(base), "-n", "8", "--ignore-eos", "Hello", *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[1] != texts[0] == texts[2]


def test_wrong_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code, more, message in (
        (3, ["--adapter", "b/c"], "There is no LoRA adapter b/c"),
        (2, ["--adapter", "b/c", "--adapter", "d/c"], "Two adapters have the name c"),
        (2, ["--adapter", "=b"], "not a name of an adapter"),
        (2, ["--adapter-scale", "2"], "--adapter-scale needs an adapter"),
    ):
        assert run(["generate", "Hello", *more]) == code
        assert message in capsys.readouterr().err
