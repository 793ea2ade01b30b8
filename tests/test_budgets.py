"""Budgets: dispatches, objects and bytes of a token, counted at the native library over 64 stream_census tokens."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import random_models

from llamagpu import LLM, gpu
from llamagpu.bench.measure import check_fits, open_subject, run_generation, run_prompt
from llamagpu.bench.parts import kv_read_bytes, weight_read_bytes
from llamagpu.cli.main import run
from llamagpu.errors import UsageError
from llamagpu.gpu import native
from llamagpu.gpu.census import Census, census
from llamagpu.kernels.kv_write import PAGE

TOKENS = 64
PROMPT = "Once upon a time, there was a little dog"


def stream_census(llm: LLM, tokens: int, **options: object) -> Census:
    """Native calls of a whole stream, prompt included."""
    with census() as counts:
        for _ in llm.stream(PROMPT, max_tokens=tokens, ignore_eos=True, reuse="none", **options):
            pass
    return counts


def decode_census(llm: LLM, tokens: int = TOKENS, **options: object) -> Census:
    """Native calls of decoding ``tokens`` tokens: those of a long stream minus those of a stream of one token."""
    stream_census(llm, tokens + 1, **options)
    few, many = stream_census(llm, 1, **options), stream_census(llm, tokens + 1, **options)
    many.calls.subtract(few.calls)
    many.bytes.subtract(few.bytes)
    return many


def others(device: gpu.Device, vocab: int) -> int:
    """Dispatches of a plain step outside the layers: four, or three where one workgroup can sample the vocabulary."""
    return 4 if vocab > device.tuning.chunk else 3


def test_budget_of_a_greedy_token(story: LLM) -> None:
    """Five dispatches a layer and three or four others; one encoder, pass and command buffer, or fewer where steps
    share them; at most 64 bytes each way."""
    counts = decode_census(story)
    more = others(story.device, story.config.vocab_size)
    assert counts.dispatches == TOKENS * (5 * story.config.num_hidden_layers + more)
    made = {name: n for name, n in counts.objects.items() if n}
    assert made.keys() == {
        "wgpuDeviceCreateCommandEncoder",
        "wgpuCommandEncoderBeginComputePass",
        "wgpuCommandEncoderFinish",
    }
    assert made["wgpuCommandEncoderBeginComputePass"] == TOKENS
    assert max(made.values()) == TOKENS
    assert counts.calls["wgpuQueueSubmit"] <= TOKENS
    assert counts.bytes["up"] <= 64 * TOKENS
    assert counts.bytes["down"] <= 64 * TOKENS


def test_budget_of_a_filtered_token(story: LLM) -> None:
    """Penalties and filters add two dispatches. Log-probabilities add only their own bytes."""
    counts = decode_census(story, temperature=0.8, top_k=20, repetition_penalty=1.1, seed=3, logprobs=5)
    more = others(story.device, story.config.vocab_size) + 2
    assert counts.dispatches == TOKENS * (5 * story.config.num_hidden_layers + more)
    assert sum(counts.objects.values()) <= 3 * TOKENS
    assert counts.bytes["up"] <= 4 * (TOKENS // PAGE + 1)  # entries of the page table
    assert counts.bytes["down"] <= TOKENS * (64 + 8 * 21)


def test_budget_of_a_token_with_a_grammar(story: LLM) -> None:
    """A mask adds a dispatch and vocab/8 bytes; it goes up between two command buffers, so that the host makes it while
    the device works."""
    counts = decode_census(story, regex=r"[\s\S]*")
    more = others(story.device, story.config.vocab_size) + 1
    assert counts.dispatches == TOKENS * (5 * story.config.num_hidden_layers + more)
    assert sum(counts.objects.values()) == 3 * 2 * TOKENS
    assert counts.bytes["up"] <= TOKENS * (story.config.vocab_size // 8 + 16)
    assert counts.bytes["down"] <= 64 * TOKENS


def test_budget_past_one_attention_run(tmp_path: Path, device: gpu.Device) -> None:
    """Past one attention run, the merge is a separate dispatch in each layer, or part of the projection."""
    c = random_models.config(max_position_embeddings=2048)
    random_models.write_model(tmp_path, c, random_models.tensors(c, 5))
    for merged_runs, more in ((1, c["num_hidden_layers"]), (4, 0)):
        tuning = replace(device.tuning, merged_runs=merged_runs)
        with device.using(tuning), LLM(tmp_path, device=device) as llm:
            counts = []
            for tokens in (1, 9):
                with census() as found:
                    llm.generate([1] * 300, max_tokens=tokens, ignore_eos=True)
                counts.append(found.dispatches)
            more += others(device, c["vocab_size"])
            assert counts[1] - counts[0] == 8 * (5 * c["num_hidden_layers"] + more)


@pytest.mark.parametrize(("name", "more"), [("qwen3", 1), ("olmo2", 3), ("gemma2", 2), ("ministral3", 1), ("phi3", 0)])
def test_budget_of_other_architectures(name: str, more: int, tmp_path: Path, device: gpu.Device) -> None:
    """QK norms take one more dispatch a layer, norms after attention and MLP two."""
    c = random_models.CONFIGS[name]
    random_models.write_model(tmp_path, c, random_models.tensors(c, 5))
    with LLM(tmp_path, device=device) as llm:
        counts = decode_census(llm, 8)
    assert counts.dispatches == 8 * ((5 + more) * c["num_hidden_layers"] + others(device, c["vocab_size"]))
    assert sum(counts.objects.values()) <= 3 * 8


def test_budget_of_pipelines() -> None:
    """A Llama in one format needs few pipelines. Loading makes those of a prompt's first token, by a dispatch of no
    workgroups each. All others are created on first use."""
    with gpu.open() as device:
        before = len(device.pipelines)
        assert before <= 1  # the one that measures the subgroup size
        with census() as loading:
            llm = LLM(device=device)
        with llm:
            made = len(device.pipelines) - before
            assert loading.pipelines == loading.dispatches == made
            assert stream_census(llm, 1).pipelines == 0
            used = {c.program for plan in llm.loaded.forward._plans.values() for c in plan.calls}
            assert len(used) == made
            assert stream_census(llm, TOKENS).pipelines + made <= 24
            assert stream_census(llm, TOKENS).pipelines == 0
        with census() as loading, LLM(device=device):  # all are made already
            assert loading.pipelines == loading.dispatches == 0


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that switches to wgpu-py's objects for the rest of a test."""
    return lambda: monkeypatch.setattr(native, "use_raw_pass", False)


