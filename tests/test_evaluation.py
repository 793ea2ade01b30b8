"""The model of lm-evaluation-harness: its rules, without the harness; and the model itself, where that is installed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import llamagpu.evaluation
from llamagpu import LLM
from llamagpu.errors import UsageError
from llamagpu.evaluation.rules import Encoder, cut_at, generation, plan_passes, sum_scores
from llamagpu.text import ChatTemplates

ROOT = Path(__file__).resolve().parent.parent
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Two plus two?"}, {"role": "assistant", "content": " The answer is "}]


# --- rules ---------------------------------------------------------------------------------


def letters(text: str, special: bool) -> list[int]:
    """A tokenizer of characters, whose own special token is 7."""
    return [7] * special + [ord(c) for c in text]


@pytest.mark.parametrize(
    ("add_bos", "text", "special", "begins"),
    [
        (None, "ab", None, [7]),  # the tokenizer's own
        (False, "ab", None, []),
        (True, "ab", None, [1, 7]),
        (None, "ab", False, []),
        (True, "ab", False, []),
        (None, "<s>ab", None, []),  # a rendered conversation
        (True, "<s>ab", None, []),
        (False, "<s>ab", True, [7]),
    ],
)
def test_special_tokens(add_bos: bool | None, text: str, special: bool | None, begins: list[int]) -> None:
    assert Encoder(letters, 1, "<s>", add_bos).encode(text, special) == begins + letters(text, False)


def test_bos_is_not_doubled() -> None:
    assert Encoder(letters, 7, "<s>", True).encode("a") == [7, ord("a")]
    assert Encoder(letters, None, "", True).encode("a") == [7, ord("a")]


def test_passes_share_their_input() -> None:
    """Answers of one token after the same question run once. Equal beginnings are side by side."""
    passes, cut = plan_passes([([1, 2], [3]), ([9], [8, 7]), ([1, 2], [4]), ([1, 2], [3, 5]), ([1], [2, 6])], 8)
    assert cut == 0
    assert [(p.ids, p.continuations) for p in passes] == [
        ((1, 2), [(0, (3,)), (2, (4,)), (4, (2, 6))]),
        ((1, 2, 3), [(3, (3, 5))]),
        ((9, 8), [(1, (8, 7))]),
    ]
    assert passes[0].longest == 2


def test_long_inputs_lose_their_beginning() -> None:
    passes, cut = plan_passes([(range(1, 9), [10, 11]), (range(3), [5])], 4)
    assert cut == 1
    assert [p.ids for p in passes] == [(0, 1, 2), (6, 7, 8, 10)]
    passes, cut = plan_passes([([1, 2, 3], [4, 5, 6, 7])], 4)  # one token of the context stays
    assert (passes[0].ids, passes[0].longest, cut) == ((3, 4, 5, 6), 4, 1)
    for bad in (([1], range(5)), ([], [1]), ([1], [])):
        with pytest.raises(UsageError):
            plan_passes([bad], 4)


def test_scores_are_sums_over_the_last_rows() -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((5, 11))
    likely = [int(i) for i in rows.argmax(axis=1)]
    continuations = [[1, 2, 3, 4, 5], [10], likely, likely[3:], [*likely[2:4], (likely[4] + 1) % 11]]
    expected = [
        (sum(rows[5 - len(c) + i, t] for i, t in enumerate(c)), c == likely[5 - len(c) :]) for c in continuations
    ]
    assert [greedy for _, greedy in expected] == [False, False, True, True, False] or likely[4] == 10
    for sizes in ([5], [1] * 5, [2, 3], [4, 1]):
        blocks = np.split(rows, np.cumsum(sizes)[:-1])
        found = sum_scores(blocks, continuations)
        assert np.allclose([s for s, _ in found], [s for s, _ in expected])
        assert [g for _, g in found] == [g for _, g in expected]


def test_generation_arguments() -> None:
    plain = generation({"until": "\n", "max_gen_toks": 5, "do_sample": False, "temperature": 0.7, "top_p": 0.5})
    assert (plain.until, plain.max_tokens, plain.options, plain.samples) == (("\n",), 5, {"temperature": 0.0}, False)
    drawn = generation({"until": ["a", "", "b"], "max_new_tokens": 9, "temperature": 0.7, "top_p": 0.5})
    assert (drawn.until, drawn.max_tokens, drawn.options) == (("a", "b"), 9, {"temperature": 0.7, "top_p": 0.5})
    assert generation({"do_sample": True}).options == {"temperature": 1.0}
    assert generation({"repetition_penalty": 1.1, "num_beams": 1}, 77).options["repetition_penalty"] == 1.1
    assert generation({}, 77).max_tokens == 77
    assert generation({"max_tokens": 3, "max_gen_toks": 4}).max_tokens == 4
    for bad in ({"num_beams": 4}, {"top_kk": 3}):
        with pytest.raises(UsageError):
            generation(bad)


def test_text_ends_before_stop_strings() -> None:
    assert cut_at("a b\nc d", ["\n", " "]) == "a"
    assert cut_at("abc", ["x"]) == "abc"
    assert cut_at("abc", []) == "abc"


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "llamagpu.evaluation.harness", raising=False)
    monkeypatch.delattr(llamagpu.evaluation, "harness", raising=False)
    monkeypatch.setattr(sys, "argv", ["llamagpu.evaluation", "--model", "llamagpu"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("llamagpu.evaluation", run_name="__main__")
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: Evaluation needs lm-evaluation-harness.\n")
    assert 'pip install "llamagpu[eval]"' in err


# --- the model -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def harness() -> Any:
    """The module of the model. Skips the test if the harness is not installed."""
    pytest.importorskip("lm_eval.models")  # there is a folder scripts/lm_eval, too
    from llamagpu.evaluation import harness

    return harness


def requests(*arguments: Any) -> list[Any]:
    return [SimpleNamespace(args=a) for a in arguments]


def expected_score(llm: LLM, context: list[int], continuation: list[int], most: int = 512) -> tuple[float, bool]:
    """The definition: all logits of the input in one pass, and a float64 log-softmax."""
    ids = [*context, *continuation][-(most + 1) :]
    rows = llm.logits(ids[:-1])[-len(continuation) :].astype(np.float64)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    right = rows[np.arange(len(continuation)), continuation].sum()
    return float(right), rows.argmax(axis=1).tolist() == continuation


def test_log_likelihoods(harness: Any, story: LLM, caplog: pytest.LogCaptureFixture) -> None:
    model = harness.HarnessModel(story, max_length=24)
    pairs = [
        ("Once upon a time ", "there was a dog"),  # the space moves to the continuation
        ("Once upon a time", " there was a cat"),
        ("Once upon a time", " there"),
        ("Once upon a time", " in"),
        ("", "Once upon a time"),
        ("The dog ran. " * 20, "It was happy."),  # longer than the context
    ]
    found = model.loglikelihood(requests(*pairs), disable_tqdm=True)
    bos = story.special_tokens["bos_token"]
    for (context, continuation), (score, greedy) in zip(pairs, found, strict=True):
        spaces = len(context) - len(context.rstrip())
        moved = context[len(context) - spaces :] + continuation
        before = story.tokenize(context.rstrip()) if context else [bos]
        whole = story.tokenize(context.rstrip() + moved) if context else [bos, *story.tokenize(moved)[1:]]
        expected = expected_score(story, before, whole[len(before) :], 24)
        assert abs(score - expected[0]) < 1e-3
        assert greedy == expected[1]
    assert "1 of 6 requests were cut from the left to 24 tokens" in caplog.text


def test_rolling_log_likelihoods(harness: Any, story: LLM) -> None:
    model = harness.HarnessModel(story, max_length=16)
    text = "Once upon a time there was a dog. He liked to run in the park. One day he met a cat and they played."
    ids, total, begin = story.tokenize(text), 0.0, 0
    assert len(ids) > 20
    bos = story.special_tokens["bos_token"]
    while begin < len(ids):  # full windows, the last one aligned with the end
        end = min(begin + 16, len(ids))
        whole = [bos, *ids][max(0, end - 16) : end + 1]
        total += expected_score(story, whole[: begin - end], whole[begin - end :])[0]
        begin = end
    assert model.loglikelihood_rolling(requests((text,)), disable_tqdm=True)[0] == pytest.approx(total, abs=2e-3)


def test_generation(harness: Any, story: LLM) -> None:
    model = harness.HarnessModel(story, max_length=64)
    greedy = {"until": ["."], "max_gen_toks": 20, "do_sample": False}
    drawn = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    found = model.generate_until(
        requests(*[("Once upon a time", a) for a in (greedy, drawn, drawn)]), disable_tqdm=True
    )
    whole = story.generate("Once upon a time", max_tokens=20).text
    assert found[0].strip() == whole.split(".")[0].strip()
    assert found[1] != found[2]  # every request has a seed of its own
    again = harness.HarnessModel(story, max_length=64).generate_until(
        requests(("Once upon a time", drawn)), disable_tqdm=True
    )
    assert again[0] == found[1]
    with pytest.raises(UsageError, match="leave no room"):
        model.generate_until(requests(("a", {"max_gen_toks": 64})), disable_tqdm=True)


def templates(source: str | None = None) -> ChatTemplates:
    """Chat templates with a default one, or none."""
    return ChatTemplates({} if source is None else {"default": source}, None, {}, ())


def test_arguments_and_templates(harness: Any, story: LLM) -> None:
    with pytest.raises(UsageError, match="parallelize"):
        harness.HarnessModel(story, parallelize=True)
    model = harness.HarnessModel(story, prefix_token_id=5)
    assert (model.prefix_token_id, model.max_length, model.tokenizer_name) == (5, 512, "stories")
    assert model.eot_token_id == story.special_tokens["eos_token"]
    story_like = SimpleNamespace(chat_templates=templates(), name="none")
    model.llm = story_like
    with pytest.raises(UsageError, match="no chat template"):
        model.apply_chat_template(MESSAGES)
    strict = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    story_like.chat_templates = templates(strict + CHATML)
    with_system = [{"role": "system", "content": "Be brief."}, MESSAGES[0]]
    begins = "<|im_start|>user\nTwo plus two?<|im_end|>\n<|im_start|>assistant\n"
    assert model.apply_chat_template(with_system) == begins
    assert model.apply_chat_template(MESSAGES, add_generation_prompt=False) == begins + " The answer is "
    assert model.chat_template(True) == strict + CHATML
    assert model.chat_template(False) is None
    with pytest.raises(UsageError, match="no chat template 'x'"):
        model.chat_template("x")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the harness and its data sets
def test_tasks_on_the_command_line(
    harness: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    tasks = "llamagpu_questions,llamagpu_letters,llamagpu_beginnings,llamagpu_texts"
    model = ["--model", "llamagpu", "--model_args", "max_length=256"]
    rest = ["--include_path", "scripts/lm_eval", "--limit", "2", "--tasks", tasks]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *model, *rest])
    harness.run_command_line()
    out = capsys.readouterr().out
    for word in ("acc_norm", "exact_match", "word_perplexity", "llamagpu_letters"):
        assert word in out
