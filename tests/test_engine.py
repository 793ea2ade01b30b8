"""Generation: results, streams, stops, seeds, overlapping calls, cancellation, errors."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
from safetensors.numpy import load_file

from llamagpu import LLM, gpu
from llamagpu.errors import DeviceLostError, LlamaGPUError, UsageError

PROMPT = "Once upon a time"


def test_generate(story: LLM) -> None:
    result = story.generate(PROMPT, max_tokens=30)
    assert result.finish_reason == "length"
    assert not result.context_full
    assert result.completion_tokens == 30
    assert result.prompt_token_ids == story.tokenize(PROMPT)
    assert result.text == story.detokenize(result.token_ids)
    assert result.text.strip()
    assert result.timings.prefill_s > 0
    assert result.timings.decode_s > 0
    assert json.loads(json.dumps(result.as_dict()))["completion_tokens"] == 30


def test_greedy_is_the_arg_max_of_the_logits(story: LLM) -> None:
    """Decode and prefill agree: every greedy token is the best of the logits that prefill gives."""
    result = story.generate(PROMPT, max_tokens=40)
    logits = story.logits(result.prompt_token_ids + result.token_ids)
    first = result.prompt_tokens - 1
    rows = logits[first : first + 40]
    gap = np.diff(np.sort(rows, axis=1)[:, -2:], axis=1).min()
    assert gap > 1e-3, "this prompt is too close a call for the test"
    assert rows.argmax(axis=1).tolist() == result.token_ids


def test_every_prompt_length_around_chunks_and_pages(story: LLM) -> None:
    """Attention is causal, so a shorter prefill, in other chunks, gives the logits of one long prefill."""
    ids = story.tokenize("Once upon a time there was a little dog who liked to run and play in the big park. " * 18)[
        :300
    ]
    assert len(ids) == 300
    whole = story.logits(ids)
    for length in (1, 2, 3, 5, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 200, 255, 257):
        assert np.abs(story.logits(ids[:length])[-1] - whole[length - 1]).max() < 1e-3


def test_stream_matches_generate(story: LLM) -> None:
    stream = story.stream(PROMPT, max_tokens=25)
    pieces = list(stream)
    assert len(pieces) > 5
    assert "".join(pieces) == stream.result.text == story.generate(PROMPT, max_tokens=25).text


def test_prompts_as_ids_and_lists(story: LLM) -> None:
    ids = story.tokenize(PROMPT)
    lone = story.generate(PROMPT, max_tokens=8)
    assert story.generate(ids, max_tokens=8).token_ids == lone.token_ids
    several = story.generate([PROMPT, "Tom", PROMPT], max_tokens=8)
    assert [r.token_ids for r in several][::2] == [lone.token_ids] * 2
    assert several[1].token_ids == story.generate("Tom", max_tokens=8).token_ids


def test_seeds(story: LLM) -> None:
    a, b, c = (story.generate(PROMPT, max_tokens=20, temperature=1.0, seed=s) for s in (5, 5, 6))
    assert a.token_ids == b.token_ids != c.token_ids
    assert a.seed == 5
    drawn = story.generate(PROMPT, max_tokens=20, temperature=1.0)
    assert drawn.seed is not None
    assert story.generate(PROMPT, max_tokens=20, temperature=1.0, seed=drawn.seed).token_ids == drawn.token_ids
    assert story.generate(PROMPT, max_tokens=2).seed is None


def test_stops(story: LLM) -> None:
    text = story.generate(PROMPT, max_tokens=60).text
    stop = text[20:24]
    result = story.generate(PROMPT, max_tokens=60, stop=stop)
    assert result.finish_reason == "stop"
    assert result.text == text[: text.index(stop)]
    assert story.generate(PROMPT, max_tokens=60, stop=["never appears", stop]).text == result.text
    ids = story.generate(PROMPT, max_tokens=60).token_ids
    by_id = story.generate(PROMPT, max_tokens=60, stop_token_ids=[ids[7]])
    assert by_id.token_ids == ids[: ids.index(ids[7]) + 1]
    assert by_id.finish_reason == "stop"


def test_the_model_ends_its_text(story: LLM) -> None:
    (eos,) = story.config.eos_token_id
    ids = story.tokenize(PROMPT)
    with_eos = next(r for s in range(20) if (r := story.generate(ids, temperature=0.8, seed=s)).finish_reason == "stop")
    assert with_eos.token_ids[-1] == eos
    assert "<|" not in with_eos.text
    on = story.generate(ids, temperature=0.8, seed=with_eos.seed, ignore_eos=True)
    assert on.completion_tokens == 256


def test_generation_stops_at_a_full_context(story: LLM) -> None:
    ids = (story.tokenize("The dog and the cat went to the park to play. ") * 60)[: story.context]
    full = story.generate(ids, max_tokens=50)
    assert (full.completion_tokens, full.finish_reason, full.context_full) == (1, "length", True)
    nearly = story.generate(ids[:-10], max_tokens=50, ignore_eos=True)
    assert (nearly.completion_tokens, nearly.context_full) == (11, True)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "prompt is empty"),
        ([[]], {}, "prompt is empty"),
        ([2048], {}, "2048 is not a token id"),
        ([-1], {}, "-1 is not a token id"),
        ([5] * 513, {}, "The prompt has 513 tokens; the context holds 512"),
        ("a", {"max_tokens": 0}, "max_tokens is 0"),
        ("a", {"max_tokens": 1.5}, "max_tokens is 1.5"),
        ("a", {"temperature": -0.1}, "temperature is -0.1"),
        ("a", {"temperature": float("nan")}, "temperature is nan"),
        ("a", {"temperature": float("inf")}, "temperature is inf"),
        ("a", {"temperature": 1e-9}, "temperature is 1e-09"),
        ("a", {"seed": -1}, "seed is -1"),
        ("a", {"seed": 2**32}, "seed is 4294967296"),
        ("a", {"stop": ""}, "stop is ''"),
        ("a", {"stop": ["x", ""]}, "stop is"),
        ("a", {"stop_token_ids": [-3]}, "stop_token_ids is"),
        (["a", ""], {}, "prompt is empty"),
        (["a", 3], {}, "Item 1: 3 is no prompt"),
        (None, {}, "is not a prompt"),
        (5, {}, "is not a prompt"),
        (b"abc", {}, "is not a prompt"),
        ([1.5], {}, "1.5 is not a token id"),
        ([True], {}, "True is not a token id"),
        ("\ud800", {}, "is not text"),
        ("word " * 10000, {}, "The prompt has 50,000 characters"),
        ("a", {"stop": 5}, "stop is 5"),
        ("a", {"stop_token_ids": 5}, "stop_token_ids is 5"),
        ("a", {"logit_bias": [1]}, "logit_bias is"),
        ("a", {"temperature": "hot"}, "temperature is 'hot'"),
        ("a", {"max_tokens": True}, "max_tokens is True"),
    ],
)
def test_bad_arguments(story: LLM, prompt: object, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        story.generate(prompt, **options)
    assert caught.value.exit_code == 2
    assert isinstance(caught.value, ValueError)


def test_unknown_keywords_are_type_errors(story: LLM) -> None:
    with pytest.raises(TypeError, match="temprature"):
        story.generate("a", temprature=1.0)
    with pytest.raises(TypeError):
        LLM(modle="x")
    with pytest.raises(UsageError, match="not a token id"):
        story.detokenize([99999])


def test_overlapping_calls_take_turns(story: LLM) -> None:
    """Calls from several threads, and streams read in turns, give the same tokens as alone."""
    prompts = ["Once upon a time", "Tom had a red ball", "The sun was", "Lily and her mom"]
    alone = [story.generate(p, max_tokens=24).token_ids for p in prompts]
    together: dict[str, list[int]] = {}

    def work(p: str) -> None:
        together[p] = story.generate(p, max_tokens=24).token_ids

    threads = [threading.Thread(target=work, args=(p,)) for p in prompts]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [together[p] for p in prompts] == alone
    streams = [story.stream(p, max_tokens=24) for p in prompts]
    open_ = list(streams)
    while open_:
        open_ = [s for s in open_ if next(s, None) is not None]
    assert [s.result.token_ids for s in streams] == alone


def test_requests_beyond_the_cache_wait(story: LLM) -> None:
    free = story._session.model.cache.free_pages
    streams = [story.stream(PROMPT, max_tokens=500, stop_token_ids=[story.tokenize(PROMPT)[1]]) for _ in range(4)]
    for s in streams:
        next(s)
        s.close()
    assert {s.result.finish_reason for s in streams} <= {"cancelled", "stop", "length"}
    assert story.generate(PROMPT, max_tokens=3).completion_tokens == 3
    assert story._session.model.cache.free_pages == free


def test_arguments_from_numpy_and_generators(story: LLM) -> None:
    ids = story.tokenize(PROMPT)
    alone = story.generate(ids, max_tokens=6, temperature=0.5, seed=3).token_ids
    options = {"max_tokens": np.int64(6), "temperature": np.float32(0.5), "seed": np.uint32(3), "stop": None}
    assert story.generate(np.array(ids), **options).token_ids == alone
    assert story.generate((i for i in ids), **options).token_ids == alone
    assert [r.token_ids for r in story.generate((p for p in [PROMPT, PROMPT]), **options)] == [alone, alone]
    assert story.detokenize(i for i in ids) == PROMPT
    assert story.logits(np.array(ids)).shape == (len(ids), 2048)


def test_a_stream_ends_once(device: gpu.Device) -> None:
    """Every read of the result raises the error again. A request after closing gets an error too."""
    llm = LLM(device=device)
    stream = llm.stream(PROMPT, max_tokens=400, ignore_eos=True)
    next(stream)
    engine = llm._session.engine
    llm.close()
    for _ in range(2):
        with pytest.raises(DeviceLostError, match="closed"):
            _ = stream.result
    from llamagpu.engine.request import Request
    from llamagpu.engine.stream import next_event

    late = engine.submit(Request((1, 2), 3))
    with pytest.raises(DeviceLostError, match="closed"):
        next_event(late)


def test_dropped_models_free_their_memory(device: gpu.Device) -> None:
    import gc

    gc.collect()
    held = device.ledger.held("weights")
    LLM(device=device).generate(PROMPT, max_tokens=2)
    gc.collect()
    device.synchronize()
    assert device.ledger.held("weights") == held


def test_leaving_a_stream_stops_it(story: LLM) -> None:
    with story.stream(PROMPT, max_tokens=400) as stream:
        for _, _piece in zip(range(3), stream, strict=False):
            pass
    assert stream.result.finish_reason == "cancelled"
    assert 3 <= stream.result.completion_tokens < 300
    before = story.device.ledger.held()
    for _ in range(3):
        next(story.stream(PROMPT, max_tokens=400))  # dropped without closing
    assert story.generate("a", max_tokens=2).completion_tokens == 2
    assert story.device.ledger.held() == before


def test_nothing_is_allocated_while_tokens_flow() -> None:
    with LLM() as llm:
        llm.generate(PROMPT, max_tokens=4)
        made, held = len(llm.device.pipelines), llm.device.ledger.held()
        stream = llm.stream(PROMPT, max_tokens=40)
        next(stream)
        peak = llm.device.ledger.peak
        for _ in stream:
            assert llm.device.ledger.held() == held
        assert llm.device.ledger.peak == peak
        assert len(llm.device.pipelines) == made <= 24


def test_decode_across_attention_runs(device: gpu.Device, tmp_path: Path) -> None:
    """Past 256 positions decode merges several attention runs. Its tokens still match prefill."""
    c = random_models.config(max_position_embeddings=1024)
    random_models.write_model(tmp_path, c, random_models.tensors(c, 11, 1.4))
    with LLM(tmp_path, device=device) as llm:
        result = llm.generate(random_models.prompt(c, 500, 1), max_tokens=60)
        logits = llm.logits(result.prompt_token_ids + result.token_ids)[499:559]
        gaps = np.diff(np.sort(logits, axis=1)[:, -2:], axis=1)[:, 0]
        same = logits.argmax(axis=1) == result.token_ids
        assert same[gaps > 1e-3].all()
        assert (gaps > 1e-3).mean() > 0.9


def test_logits_that_are_not_finite_are_reported(device: gpu.Device, tmp_path: Path) -> None:
    c = random_models.config()
    weights = random_models.tensors(c, 1)
    weights["model.norm.weight"][3] = np.inf
    random_models.write_model(tmp_path, c, weights)
    with LLM(tmp_path, device=device) as llm:
        with pytest.raises(LlamaGPUError, match="logits are not finite"):
            llm.generate([1, 2, 3], max_tokens=5)
        assert llm._session.model.cache.free_slots == 32


def test_one_broken_sequence_leaves_the_others_alone(device: gpu.Device, tmp_path: Path) -> None:
    """In a batch, a token with an infinite embedding breaks only the sequence that generates it."""
    c = random_models.config()
    weights = random_models.tensors(c, 1)
    random_models.write_model(tmp_path / "good", c, weights)
    with LLM(tmp_path / "good", device=device) as llm:
        first = llm.generate([1, 2, 3], max_tokens=6)
        second = llm.generate([4, 5], max_tokens=6)
    (poison,) = set(first.token_ids[2:3]) - set(second.token_ids) or {None}
    assert poison is not None
    weights["model.embed_tokens.weight"][poison] = np.inf
    random_models.write_model(tmp_path / "bad", c, weights)
    with LLM(tmp_path / "bad", device=device) as llm:
        broken, whole = llm.stream([1, 2, 3], max_tokens=6), llm.stream([4, 5], max_tokens=6)
        assert whole.result.token_ids == second.token_ids
        with pytest.raises(LlamaGPUError, match="after 6 tokens"):
            _ = broken.result


def test_close(device: gpu.Device) -> None:
    held = device.ledger.held()
    llm = LLM(device=device)
    stream = llm.stream(PROMPT, max_tokens=400)
    next(stream)
    llm.close()
    llm.close()
    with pytest.raises(DeviceLostError, match="closed"):
        _ = stream.result
    with pytest.raises(DeviceLostError, match="closed"):
        llm.generate(PROMPT)
    assert device.ledger.held() == held
    assert "closed" in repr(llm)


LOSS = """
from llamagpu import LLM
from llamagpu.errors import DeviceLostError
llm = LLM(recover=False)
stream = llm.stream("Once upon a time", max_tokens=400)
for _ in range(5):
    next(stream)
