"""Decoders that embed, calls from asyncio, bound encoders, and the results of ``encode``."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import random_embedders
import random_encoders
from safetensors.numpy import load_file, save_file

from llamagpu import LLM, Embedder, gpu
from llamagpu.engine.embeddings import Vectors
from llamagpu.engine.request import NotFinite
from llamagpu.errors import ContextFullError, DeviceLostError, OutOfMemoryError, UsageError
from llamagpu.gpu.census import census
from llamagpu.model.cache import SLOTS

GOLDENS = load_file(Path(__file__).parent / "goldens_embeddings.safetensors")
BAR = 1e-5  # of vectors of length 1
_MAKERS = ("wgpuCommandEncoderBeginComputePass", "wgpuCommandEncoderFinish")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A random BERT without ``modules.json``."""
    raw = random_encoders.CONFIGS["bert"]
    return random_encoders.write_model(tmp_path / "bert", raw, random_encoders.tensors(raw, 1))


def words(seed: int, count: int) -> str:
    return " ".join(f"a{i}" for i in np.random.default_rng(seed).integers(0, 100, count))


def encode_later(embedder: Embedder, text: str) -> Future[np.ndarray]:
    pool = ThreadPoolExecutor(1)
    found = pool.submit(embedder.encode, text)
    pool.shutdown(wait=False)
    return found


# --- decoders --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", random_embedders.CONFIGS)
def test_decoders_embed_as_sentence_transformers(name: str, tmp_path: Path, device: gpu.Device) -> None:
    """Vectors of texts of up to two chunks, with and without a prompt; the same bits alone and in any pack."""
    texts = random_embedders.texts()
    with Embedder(random_embedders.write(tmp_path, name), device=device) as embedder:
        found = embedder.encode(texts)
        assert np.abs(found - GOLDENS[name]).max() <= BAR
        assert np.abs(embedder.encode(texts, prompt_name="query") - GOLDENS[f"{name}.query"]).max() <= BAR
        for i, text in enumerate(texts):
            assert np.array_equal(embedder.encode(text), found[i])
        assert np.array_equal(embedder.encode(texts[::-1], batch_size=2), found[::-1])
    with Embedder(tmp_path, device=device, pooling="last", max_seq_length=9) as other:
        cut = other.encode(texts)
        assert cut.cut_tokens == tuple(max(0, len(text.split()) + 1 - 9) for text in texts)
        assert (np.abs(cut - found).max(axis=1) > BAR).tolist() == [c > 0 or "mean" in name for c in cut.cut_tokens]


def test_a_model_embeds_while_it_generates(story: LLM) -> None:
    """``LLM.embed`` shares the cache with running generations, and changes no bit of either."""
    prompts = ["Once upon a time", "The little dog"]
    texts = ["One day, " + "the dog ran. " * i for i in range(12)]
    alone, vectors = [story.generate(p, max_tokens=30).token_ids for p in prompts], story.embed(texts, pooling="mean")
    assert vectors.shape == (12, story.config.hidden_size)
    streams = [story.stream(p, max_tokens=30) for p in prompts]
    assert np.array_equal(story.embed(texts, pooling="mean"), vectors)
    assert [s.result.token_ids for s in streams] == alone
    with pytest.raises(UsageError, match="does not say how it embeds"):
        story.embed("A text.")
    with pytest.raises(UsageError, match="'median' is not known"):
        story.embed("A text.", pooling="median")


def test_texts_wait_for_pages(tmp_path: Path, device: gpu.Device) -> None:
    """Texts wait for running generations, but bound sessions that hold all of the cache are an error."""
    with LLM(random_embedders.write(tmp_path, "qwen3-last"), device=device, context=32) as llm:
        expected = llm.embed(["a1 a2", "a3"])
        streams = [llm.stream("a1 a2 a3", max_tokens=9, ignore_eos=True) for _ in range(SLOTS + 5)]
        assert np.array_equal(llm.embed(["a1 a2", "a3"]), expected)
        assert all(s.result.completion_tokens == 9 for s in streams)
        ids, held = device.tensor([1] * 32, "u32"), []
        out = device.empty((32, llm.config.hidden_size))
        while llm._session.model.cache.free_pages:
            held.append(llm.bind(input_ids=ids, hidden_states=out))
        with pytest.raises(OutOfMemoryError, match="no room for a text"):
            llm.embed("a1 a2")
        held.pop().close()
        assert np.array_equal(llm.embed(["a1 a2", "a3"]), expected)
    with pytest.raises(DeviceLostError):
        llm.embed("a1")


def test_a_decoder_without_pooling_does_not_embed(tmp_path: Path, device: gpu.Device) -> None:
    random_embedders.write(tmp_path, "qwen3-last")
    (tmp_path / "modules.json").unlink()
    with pytest.raises(UsageError, match="does not say how it embeds"):
        Embedder(tmp_path, device=device)


# --- calls -----------------------------------------------------------------------------------


