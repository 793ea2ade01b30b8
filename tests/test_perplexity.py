"""Perplexity and its error, comparisons of two models, logits in parts, and the perplexity command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import random_models

from llamagpu import LLM, gpu
from llamagpu.cli.main import run
from llamagpu.engine import perplexity as module
from llamagpu.engine import scoring
from llamagpu.engine.perplexity import compare, perplexity
from llamagpu.engine.request import NotFinite
from llamagpu.errors import UsageError
from llamagpu.model import bundled_models

TEXT = "Once upon a time there was a little girl. She liked to play in the park with her dog, and they had fun. é"


@pytest.fixture(scope="module")
def ids(story: LLM) -> list[int]:
    return story.tokenize(
        story.generate("Once upon a time", temperature=1.0, seed=4, max_tokens=240, ignore_eos=True).text
    )


@pytest.fixture(scope="module")
def int4(device: gpu.Device) -> Iterator[LLM]:
    """The bundled model in 4 bits."""
    with LLM(device=device, dtype="int4") as llm:
        yield llm


def log_softmax(logits: np.ndarray) -> np.ndarray:
    rows = logits.astype(np.float64)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


# --- perplexity ----------------------------------------------------------------------------


def test_perplexity_is_the_mean_surprise(story: LLM, ids: list[int]) -> None:
    """A single window matches one pass over the whole text. Overlapping windows match a calculation by hand."""
    surprise = -log_softmax(story.logits(ids))[np.arange(len(ids) - 1), ids[1:]]
    found = perplexity(story, ids)
    assert (found.tokens, found.window, found.stride) == (len(ids) - 1, 512, 256)
    assert abs(found.nats_per_token - surprise.mean()) < 1e-5
    assert abs(found.perplexity - np.exp(surprise.mean())) < 1e-3
    variance = (surprise**2).mean() - surprise.mean() ** 2
    assert found.error == pytest.approx(np.exp(surprise.mean()) * np.sqrt(variance / (len(surprise) - 1)), rel=1e-4)
    overlapping = perplexity(story, ids, window=64, stride=16)
    assert overlapping.tokens == found.tokens
    total, done = 0.0, 1
    for begin in range(0, len(ids), 16):
        part = ids[begin : begin + 64]
        rows = log_softmax(story.logits(part))
        for at in range(done - begin, len(part)):
            total -= rows[at - 1, part[at]]
        done = max(done, begin + len(part))
    assert abs(overlapping.nats_per_token - total / found.tokens) < 1e-5


def test_arguments(story: LLM, ids: list[int]) -> None:
    for bad in ({"window": 1}, {"window": 513}, {"window": 64, "stride": 65}, {"stride": 0}):
        with pytest.raises(UsageError):
            perplexity(story, ids, **bad)
    with pytest.raises(UsageError, match="longer than the text"):
        perplexity(story, ids[:30], window=31)
    with pytest.raises(UsageError, match="fewer than two"):
        perplexity(story, ids[:1])
    with pytest.raises(UsageError, match="empty"):
        perplexity(story, [])
    assert perplexity(story, ids[:2]).error is None
    assert perplexity(story, ids[:30], window=30, stride=30).tokens == 29
    assert perplexity(story, ids, window=64).stride == 32


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size"), [("tinystories-656k", 50000), ("own", 9000)])
def test_int8_costs_next_to_nothing(model: str, size: int, shared: Path, device: gpu.Device) -> None:
    """int8 in groups of 64: perplexity within 0.5 % of the weights as they are stored; int4 within 25 %."""
    directory = bundled_models() / "stories" if model == "own" else shared / "models" / model
    text = (shared / "text" / "tinystories_val_794KB.txt").read_bytes()[:size].decode("utf-8", "ignore")
    found = {}
    for dtype in ("auto", "int8", "int4"):
        with LLM(directory, device=device, dtype=dtype) as llm:
            found[dtype] = perplexity(llm, llm.tokenize(text)).perplexity
    assert abs(found["int8"] / found["auto"] - 1) < 0.005
    assert found["int4"] / found["auto"] < 1.25


# --- comparisons ---------------------------------------------------------------------------


def test_a_comparison_by_hand() -> None:
    """Two predictions over three tokens. The second is the same in both models."""
    theirs = np.log([[0.5, 0.25, 0.25], [0.7, 0.2, 0.1]])
    ours = np.log([[0.25, 0.5, 0.25], [0.7, 0.2, 0.1]])
    rows = module._compared(ours, theirs, [0, 1])
    two = np.log(2)
    assert np.allclose(rows, [[2 * two, -np.log(0.2)], [two, -np.log(0.2)], [two / 4, 0], [0, 1]])
    found = module._comparison(rows, (8, 4))
    assert found.mean_kl == pytest.approx(two / 8)
    assert found.mean_kl_error == pytest.approx(two / 8)  # the deviation of (x, 0) is x / 2, and n - 1 is 1
    assert found.max_kl == pytest.approx(two / 4)
    assert found.kl_99 == pytest.approx(0.99 * two / 4)
    assert found.perplexity_ratio == pytest.approx(np.sqrt(2))
    assert found.perplexity_ratio_error == pytest.approx(np.sqrt(2) * two / 2)
    assert (found.same_top, found.same_top_error) == (0.5, 0.5)
    assert found.rms_change == pytest.approx(0.25 / np.sqrt(2))
    assert found.rms_change_error == pytest.approx(0.5 / found.rms_change * 0.25**2 / 2)
    assert (found.model.window, found.model.stride) == (8, 4)


def test_a_comparison_matches_float64(story: LLM, int4: LLM, ids: list[int]) -> None:
    p, q = log_softmax(story.logits(ids))[:-1], log_softmax(int4.logits(ids))[:-1]
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    right = np.arange(len(p)), ids[1:]
    found = compare(int4, story, ids)
    n = len(kl)
    assert found.mean_kl > 0.001
    assert found.mean_kl == pytest.approx(kl.mean(), rel=1e-4)
    assert found.mean_kl_error == pytest.approx(kl.std(ddof=1) / np.sqrt(n), rel=1e-4)
    assert found.max_kl == pytest.approx(kl.max(), rel=1e-4)
    assert found.kl_999 == pytest.approx(np.quantile(kl, 0.999), rel=1e-4)
    assert found.same_top == pytest.approx((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    share = found.same_top
    assert found.same_top_error == pytest.approx(np.sqrt(share * (1 - share) / (n - 1)))
    assert found.rms_change == pytest.approx(np.sqrt(((np.exp(q[right]) - np.exp(p[right])) ** 2).mean()), rel=1e-4)
    assert found.perplexity_ratio == pytest.approx(found.model.perplexity / found.base.perplexity)
    # llama.cpp's form of the error: the variances of both means, less twice their covariance
    a, b = -q[right], -p[right]
    variance = (a.var() + b.var() - 2 * ((a * b).mean() - a.mean() * b.mean())) / (n - 1)
    assert found.perplexity_ratio_error == pytest.approx(found.perplexity_ratio * np.sqrt(variance), rel=1e-3)
    assert found.model == perplexity(int4, ids)
    assert found.base == perplexity(story, ids)


def test_a_model_agrees_with_itself(story: LLM, ids: list[int]) -> None:
    found = compare(story, story, ids, window=100, stride=60)
    assert (found.mean_kl, found.max_kl, found.rms_change, found.rms_change_error) == (0, 0, 0, 0)
    assert (found.same_top, found.same_top_error) == (1, 0)
    assert (found.perplexity_ratio, found.perplexity_ratio_error) == (1, 0)


def test_logits_are_read_in_parts(story: LLM, int4: LLM, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks of 2 rows, and 32 rows read at a time, the results stay the same."""
    whole, sizes = compare(int4, story, ids, window=200, stride=150), []
    monkeypatch.setattr(scoring, "_BLOCK", 2 * 2048)
    monkeypatch.setattr(scoring, "_READ", 32 * 2048)
    real = LLM.logits
    monkeypatch.setattr(LLM, "logits", lambda *a, **k: (rows := real(*a, **k), sizes.append(len(rows)))[0])
    parts = compare(int4, story, ids, window=200, stride=150)
    assert max(sizes) == 32
    assert parts.model.perplexity == pytest.approx(whole.model.perplexity, rel=1e-5)
    assert parts.mean_kl == pytest.approx(whole.mean_kl, rel=1e-3)
    assert parts.same_top == whole.same_top