llm.device.call(llm.device.memory.handle.destroy)
for attempt in (lambda: stream.result, lambda: llm.generate("a"), lambda: llm.logits([1, 2])):
    try:
        attempt()
    except DeviceLostError as e:
        print("lost:", e.what)
llm.close()
with LLM() as again:
    print(again.generate("Once upon a time", max_tokens=3).completion_tokens)
"""


@pytest.mark.slow
def test_a_device_destroyed_in_mid_generation_without_recovery() -> None:
    done = subprocess.run([sys.executable, "-c", LOSS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["lost: The GPU device was lost."] * 3 + ["3"]


# --- errors stay with their request ----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_token_ids": [2**32]}, "stop_token_ids is 4294967296"),
        ({"stop_token_ids": np.array([2048])}, "stop_token_ids is 2048"),
        ({"logit_bias": {2**70: 1.0}}, "a token of logit_bias is"),
        ({"logit_bias": {1: 10**400}}, r"logit_bias\[1\] is"),
        ({"temperature": 10**400}, "temperature is 1000"),
        ({"temperature": 10**5000}, "a number with thousands of digits"),
        ({"seed": 10**5000}, "a number with thousands of digits"),
        ({"top_k": -(10**5000)}, "a number with thousands of digits"),
        ({"max_tokens": 0.5 + 1j}, "max_tokens is"),
        ({"ignore_eos": "yes"}, "ignore_eos is"),
    ],
)
def test_out_of_range_values_are_refused(story: LLM, options: dict, message: str) -> None:
    """The error comes before anything is queued, and a generation in progress continues."""
    with story.stream(PROMPT, max_tokens=8) as other:
        with pytest.raises(UsageError, match=message):
            story.generate("a", **options)
        assert other.result.completion_tokens == 8
    with pytest.raises(UsageError, match="thousands of digits"):
        story.generate([10**5000])


def test_huge_values_in_range(story: LLM) -> None:
    """max_tokens beyond the context, top_k beyond the vocabulary, and ids in arrays."""
    ids = np.array(story.tokenize(PROMPT))
    expected = story.generate(PROMPT, max_tokens=4).token_ids
    options = {"stop_token_ids": np.array([5, 6]), "logit_bias": {np.int64(3): np.float32(0)}}
    assert story.generate(ids, max_tokens=4, top_k=10**5000, **options).token_ids == expected
    context_full = story.generate(PROMPT, max_tokens=10**400, stop_token_ids=[expected[2]])
    assert context_full.token_ids == expected[:3]


@pytest.mark.parametrize("where", ["begin", "prefill", "launch"])
def test_an_error_ends_only_its_request(where: str, device: gpu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(device=device, context=64) as llm:
        expected = llm.generate(PROMPT, max_tokens=20).token_ids
        runner = llm._session.engine._runner
        original = getattr(runner, where)

        def failing(subject: Any, *more: Any) -> Any:
            concerned = [subject] if where == "begin" else [s[0] if isinstance(s, tuple) else s for s in subject]
            if any(s.request.settings.seed == 13 for s in concerned):
                raise ZeroDivisionError("odd")
            return original(subject, *more)

        monkeypatch.setattr(runner, where, failing)
        good, bad = llm.stream(PROMPT, max_tokens=20), llm.stream("Tom", max_tokens=20, seed=13, logprobs=1)
        with pytest.raises(ZeroDivisionError):
            _ = bad.result
        assert good.result.token_ids == expected
        assert llm.generate("Tom", max_tokens=3).completion_tokens == 3
        assert llm._session.model.cache.free_slots == 32


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 4, "repetition_penalty": 1.2, "top_k": 40}])
def test_a_sequence_resumes_from_its_tokens(device: gpu.Device, options: dict) -> None:
    """It loses slot and pages in the middle, and goes on with the same tokens."""
    with LLM(device=device) as llm:
        expected = llm.generate(PROMPT, max_tokens=30, **options).token_ids
        engine, stream = llm._session.engine, llm.stream(PROMPT, max_tokens=30, **options)
        for _ in range(4):
            next(stream)

        def lose() -> None:
            engine._land_all()
            (sequence,) = engine.scheduler.active
            engine._runner.end(sequence)
            engine.scheduler.preempt(sequence)

        device.call(lose)
        assert stream.result.token_ids == expected


def test_lists_of_prompts(story: LLM) -> None:
    ids = story.tokenize(PROMPT)
    alone = story.generate(ids, max_tokens=4).token_ids
    assert story.generate([], max_tokens=4) == []
    found = story.generate([ids, np.array(ids), PROMPT], max_tokens=4)
    assert [r.token_ids for r in found] == [alone] * 3


def test_the_signature_shows_defaults() -> None:
    parameters = inspect.signature(LLM.generate).parameters
    assert parameters["max_tokens"].default == 256
    assert parameters["temperature"].default == 0.0
    assert "options" not in parameters
    with pytest.raises(TypeError, match=r"chat\(\) got an unexpected keyword argument 'temprature'"):
        LLM.chat(None, [], temprature=1)  # type: ignore[call-arg,arg-type]


# --- text after the prompt ---------------------------------------------------------------------


def test_new_text_continues_the_prompt(shared: Path, device: gpu.Device) -> None:
    """A SentencePiece decoder drops the leading space of its first token; generated text keeps it."""
    with LLM(shared / "models" / "stories260k", device=device) as llm:
        result = llm.generate("Lily and Tim", max_tokens=12)
        assert result.text.startswith(" were")
        assert "".join(llm.stream("Lily and Tim", max_tokens=12)) == result.text
        whole = result.prompt_token_ids + result.token_ids
        assert "Lily and Tim" + result.text == llm.detokenize(whole)
        assert not llm.generate([1], max_tokens=5).text.startswith(" ")  # text begins after BOS


# --- real models ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stories260k", "tinystories-656k"])
def test_real_models(shared: Path, device: gpu.Device, name: str) -> None:
    """Trained checkpoints in their stored dtype, against transformers: greedy ids, text and logits."""
    directory = shared / "models" / name
    cases = json.loads((directory / "expected.json").read_text())["cases"]
    expected = load_file(directory / "expected_logits.safetensors")
    assert len(cases) == 3
    with LLM(directory, device=device) as llm:
        for case in cases:
            assert llm.tokenize(case["prompt"]) == case["prompt_ids"]
            result = llm.generate(case["prompt"], max_tokens=200)
            assert result.token_ids == case["greedy_ids"]
            ended = result.finish_reason == "stop"
            text = llm.detokenize(result.token_ids[:-1] if ended else result.token_ids, skip_special_tokens=False)
            assert text == case["greedy_text"].removesuffix("<|end_story|>" if ended else "")
            assert result.text == case["continuation_text"].removesuffix(" <|end_story|>" if ended else "")
            ids = (case["prompt_ids"] + case["greedy_ids"])[: case["logits_over_first_n_tokens"]]
            error = np.abs(llm.logits(ids) - expected[case["logits_tensor"]]).max()
            print(f"{name}: logits within {error:.1e}")
            assert error < 1e-3


def test_published_text(shared: Path, device: gpu.Device) -> None:
    directory = shared / "models" / "tinystories-656k"
    prompt = (directory / "ref_prompt.txt").read_text()
    with LLM(directory, device=device) as llm:
        result = llm.generate(prompt, max_tokens=200)
    assert (prompt + result.text).strip() == (directory / "ref_output.txt").read_text().strip()


@pytest.mark.slow
def test_a_135m_model_loads_and_decodes(tmp_path: Path, device: gpu.Device) -> None:
    """The shape of SmolLM2-135M with random weights in bfloat16: 30 layers, vocabulary 49,152, tied."""
    c = random_models.config(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        torch_dtype="bfloat16",
    )
    random_models.write_model(tmp_path, c, random_models.tensors(c, 1))
    with LLM(tmp_path, device=device, context=256) as llm:
        assert llm.sizes.weights > 250e6
        result = llm.generate([1, 2, 3, 4, 5], max_tokens=4)
        assert result.completion_tokens == 4
        row = llm.logits([1, 2, 3, 4, 5])[-1]
        assert row.argmax() == result.token_ids[0]


def test_a_stream_can_be_taken_without_waiting(story: LLM) -> None:
    """Each token is known with the characters before it; those of a stop string are tokens too."""
    woken = threading.Event()
    stream = story.stream("Once upon a time", max_tokens=30, stop=[" named"], logprobs=1)
    stream.listen(woken.set)
    text = ""
    while not stream.done:
        assert woken.wait(10)
        woken.clear()
        text += stream.take()
    assert text == stream.result.text == ", there was a little girl"
    names = [story.token_bytes(token.id).decode() for token in stream.tokens]
    assert "".join(names) == f"{text} named"
    offsets = [len("".join(names[:i])) for i in range(len(names))]
    assert [token.offset for token in stream.logprobs] == [*offsets[:-1], None]
    assert [token.text for token in stream.logprobs] == names
    assert stream.take() == ""
    closed = story.stream("Once upon a time", max_tokens=400, ignore_eos=True)
    closed.close()
    closed.listen(woken.set)
    while not closed.done:
        assert woken.wait(10)
        woken.clear()
        closed.take()
    assert closed.result.finish_reason == "cancelled"