def test_calls_overlap_in_asyncio(encoder: Path, tmp_path: Path, device: gpu.Device) -> None:
    """100 calls at once on two models, one of which is closed and opened again meanwhile: each as if alone."""
    decoder = random_embedders.write(tmp_path / "decoder", "qwen3-last")
    texts = [words(i, 1 + i % 20) for i in range(100)]
    with Embedder(encoder, device=device) as one, Embedder(decoder, device=device) as two:
        expected = [(one if i % 2 else two).encode(text) for i, text in enumerate(texts)]

        def reopen() -> None:
            for _ in range(3):
                Embedder(encoder, device=device).close()

        async def run() -> list[np.ndarray]:
            calls = [asyncio.to_thread((one if i % 2 else two).encode, text) for i, text in enumerate(texts)]
            *found, _ = await asyncio.gather(*calls, asyncio.to_thread(reopen))
            return found

        assert all(np.array_equal(a, b) for a, b in zip(asyncio.run(run()), expected, strict=True))


def test_forms_of_results(encoder: Path, device: gpu.Device, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [words(i, 3 * i + 1) for i in range(6)]
    with Embedder(encoder, device=device, max_seq_length=7) as embedder:
        found = embedder.encode(texts, show_progress_bar=True)
        assert "encoding" in capsys.readouterr().err
        assert isinstance(found, Vectors)
        assert found.cut_tokens == (0, 0, 0, 3, 6, 9)
        assert (found.cut, found[1:].cut) == (3, 0)
        assert embedder.encode(texts[5]).cut == 1
        listed = embedder.encode(texts, convert_to_numpy=False)
        assert isinstance(listed, list)
        assert np.array_equal(listed, found)
        assert embedder.encode([]).shape == (0, 48)
        for precision, dtype, columns in (("int8", np.int8, 48), ("binary", np.uint8, 6)):
            made = embedder.encode(["a1", None], precision=precision, errors="skip")
            assert (made.dtype, made.shape) == (dtype, (2, columns))
            assert not made[1].any()
        for bad in ({"errors": "ignore"}, {"too_long": "drop"}):
            with pytest.raises(UsageError):
                embedder.encode("a1", **bad)


def test_broken_weights_are_an_error(encoder: Path, device: gpu.Device) -> None:
    weights = load_file(encoder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][7] = np.nan
    save_file(weights, encoder / "model.safetensors")
    with Embedder(encoder, device=device) as embedder:
        good = [words(i, 5).replace("a7 ", "") for i in range(4)]
        expected = embedder.encode(good)
        found = [encode_later(embedder, text) for text in (good[0], "a1 a7 a2", *good[1:])]
        with pytest.raises(NotFinite, match="The vector of a text of 3 tokens is not finite"):
            found[1].result()
        assert np.array_equal([f.result() for f in (found[0], *found[2:])], expected)
        assert np.array_equal(embedder.encode(good), expected)


# --- bound tensors ---------------------------------------------------------------------------


def test_bound_encoders(encoder: Path, device: gpu.Device) -> None:
    """The bits of ``encode``, for several lengths and modes; nothing is read, made or waited for in a run."""
    for pooling in ("mean", "cls"):
        with Embedder(encoder, device=device, pooling=pooling) as embedder:
            for count in (1, 17, 120):
                values = embedder.tokenize(words(count, count))
                ids, pooled = device.tensor(values, "u32"), device.empty((1, 48))
                hidden = device.empty((count, 48))
                with embedder.bind(input_ids=ids, hidden_states=hidden, pooled=pooled) as bound:
                    bound.run()
                    expected = embedder.encode(words(count, count))
                    assert np.array_equal(pooled.numpy()[0], expected)
                    first = hidden.numpy()
                    ids.write([5] * count)
                    bound.run()
                    assert np.array_equal(pooled.numpy()[0], embedder.encode(" ".join(["a5"] * count)))
                    assert not np.array_equal(hidden.numpy(), first)
                    ids.write([5] * (count - 1) + [100_000])
                    bound.run()
                    assert np.isnan(hidden.numpy()).all()
                    ids.write(values)
                    with census() as counts:
                        bound.run()
                    assert (counts.bytes, counts.pipelines) == (Counter(), 0)
                    assert set(counts.objects) == {*_MAKERS, "wgpuDeviceCreateCommandEncoder"}
                    assert np.array_equal(pooled.numpy()[0], expected)


def test_wrong_bindings_of_encoders(encoder: Path, device: gpu.Device) -> None:
    ids, pooled = device.tensor([1, 2, 3], "u32"), device.empty((1, 48))
    with Embedder(encoder, device=device) as embedder:
        for wrong, message in (
            ({"input_ids": ids}, "every output is missing"),
            ({"input_ids": ids, "logits": pooled}, "'logits' cannot be bound"),
            ({"input_ids": ids, "hidden_states": pooled}, r"its shape must be \[3, 48\]"),
            ({"input_ids": ids, "pooled": device.empty((3, 48))}, r"its shape must be \[1, 48\]"),
        ):
            with pytest.raises(UsageError, match=message):
                embedder.bind(wrong)
        with pytest.raises(ContextFullError):
            embedder.bind(input_ids=device.tensor([1] * 141, "u32"), pooled=pooled)
        bound = embedder.bind(input_ids=ids, pooled=pooled)
    with pytest.raises(DeviceLostError):
        bound.run()
