"""Sampling settings through the API, and batches, which change no sequence's result."""

from __future__ import annotations

import numpy as np
import pytest

from llamagpu import LLM, gpu, kernels
from llamagpu.errors import UsageError
from llamagpu.kernels.logits_cases import SETTINGS
from llamagpu.kernels.sampling_cases import SAMPLE
from llamagpu.kernels.sampling_reference import choose_row, process_row
from llamagpu.kernels.step import Settings

PROMPTS = [
    "Once upon a time",
    "Tom had a red ball. He",
    "The sun was",
    "Lily and her mom went to the big park to see the ducks and",
    "One day",
    "A little bird",
    "Ben",
    "There was a cat who",
    "Max the dog",
    "Sue said",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_sampling_matches_the_reference_over_a_thousand_rows(name: str, device: gpu.Device) -> None:
    """Every token matches, except in a few rows whose own margin is below 1e-5."""
    left_out = 0
    for seed, (rows, vocab) in enumerate(((500, 105), (300, 2048), (170, 8192), (25, 50257), (6, 128256))):
        dims = {"rows": rows, "vocab": vocab, "settings": name}
        report = kernels.check(SAMPLE, device, dims, seed)
        assert report.ok, str(report)
        expected = SAMPLE.reference(SAMPLE.inputs(np.random.default_rng(seed), dims), dims)
        left_out += int(np.isinf(expected["result"].scale[:, 0]).sum())
    print(f"{name}: {left_out} of 1001 rows left out")
    assert left_out <= 20


def test_settings_reach_the_gpu(story: LLM) -> None:
    """Each token is the choice of the numpy reference from the model's logits with the same settings."""
    options = {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2}
    options |= {"presence_penalty": 0.3, "frequency_penalty": 0.2, "seed": 11, "logit_bias": {260: 1.5, 300: -2.0}}
    result = story.generate(PROMPTS[0], max_tokens=24, **options)
    ids, agreed = result.prompt_token_ids + result.token_ids, 0
    logits = story.logits(ids)
    settings = Settings(**{k: v for k, v in options.items() if k != "logit_bias"}, biased=True)
    bias = np.zeros(story.config.vocab_size)
    bias[260], bias[300] = 1.5, -2.0
    for i, token in enumerate(result.token_ids):
        at = result.prompt_tokens + i
        counts = np.bincount(result.token_ids[:i], minlength=len(bias)).astype(np.uint32)
        counts[result.prompt_token_ids] |= np.uint32(1 << 31)
        scores = process_row(logits[at - 1], settings, counts, bias)
        chosen, margin = choose_row(scores, settings, at)
        agreed += chosen == token
        assert chosen == token or margin < 1e-3
    assert agreed >= len(result.token_ids) - 1


def test_penalties_and_bias(story: LLM) -> None:
    plain = story.generate(PROMPTS[0], max_tokens=60)
    penal = story.generate(PROMPTS[0], max_tokens=60, repetition_penalty=1.5)
    assert len(set(penal.token_ids)) > len(set(plain.token_ids))
    first = plain.token_ids[0]
    banned = story.generate(PROMPTS[0], max_tokens=60, logit_bias={first: -1000})
    assert first not in banned.token_ids
    forced = story.generate(PROMPTS[0], max_tokens=5, logit_bias={first: 1000}, ignore_eos=True)
    assert forced.token_ids == [first] * 5
    # The next request does not inherit the bias of its slot.
    assert story.generate(PROMPTS[0], max_tokens=60).token_ids == plain.token_ids
    assert story.generate(PROMPTS[0], max_tokens=60, frequency_penalty=0.0, logprobs=1).token_ids == plain.token_ids


def test_top_k_of_one_is_greedy(story: LLM) -> None:
    greedy = story.generate(PROMPTS[0], max_tokens=30).token_ids
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 0.999999}):
        assert story.generate(PROMPTS[0], max_tokens=30, temperature=1.0, **options).token_ids == greedy


