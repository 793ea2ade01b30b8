"""The prompt cache: which pages are exact, bits with and without it, and its file."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models

from llamagpu import LLM, gpu
from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.kernels.kv_write import PAGE
from llamagpu.model.cache import Known, PagedCache
from llamagpu.model.config import parse_config

TEXT = "Once upon a time there was a little dog who liked to run and play in the big park. " * 20
CONFIG = parse_config(random_models.config())


def small_cache(device: gpu.Device, pages: int) -> PagedCache:
    return PagedCache(device, CONFIG, context=160, pool=pages * PAGE, dtype="f32", rows=32)


def leave(cache: PagedCache, tokens: list[int], exact: int, *, only_exact: bool = True) -> int:
    """Run a sequence of tokens, of which prefill wrote the first ``exact``; its cached tokens."""
    held = cache.take(len(tokens), tokens, exact=only_exact)
    assert held is not None
    cache.give(held, tokens, exact if held.exact == held.cached else held.exact)
    return held.cached


def test_exact_pages(device: gpu.Device) -> None:
    """Pages of decode steps, and those that were prefilled behind them, are taken only where any will do. Exact ones
    take their place."""
    cache, tokens = small_cache(device, 10), list(range(65))
    assert leave(cache, tokens, 40) == 0  # two exact pages, two that decode steps wrote
    for only_exact, cached in ((True, 32), (False, 64)):
        held = cache.take(65, tokens, exact=only_exact)
        assert held is not None
        assert (held.cached, held.exact) == (cached, 32)
        cache.give(held)
    assert leave(cache, [*range(64), *range(100, 133)], 97, only_exact=False) == 64  # prefilled after inexact pages
    assert leave(cache, [*range(64), *range(100, 133)], 0) == 32
    assert leave(cache, tokens, 65) == 32
    assert leave(cache, tokens, 0) == 64  # the last run made them exact
    assert leave(cache, [*range(64), *range(100, 133)], 0) == 64  # and the pages behind them are found, but not exact
    assert leave(cache, [*range(64), *range(100, 133)], 0, only_exact=False) == 96
    assert (cache.free_pages, len(cache._exact)) == (10, 4)
    everything = cache.take(160)
    assert everything is not None
    cache.give(everything)
    assert cache.known() == []
    assert not cache._exact


def test_known_pages_move_to_another_cache(device: gpu.Device) -> None:
    """The latest used pages go first, and never without those before them. What is known there stays."""
    cache = small_cache(device, 10)
    old, new = list(range(48)), [*range(16), *range(200, 248)]
    leave(cache, old, 48)
    leave(cache, new, 64)
    found = [one for _, one in cache.known()]
    assert [one.tokens[0] for one in found] == [0, 200, 216, 232, 16, 32]
    assert [one.before for one in found] == [-1, 0, 1, 2, 0, 4]

    def moved(pages: int, before: Callable[[PagedCache], Any] = lambda c: None) -> tuple[PagedCache, list[Any]]:
        other, filled = small_cache(device, pages), []
        before(other)
        assert other.adopt(found, filled.extend) == len(filled)
        return other, filled

    whole, filled = moved(12)
    assert [place for place, _ in filled] == list(range(6))
    assert [one for _, one in whole.known()] == found
    assert whole.free_pages == 12
    few, filled = moved(3)
    assert [place for place, _ in filled] == [0, 1, 2]
    assert leave(few, new[:48], 0) == 32
    mine, filled = moved(5, lambda c: leave(c, old, 48))
    assert [place for place, _ in filled] == [1, 2]
    assert {one.tokens[0] for _, one in mine.known()} == {0, 16, 32, 200, 216}
    more = [Known(tuple(range(300, 300 + PAGE)), -1, True)]
    with pytest.raises(ZeroDivisionError):
        whole.adopt(more, lambda places: 1 // 0)  # pages that were not filled stay unknown
    assert [one for _, one in whole.known()] == found


def results(llm: LLM, ids: list[int], reuse: Any) -> list[Any]:
    made = llm.generate(ids, max_tokens=3, logprobs=3, reuse=reuse)
    drawn = llm.generate(ids, max_tokens=3, temperature=1.0, top_k=50, seed=4, reuse=reuse)
    rows = llm.logits(ids, first=len(ids) - min(9, len(ids)), reuse=reuse)
    return [made.token_ids, made.logprobs, drawn.token_ids, rows.tobytes()]


def check_bits(llm: LLM, ids: list[int], lengths: tuple[int, ...]) -> None:
    """Prompts of all lengths, each after a longer one that left its pages."""
    alone = [results(llm, ids[:n], "none") for n in lengths]
    llm.logits(ids)
    for n, expected in zip(lengths, alone, strict=True):
        assert results(llm, ids[:n], "exact") == expected, n
        assert llm.generate(ids[:n], max_tokens=1).cached_tokens == (n - 1) // PAGE * PAGE


def test_reuse_changes_no_bit(story: LLM) -> None:
    check_bits(story, story.tokenize(TEXT)[:70], (33, 70))


@pytest.mark.slow
def test_reuse_changes_no_bit_in_any_variant(device: gpu.Device, tmp_path: Path) -> None:
    """In every tuning; unfused; with windows, whose pages are kept while none is overwritten; across chunks."""
    for tuning in gpu.variants(device.features, device.subgroup_size):
        with device.using(tuning), LLM(device=device) as llm:
            check_bits(llm, llm.tokenize(TEXT)[:110], (33, 110))
    tiled = gpu.Tuning(matvec="lanes", matmul="tiled", attention="whole")
    with device.using(tiled), LLM(device=device, fused=False, kv_dtype="float16") as llm:
        check_bits(llm, llm.tokenize(TEXT)[:100], (33, 100))
    for name in ("mistral-window", "gemma3"):
        raw = random_models.CONFIGS[name]
        random_models.write_model(tmp_path / name, raw, random_models.tensors(raw, 1))
        with device.using(tiled), LLM(tmp_path / name, device=device, context=600) as llm:
            check_bits(llm, random_models.prompt(raw, 60, 1), (33, 60))
    raw = random_models.config(max_position_embeddings=2048)
    random_models.write_model(tmp_path / "long", raw, random_models.tensors(raw, 1))
    with device.using(tiled), LLM(tmp_path / "long", device=device, context=1200) as llm:
        assert llm.sizes.rows == 512
        check_bits(llm, random_models.prompt(raw, 1100, 1), (300, 513, 516, 530, 1024, 1030, 1100))


def test_cached_tokens(device: gpu.Device) -> None:
    """Pages of decode steps serve conversations alone."""
    with LLM(device=device) as llm:
        ids = llm.tokenize(TEXT)[:40]
        first = llm.generate(ids, max_tokens=30, ignore_eos=True)
        longer = [*ids, *first.token_ids]
        found = {reuse: llm.generate(longer, max_tokens=1, reuse=reuse) for reuse in ("none", "exact", "any")}
        assert first.cached_tokens == first.as_dict()["cached_tokens"] == 0
        assert [found[reuse].cached_tokens for reuse in found] == [0, 64, 64]  # the first of them made all exact
        again = llm.generate([*longer[:69], 5], max_tokens=1)
        assert again.cached_tokens == 64
    with LLM(device=device) as llm:
        assert llm.generate(ids, max_tokens=30, ignore_eos=True).token_ids == first.token_ids
        assert llm.generate(longer, max_tokens=1, reuse="any").cached_tokens == 64
        assert llm.generate(longer, max_tokens=1).cached_tokens == 32
        for wrong in (True, "some", None):
            with pytest.raises(UsageError, match="exact, any or none"):
                llm.generate(ids, reuse=wrong)


# --- files -------------------------------------------------------------------------------------


def contents(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_a_file_keeps_the_bits(device: gpu.Device, tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    with LLM(device=device) as llm:
        ids = llm.tokenize(TEXT)[:100]
        assert llm.save_cache(path) == 0
        assert llm.load_cache(path) == 0
        expected = results(llm, ids, "none")
        told = llm.generate([*ids, 7], max_tokens=20, ignore_eos=True)
        assert llm.save_cache(path) == 112
        assert llm.load_cache(path) == 0  # all of it is known
    assert [p.name for p in tmp_path.iterdir()] == ["prompts"]
    for context in (512, 64):  # a pool of many pages, and one of a few
        with LLM(device=device, context=context) as llm:
            assert llm.load_cache(path) == min(112, llm.sizes.pool)
            again = llm.generate(ids[:63], max_tokens=1, reuse="any")
            assert again.cached_tokens == 48
            if context == 512:
                assert results(llm, ids, "exact") == expected
                assert llm.generate([*ids, 7], max_tokens=1).cached_tokens == 96
                longer = [*ids, 7, *told.token_ids]
                assert llm.generate(longer, max_tokens=1, reuse="any").cached_tokens == 112


def test_files_of_other_models_are_refused(device: gpu.Device, tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    with LLM(device=device) as llm:
        llm.generate(TEXT, max_tokens=1)
        llm.save_cache(path)
    raw = random_models.config()
    random_models.write_model(tmp_path / "other", raw, random_models.tensors(raw, 1))
    others: dict[str, dict[str, Any]] = {
        "model": {"model": tmp_path / "other"},
        "dtype of the weights": {"dtype": "int8", "kv_dtype": "float32"},
        "dtype of the cache": {"kv_dtype": "float32" if llm.sizes.kv_dtype == "f16" else "float16"},
        "form of the forward pass": {"fused": False},
    }
    for what, options in others.items():
        with LLM(device=device, **options) as other, pytest.raises(UsageError, match="cannot be used") as error:
            other.load_cache(path)
        assert error.value.why == f"It was made with another {what}."
    tuning = gpu.Tuning(matvec="lanes", order=device.tuning.order)
    with device.using(tuning), LLM(device=device) as other, pytest.raises(UsageError, match="another tuning"):
        other.load_cache(path)
    with pytest.raises(LlamaGPUError, match="closed"):
        llm.load_cache(path)


def test_damaged_files_are_refused(device: gpu.Device, tmp_path: Path) -> None:
    """Nothing of them is taken."""
    path, bad = tmp_path / "prompts", tmp_path / "bad"
    with LLM(device=device) as llm:
        llm.generate(TEXT, max_tokens=1)
        llm.save_cache(path)
        header, data = contents(path)
    at = {name: value["data_offsets"] for name, value in header.items() if name != "__metadata__"}

    def with_bytes(name: str, values: Any) -> bytes:
        begin = at[name][0]
        return data[:begin] + values.tobytes() + data[begin + values.nbytes :]

    def unchecked(changed: bytes) -> tuple[dict[str, Any], bytes]:
        """With the digest of the changed bytes, as somebody who means harm would write it."""
        metadata = header["__metadata__"] | {"sha256": hashlib.sha256(changed).hexdigest()}
        return header | {"__metadata__": metadata}, changed

    narrow = header | {"before": header["before"] | {"dtype": "F32"}}
    cases: list[tuple[dict[str, Any], bytes]] = [
        (header, data[:-1]),
        (header, data + b"0"),
        (header, bytes([data[0] ^ 1]) + data[1:]),
        (header, data[:-1] + bytes([data[-1] ^ 1])),
        (narrow, data),
        ({k: v for k, v in header.items() if k != "exact"}, data),
        ({k: v for k, v in header.items() if k != "__metadata__"}, data),
        (header | {"__metadata__": {"format": 1}}, data),
        unchecked(with_bytes("tokens", np.array([2**31], "<u4"))),
        unchecked(with_bytes("before", np.array([0], "<i4"))),
        unchecked(with_bytes("before", np.array([-2], "<i4"))),
        unchecked(with_bytes("before", np.array([-1, 5], "<i4"))),
        unchecked(with_bytes("exact", np.array([2], "u1"))),
        unchecked(with_bytes("exact", np.array([0], "u1"))),
    ]
    with LLM(device=device) as llm:
        for case in cases:
            write(bad, *case)
            with pytest.raises(UsageError, match="cannot be used"):
                llm.load_cache(bad)
        for content in (b"", b"\xff" * 40, b"{}"):
            bad.write_bytes(content)
            with pytest.raises(UsageError, match="cannot be used"):
                llm.load_cache(bad)
        for missing in (tmp_path / "none", tmp_path, Path(os.devnull)):
            with pytest.raises(UsageError, match="cannot be used"):
                llm.load_cache(missing)
        assert llm._session.model.cache.known() == []
        write(bad, header, data)
        assert llm.load_cache(bad) > 0


def test_a_save_that_fails_keeps_the_old_file(
    device: gpu.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompts"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with LLM(device=device) as llm:
        llm.generate(TEXT, max_tokens=1)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(LlamaGPUError, match="could not be written"):
            llm.save_cache(path)
        with pytest.raises(LlamaGPUError, match="could not be written"):
            llm.save_cache(tmp_path / "none" / "prompts")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("prompts", "old")]