def test_logits_of_the_last_positions(story: LLM, ids: list[int]) -> None:
    """They are those of a full pass; from the cache, up to rounding."""
    whole = story.logits(ids)
    for first in (0, 1, 31, 32, 100, len(ids) - 1):
        assert np.array_equal(story.logits(ids, first=first), whole[first:])
        assert np.abs(story.logits(ids, first=first, reuse="exact") - whole[first:]).max() < 1e-3
    for bad in (-1, len(ids), 1.5, True):
        with pytest.raises(UsageError, match="first is"):
            story.logits(ids, first=bad)


def test_probabilities_are_stable_and_finite() -> None:
    large = scoring.log_probabilities(np.array([[1e4, 0, 1e4]], np.float32), 1)
    assert np.allclose(large, [[-np.log(2), -1e4 - np.log(2), -np.log(2)]], rtol=1e-12)
    for bad in (np.nan, np.inf):
        with pytest.raises(NotFinite, match="after 7 tokens"):
            scoring.log_probabilities(np.array([[0, bad]], np.float32), 7)


# --- the command ---------------------------------------------------------------------------


def test_perplexity_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    assert run(["perplexity", str(path), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["tokens"] > 20
    assert whole["perplexity"] > 1
    assert run(["perplexity", str(path)]) == 0
    assert capsys.readouterr().out == f"PPL = {whole['perplexity']:.4f} ± {whole['error']:.4f}\n"
    assert run(["perplexity", str(path), "--bytes", "42"]) == 0
    assert capsys.readouterr().out.startswith("PPL = ")
    assert run(["perplexity", str(path), "--window", "100"]) == 2
    assert "longer than the text" in capsys.readouterr().err
    path.write_bytes(b"\xff\xff")
    assert run(["perplexity", str(path)]) == 2
    assert run(["perplexity", str(tmp_path / "none")]) == 2


@pytest.mark.slow
def test_compare_dtypes_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    arguments = ["perplexity", str(path), "--dtype", "int4", "--against-dtype", "f32", "--window", "16"]
    assert run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["against"]["weight_bytes"] > 4 * found["weight_bytes"]
    assert 0 < found["mean_kl"] < found["kl_99"] < found["max_kl"]
    assert (found["window"], found["stride"]) == (16, 8)
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("PPL = ")
    assert lines[2] == f"PPL ratio = {found['perplexity_ratio']:.5f} ± {found['perplexity_ratio_error']:.5f}"
    assert lines[3].startswith(f"KL divergence = {found['mean_kl']:.6f} ± ")
    assert lines[4].startswith("same most likely token = ")
    assert lines[5].startswith("RMS change")


def test_models_with_other_vocabularies_are_refused(
    story: LLM, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: gpu.Device
) -> None:
    """On the command line, before a model is loaded."""
    c = random_models.config()
    random_models.write_model(tmp_path / "m", c, random_models.tensors(c, 5))
    (tmp_path / "text").write_text(TEXT)
    with monkeypatch.context() as patch:
        patch.setattr("llamagpu.cli.perplexity.open_model", lambda options: pytest.fail("a model was loaded"))
        assert run(["perplexity", str(tmp_path / "text"), "--against", str(tmp_path / "m")]) == 2
    assert "have different vocabularies.\n  They have 2,048 and 105 tokens." in capsys.readouterr().err
    with LLM(tmp_path / "m", device=device) as other, pytest.raises(UsageError, match="different vocabularies"):
        compare(story, other, [1, 2, 3])


def test_tokens_with_other_ids_are_refused(story: LLM, tmp_path: Path, device: gpu.Device) -> None:
    """Two tokens change places: refused. A token that only one tokenizer names is no difference."""
    from llamagpu.model import prepare

    copies = []
    for name in ("swapped", "shorter"):
        copies.append(tmp_path / name)
        copies[-1].mkdir()
        for file in (bundled_models() / "stories").iterdir():
            if file.name != "tokenizer.json":
                (copies[-1] / file.name).symlink_to(file)
    text = json.loads((bundled_models() / "stories" / "tokenizer.json").read_text())
    vocab, prepared = text["model"]["vocab"], prepare(bundled_models() / "stories")
    last = max(vocab, key=vocab.__getitem__)
    names = list(vocab)
    shorter = text | {"model": text["model"] | {"vocab": {k: v for k, v in vocab.items() if k != last}}}
    shorter["model"]["merges"] = [m for m in text["model"]["merges"] if "".join(m) != last]
    (copies[1] / "tokenizer.json").write_text(json.dumps(shorter))
    module.check_same_vocabulary(prepared, prepare(copies[1]))
    vocab[names[300]], vocab[names[301]] = vocab[names[301]], vocab[names[300]]
    (copies[0] / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(UsageError, match="2 ids differ"):
        module.check_same_vocabulary(prepared, prepare(copies[0]))


def test_two_models_that_do_not_fit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text(TEXT)
    monkeypatch.setenv("LLAMAGPU_MEMORY_LIMIT", "30000000")
    assert run(["perplexity", str(tmp_path / "text"), "--against-dtype", "float32"]) == 6
    err = capsys.readouterr().err
    assert err.startswith("error: The two models do not fit at once.\n  stories takes ")
    assert "MB are free" in err