def test_logprobs(story: LLM) -> None:
    result = story.generate(PROMPTS[0], max_tokens=12, logprobs=5, temperature=0.8, seed=2)
    logits = story.logits(result.prompt_token_ids + result.token_ids).astype(np.float64)
    assert result.logprobs is not None
    assert [t.id for t in result.logprobs] == result.token_ids
    for i, token in enumerate(result.logprobs):
        row = logits[result.prompt_tokens - 1 + i]
        expected = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert abs(token.logprob - expected[token.id]) < 1e-4
        assert [t for t, _ in token.top] == np.argsort(-expected, kind="stable")[:5].tolist()
        assert np.abs(np.array([p for _, p in token.top]) - np.sort(expected)[::-1][:5]).max() < 1e-4
    assert story.generate(PROMPTS[0], max_tokens=3).logprobs is None
    assert result.as_dict()["logprobs"][0]["top"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 1}, "min_p is 1"),
        ({"min_p": float("nan")}, "min_p is nan"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"presence_penalty": 101}, "presence_penalty is 101"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty is inf"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"logprobs": 0}, "logprobs is 0"),
        ({"logit_bias": {2048: 1.0}}, "token of logit_bias is 2048"),
        ({"logit_bias": {-1: 1.0}}, "a token of logit_bias is -1"),
        ({"logit_bias": {1: float("-inf")}}, r"logit_bias\[1\] is -inf"),
    ],
)
def test_bad_settings(story: LLM, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        story.generate("a", **options)


# --- batches -------------------------------------------------------------------------------

MIXED = [
    {},
    {"temperature": 0.8, "seed": 3},
    {"temperature": 1.0, "seed": 4, "top_p": 0.9},
    {"repetition_penalty": 1.2},
    {"logprobs": 3},
]


@pytest.mark.parametrize("count", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 8, 10))])
def test_a_list_of_prompts_matches_single_prompts(story: LLM, count: int) -> None:
    """Every token matches, greedy and sampled, with prompts of different lengths."""
    for options in MIXED:
        alone = [story.generate(p, max_tokens=20, **options).token_ids for p in PROMPTS[:count]]
        together = story.generate(PROMPTS[:count], max_tokens=20, **options)
        assert [r.token_ids for r in together] == alone


def logit_bits(llm: LLM, requests: list[tuple[str, dict]]) -> list[list[tuple]]:
    """The twenty largest log-probabilities at every token, for comparison bit for bit."""
    streams = [llm.stream(p, max_tokens=12, logprobs=20, **options) for p, options in requests]
    return [[(t.id, t.logprob, *t.top) for t in s.result.logprobs or []] for s in streams]


@pytest.mark.parametrize(
    ("tuning", "dtype"),
    [
        pytest.param(None, "auto", id="default-auto"),
        pytest.param(None, "int4", id="default-int4", marks=pytest.mark.slow),
        pytest.param(None, "float16", id="default-float16", marks=pytest.mark.slow),
        pytest.param(gpu.variants(frozenset(), 0)[0], "auto", id="rows-auto", marks=pytest.mark.slow),
        pytest.param(gpu.variants(frozenset(), 0)[1], "auto", id="lanes-auto", marks=pytest.mark.slow),
    ],
)
def test_batches_change_no_bit(device: gpu.Device, dtype: str, tuning: gpu.Tuning | None) -> None:
    """Log-probabilities have the same bits alone and in batches of 2 to 32, with and without padding rows."""
    with device.using(tuning or device.tuning), LLM(device=device, dtype=dtype, context=64) as llm:
        requests = [(PROMPTS[i % 10], {"temperature": 0.7 * (i % 2), "seed": i}) for i in range(32)]
        alone = [logit_bits(llm, [r])[0] for r in requests[:9]]
        for count in (2, 5, 9, 32):
            assert logit_bits(llm, requests[:count])[: len(alone)] == alone[:count]


def test_a_batch_shrinks_and_grows(story: LLM) -> None:
    """Sequences that end or join do not change the others."""
    lengths = [3, 30, 7, 18, 1, 25]
    alone = [story.generate(p, max_tokens=n).token_ids for p, n in zip(PROMPTS, lengths, strict=False)]
    streams = [story.stream(p, max_tokens=n) for p, n in zip(PROMPTS, lengths, strict=False)]
    next(streams[1])
    late = story.stream(PROMPTS[7], max_tokens=9)
    assert [s.result.token_ids for s in streams] == alone
    assert late.result.token_ids == story.generate(PROMPTS[7], max_tokens=9).token_ids


def test_more_sequences_than_slots(story: LLM) -> None:
    results = story.generate(PROMPTS * 4, max_tokens=4)
    assert [r.token_ids for r in results[:10]] == [r.token_ids for r in results[30:]]
    assert story._session.model.cache.free_slots == 32
