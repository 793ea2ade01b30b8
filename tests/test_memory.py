"""Memory: estimates and what the ledger shows, refusals and what they propose, bounds, and allocations that fail."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import random_encoders
import random_models

from llamagpu import LLM, Embedder, gpu
from llamagpu.cli.main import run
from llamagpu.errors import OutOfMemoryError, UsageError
from llamagpu.gpu import Capacity, parse_bytes
from llamagpu.model import prepare
from llamagpu.model.encoder_config import parse_encoder
from llamagpu.model.encoder_layout import EncoderLayout
from llamagpu.model.encoder_sizes import plan_encoder
from llamagpu.model.estimate import TooLargeError
from llamagpu.model.families import FAMILIES, smaller_models
from llamagpu.model.hub.known import KNOWN
from llamagpu.model.sizes import plan_sizes
from llamagpu.model.sources import open_directory

EXACT = ("weights", "kv", "activations")


def decoder(folder: Path, name: str = "gqa", **changes: Any) -> Path:
    c = random_models.CONFIGS[name] | changes
    return random_models.write_model(folder, c, random_models.tensors(c, 3))


def encoder(folder: Path, name: str = "bert") -> Path:
    raw = random_encoders.CONFIGS[name]
    return random_encoders.write_model(folder, raw, random_encoders.tensors(raw, 1))


# --- estimates -------------------------------------------------------------------------------


def grown(device: gpu.Device, before: dict[str, int]) -> dict[str, int]:
    """Bytes that came to a device since then."""
    return {k: v - before.get(k, 0) for k, v in device.ledger.by_purpose().items()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("odd", {"dtype": "int8"}),
        pytest.param("vocab50257", {}, marks=pytest.mark.slow),
        pytest.param("all-biases", {"dtype": "float16", "context": 33}, marks=pytest.mark.slow),
        pytest.param("mistral-window", {"fused": False, "kv_dtype": "float16"}, marks=pytest.mark.slow),
        pytest.param("smollm3-window", {"dtype": "int4", "context": 100}, marks=pytest.mark.slow),
    ],
)
def test_an_estimate_is_what_the_ledger_shows(
    name: str, options: dict[str, Any], tmp_path: Path, device: gpu.Device
) -> None:
    """To the byte after loading, and within 5 % after generating."""
    before = device.ledger.by_purpose()
    with LLM(decoder(tmp_path, name), device=device, **options) as llm:
        estimate = llm.memory.estimate
        assert {k: grown(device, before)[k] for k in EXACT} == {k: estimate[k] for k in EXACT}
        assert estimate["total"] == sum(v for k, v in estimate.items() if k != "total")
        llm.generate(["a b c", "d"], max_tokens=3, ignore_eos=True)
        llm.generate("a b c", max_tokens=3, temperature=0.8, logprobs=2, ignore_eos=True)
        assert abs(sum(grown(device, before).values()) / estimate["total"] - 1) < 0.05
        use = llm.memory
        assert use.total == sum(use.held.values()) == device.ledger.held()
        assert use.limit is None or use.total <= use.peak <= use.limit


@pytest.mark.parametrize(("name", "dtype"), [("bert", "auto"), ("mpnet", "float16"), ("ernie", "int8")])
def test_an_estimate_of_an_encoder(name: str, dtype: str, tmp_path: Path, device: gpu.Device) -> None:
    before = device.ledger.by_purpose()
    with Embedder(encoder(tmp_path, name), dtype=dtype, device=device) as model:
        estimate = model.memory.estimate
        now = grown(device, before)
        pooled = 4 * model._model._session.encoder.rows * model._model.config.hidden_size  # made with the first text
        assert now | {"activations": now["activations"] + pooled} == now | {k: estimate[k] for k in EXACT}
        model.encode(["a1 a2", "a3 " * 40])
        now = grown(device, before)
        assert now["activations"] == estimate["activations"]
        assert abs(sum(now.values()) / estimate["total"] - 1) < 0.05


@pytest.mark.slow
def test_inspect_and_json_print_the_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*arguments: str) -> Any:
        assert run([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    path = str(decoder(tmp_path / "decoder"))
    for options in (("--context", "64"), ("--dtype", "int8", "--kv-dtype", "float16")):
        memory = printed("generate", "a", "-n", "2", "-m", path, *options)["memory"]
        estimate = printed("inspect", path, *options)["estimate"]
        assert {k: estimate[k] for k in memory["estimate"]} == memory["estimate"]
    one, four = (printed("inspect", path, "--context", "64", "--batch", b)["estimate"] for b in "14")
    assert four["kv"] < 4 * one["kv"]  # the cache has room for several contexts in any case
    assert four["pool"] == 256
    path = str(encoder(tmp_path / "encoder"))
    report = printed("inspect", path, "--context", "100")
    with Embedder(path, max_seq_length=100) as model:
        assert report["estimate"]["total"] == model.memory.estimate["total"]
    assert report["adapter"]["largest_context"]["auto"] == report["config"]["positions"] == 140
    assert run(["inspect", path, "--max-memory", "0.3MB"]) == 0  # it tells what does not fit
    text = capsys.readouterr().out
    assert "the model does not fit" in text.lower()
    assert "int8      does not fit" in text
    assert run(["inspect", path, "--batch", "2"]) == 2


# --- refusals --------------------------------------------------------------------------------


def capacity(free: int | None, binding: int = 2**30, kind: str = "software") -> Capacity:
    return Capacity("a stand-in", kind, free, binding, woven=True)


def test_every_change_that_a_refusal_names_makes_it_fit(tmp_path: Path) -> None:
    layout = prepare(decoder(tmp_path, "vocab50257", intermediate_size=2000)).layout
    with pytest.raises(TooLargeError) as refused:
        plan_sizes(layout, capacity(1), 640, "auto")
    whole, seen = refused.value.need, set()
    assert whole is not None
    for share in (0.999, 0.97, 0.9, 0.8, 0.7):
        limit = capacity(int(whole.total * share))
        with pytest.raises(OutOfMemoryError, match=f"needs {whole.total / 1e6:,.1f} MB") as caught:
            plan_sizes(layout, limit, 640, "auto")
        for change in caught.value.hint.split(", or "):
            options = dict(re.findall(r"--([\w-]+) (\w+)", change))
            seen |= options.keys()
            changed = layout.with_dtype(options.get("dtype", "auto"))
            context, kv_dtype = int(options.get("context", 640)), options.get("kv-dtype", "auto")
            assert plan_sizes(changed, limit, context, kv_dtype).total <= whole.total * share
    assert seen == {"context", "dtype", "kv-dtype"}
    with pytest.raises(OutOfMemoryError, match="exceeds a binding"):
        plan_sizes(layout, capacity(None, 50_000), 640, "auto")


def test_an_encoders_packs_shrink_until_they_fit(tmp_path: Path, device: gpu.Device) -> None:
    """To the longest text; then an error names what would fit. Vectors keep their bits."""
    path = encoder(tmp_path, "bert-wide")
    source = open_directory(path)
    layout = EncoderLayout(parse_encoder(source.config()), source)
    whole, cache = plan_encoder(layout, capacity(None)), 1024  # bytes of a position
    least = plan_encoder(layout, capacity(None, cache * whole.positions - 1))
    assert 140 <= least.rows < whole.rows == 512
    sizes = plan_encoder(layout, capacity(whole.total * 45 // 100))
    assert (sizes.rows, sizes.spread, least.spread) == (144, 1, 4)
    with pytest.raises(OutOfMemoryError, match="Weights") as caught:
        plan_encoder(layout, capacity(sizes.weights + 500_000))
    assert "--dtype float16" in caught.value.hint
    (length,) = re.findall(r"up to (\d+) tokens", caught.value.hint)
    assert plan_encoder(layout, capacity(sizes.weights + 500_000), int(length)).longest == int(length)
    texts = [f"a{i} " * (1 + 30 * (i % 5)) for i in range(20)]
    with Embedder(path, device=device) as large, Embedder(path, max_memory=whole.total * 45 // 100) as small:
        assert small._model._session.encoder.rows < large._model._session.encoder.rows
        assert (small.encode(texts) == large.encode(texts)).all()
        assert small.memory.limit == whole.total * 45 // 100 >= small.memory.peak


@pytest.mark.slow
@pytest.mark.parametrize("longest", [16, 20, 33, 47, 140])
def test_the_longest_text_has_room_in_the_smallest_cache(longest: int, tmp_path: Path, device: gpu.Device) -> None:
    path = encoder(tmp_path, "bert-wide")
    source = open_directory(path)
    layout = EncoderLayout(parse_encoder(source.config()), source)
    with pytest.raises(TooLargeError) as refused:
        plan_encoder(layout, capacity(1), longest)
    assert refused.value.need is not None
    most = refused.value.need.total + 1000  # an open device has buffers of its own
    with Embedder(path, max_memory=most, max_seq_length=longest) as least:
        assert least._model._session.encoder.sizes.spread == 1
        got = least.encode(["a1 " * 200, "a2", "a3 " * 30])
    with Embedder(path, device=device, max_seq_length=longest) as large:
        assert (large.encode(["a1 " * 200, "a2", "a3 " * 30]) == got).all()


def test_smaller_models_of_a_family() -> None:
    (found,) = smaller_models("meta-llama/Llama-3.2-3B-Instruct", "llama", 3_212_000_000, 3_000_000_000)
    assert "meta-llama/Llama-3.2-1B-Instruct" in found
    assert "dtype" not in found
    (found,) = smaller_models("my-tune", "qwen3", 4_000_000_000, 1_500_000_000)
    assert "Qwen3-1.7B (1,721 M parameters) with --dtype int4" in found
    assert smaller_models("my-tune", "llama", 100_000_000, 10**9) == []
    assert smaller_models("other", "phi3", 10**10, 10**10) == []
    published = {id for ids in KNOWN.values() for id in ids}
    decoders = {
        id for name, ids in FAMILIES.items() if name in ("llama-3.2", "smollm2", "qwen3", "gemma-3") for id in ids
    }
    assert decoders <= published
    for ids in FAMILIES.values():
        assert list(ids.values()) == sorted(ids.values(), reverse=True)


# --- bounds ----------------------------------------------------------------------------------


def test_sizes_in_words() -> None:
    given = {"4GB": 4e9, "512 MB": 512e6, "1.5GiB": 1.5 * 2**30, "7": 7, "2k": 2000, "3kib": 3072, 10: 10}
    assert {k: parse_bytes(k) for k in given} == given
    assert parse_bytes(None) is None
    for bad in ("", "GB", "-1", "4 gigabytes", "0", 0, True, 1.5, "nan", [4]):
        with pytest.raises(UsageError, match="max_memory is"):
            parse_bytes(bad)


def test_max_memory_bounds_a_model(
    tmp_path: Path, device: gpu.Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = decoder(tmp_path)
    with LLM(path, max_memory="3MB") as llm:
        assert llm.memory.limit == 3_000_000 >= llm.memory.peak
        assert llm.generate("a", max_tokens=2, ignore_eos=True).completion_tokens == 2
    for call in (LLM, Embedder):
        with pytest.raises(UsageError, match="An open device"):
            call(encoder(tmp_path / "e") if call is Embedder else path, device=device, max_memory="3MB")
    assert run(["generate", "a", "-m", str(path), "--max-memory", "much"]) == 2
    assert "--max-memory is 'much'" in capsys.readouterr().err
    assert run(["generate", "a", "-m", str(path), "--max-memory", "90kB"]) == 6
    monkeypatch.setenv("LLAMAGPU_MEMORY_LIMIT", "1GB")
    with gpu.open(memory_limit="2GB") as opened:
        assert opened.ledger.limit == 10**9