def test_raw_calls_match_wgpu_objects(story: LLM, objects: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same text, the same native objects, the same dispatches."""
    monkeypatch.setattr("llamagpu.engine.rate.MOST_STEPS", 1)  # otherwise the number of encoders depends on the time
    if not native.has_raw_pass:
        pytest.skip("this wgpu has no raw calls")
    raw, text = decode_census(story), story.generate(PROMPT, max_tokens=40).token_ids
    gc.collect()  # objects that other tests left
    live = native.object_counts()
    objects()
    other = decode_census(story)
    assert story.generate(PROMPT, max_tokens=40).token_ids == text
    assert other.objects == raw.objects
    assert other.dispatches == raw.dispatches
    gc.collect()
    assert native.object_counts() == live


@pytest.mark.slow
def test_checked_and_unfused_give_the_same_text(device: gpu.Device) -> None:
    """The text is the same with and without bounds checks, and with the unfused forward pass."""
    texts = []
    for trusted, fused in ((True, True), (False, True), (True, False)):
        with device.using(replace(device.tuning, trusted=trusted)), LLM(device=device, fused=fused) as llm:
            texts.append([r.token_ids for r in llm.generate([PROMPT, "The cat"], max_tokens=60)])
    assert texts[0] == texts[1] == texts[2]


def test_an_ended_row_moves_to_the_padding_slot(story: LLM) -> None:
    """Steps still in flight when a sequence ends write to the padding slot."""
    ids = story.generate(PROMPT, max_tokens=12, ignore_eos=True).token_ids
    ended = story.generate(PROMPT, max_tokens=40, stop_token_ids=[ids[8]], ignore_eos=True)
    assert ended.token_ids == ids[:9]
    assert ended.finish_reason == "stop"
    model = story._session.model
    assert model.forward.state.rows.numpy()[0, 2] == model.cache.dump
    many = story.generate(PROMPT, max_tokens=40, stop_token_ids=[ids[8], *range(2010, 2040)], ignore_eos=True)
    assert many.token_ids == ids[:9]  # more stop ids than the GPU checks


# --- llamagpu bench ------------------------------------------------------------------------


def test_bench_subject() -> None:
    """The figures that a run reports are consistent."""
    with open_subject(None, None, context=256) as subject:
        c, model = subject.model.config, subject.model
        found = run_generation(subject, 12, 20, 1, 2)
        assert found.test == "tg12 @ d20"
        assert len(found.samples_ts) == 2
        assert found.read_bytes == weight_read_bytes(model.weights) + kv_read_bytes(c, 26, model.sizes.kv_dtype)
        assert weight_read_bytes(model.weights) <= subject.weight_bytes
        assert found.counted is not None
        assert found.counted.dispatches == 16 * (5 * c.num_hidden_layers + others(subject.model.device, c.vocab_size))
        assert found.parts is not None
        assert found.parts.encode_s < found.parts.encode_objects_s
        several = run_generation(subject, 6, 0, 4, 1)
        assert several.test == "tg6 x4"
        assert several.avg_ts > 0
        assert run_prompt(subject, 40, 1).test == "pp40"
        with pytest.raises(UsageError, match="does not fit the context"):
            check_fits(subject, 257, 1)


@pytest.mark.parametrize("form", [*(pytest.param(f, marks=pytest.mark.slow) for f in ("md", "csv", "json")), "jsonl"])
def test_bench_command(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "-p", "16", "-n", "4", "-r", "1", "-o", form, "--context", "64", "-b", "1,2"]
    assert run(arguments if form == "md" else [*arguments[:-2]]) == 0
    out = capsys.readouterr()
    if form == "md":
        assert [line.split("|")[5].strip() for line in out.out.splitlines()[2:]] == ["pp16", "tg4", "tg4 x2"]
    elif form == "csv":
        assert out.out.splitlines()[0].startswith("build_number,backends,gpu_info")
    else:
        records = json.loads(out.out) if form == "json" else [json.loads(line) for line in out.out.splitlines()]
        assert [r["test"] for r in records] == ["pp16", "tg4"]
        assert 1 < records[1]["objects_per_token"] <= 3
        assert np.isclose(records[1]["avg_ts"], np.mean(records[1]["samples_ts"]))
    assert "multiply-adds" in out.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "nonsense"], "Unknown shape"),
        (["-p", "0", "-n", "0"], "nothing to measure"),
        (["-p", "x"], "not a list of whole numbers"),
        (["-b", "0"], "below 1"),
        (["-m", "weights/stories", "--shape", "smollm2-135m"], "exclude one another"),
        (["--context", "64", "-p", "100"], "does not fit the context"),
        (["-b", "33", "-n", "4"], "cannot run in one batch"),
        (["--dtype", "int3"], "Unknown dtype"),
    ],
)
def test_bench_usage_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


# --- llamagpu profile ----------------------------------------------------------------------


def test_profile_command(tmp_path: Path, device: gpu.Device, capsys: pytest.CaptureFixture[str]) -> None:
    """Every dispatch of a step is in the table and in the trace, between the host's submit and the end of its wait."""
    out = tmp_path / "trace.json"
    assert run(["profile", "-d", "20", "-r", "2", "--json", "--trace", str(out), "--context", "64"]) == 0
    found = json.loads(capsys.readouterr().out)
    c = json.loads(Path("weights/stories/config.json").read_text())
    dispatches = 5 * c["num_hidden_layers"] + others(device, c["vocab_size"])
    assert sum(k["calls"] for k in found["kernels"]) == dispatches
    assert np.isclose(sum(k["share"] for k in found["kernels"]), 1)
    assert found["gpu_s"] > 0
    trace = json.loads(out.read_text())
    events = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    gpu_events, host = ([e for e in events if e["pid"] == pid] for pid in (2, 1))
    assert len(gpu_events) == 2 * dispatches
    assert [e["name"] for e in host] == 2 * ["encode", "submit", "wait"]
    slack = trace["otherData"]["uncertainty_us"] + 1
    for number in range(2):
        _, submit, wait = host[3 * number : 3 * number + 3]
        mine = gpu_events[number * dispatches :][:dispatches]
        assert mine[0]["ts"] >= submit["ts"] - slack
        assert mine[-1]["ts"] + mine[-1]["dur"] <= wait["ts"] + wait["dur"] + slack
    assert run(["profile", "-p", "10", "-r", "1", "--context", "64"]) == 0
    assert "attention_prefill" in capsys.readouterr().out
    assert run(["profile", "--trace", str(tmp_path / "nowhere" / "t.json")]) == 2


@pytest.mark.slow
def test_profile_without_timestamps_in_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without timestamps inside passes, every dispatch gets its own pass. Without any timestamps, profile fails."""
    wanted = "llamagpu.gpu.adapter.WANTED_FEATURES"
    monkeypatch.setattr(wanted, ("timestamp-query",))
    assert run(["profile", "-r", "1", "-d", "5", "--context", "64"]) == 0
    assert "a pass per dispatch" in capsys.readouterr().err
    monkeypatch.setattr(wanted, ())
    assert run(["profile", "-r", "1", "-d", "5", "--context", "64"]) == 1
    assert "no timestamp queries" in capsys.readouterr().err
