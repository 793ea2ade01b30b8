"""Broken GGUF headers: each gives one of our errors or a whole header, in little time and memory."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import gguf_files
import numpy as np
import pytest

from llamagpu.errors import LlamaGPUError, UnsupportedModelError
from llamagpu.model.sources.gguf import open_gguf
from llamagpu.model.sources.gguf.header import read_header

MOST_SECONDS = 1.0
MOST_BYTES = 64_000_000
COUNTS = (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)


def small_file(folder: Path) -> bytes:
    """A file with every kind of value, and tensors of several types."""
    metadata = gguf_files.VOCABULARY | {
        "general.architecture": ("STRING", "llama"),
        "general.alignment": ("UINT32", 32),
        "tokenizer.ggml.tokens": ("ARRAY", ["a", "b", "ab", *(f"t{i}" for i in range(17))]),
        "tokenizer.ggml.scores": ("ARRAY", [0.5] * 20),
        "tokenizer.ggml.token_type": ("ARRAY", [1] * 20),
        "tokenizer.ggml.eos_token_id": ("UINT32", 2),
        "llama.block_count": ("UINT32", 1),
        "llama.context_length": ("UINT64", 64),
        "llama.embedding_length": ("INT32", 32),
        "llama.feed_forward_length": ("UINT32", 32),
        "llama.attention.head_count": ("UINT16", 2),
        "llama.attention.layer_norm_rms_epsilon": ("FLOAT64", 1e-5),
        "llama.attention.causal": ("BOOL", True),
    }
    rng = np.random.default_rng(0)
    tensors: dict[str, tuple[np.ndarray, str]] = {
        "token_embd.weight": (gguf_files.blocks(rng, 20, 32, "Q8_0"), "Q8_0"),
        "output_norm.weight": (np.ones(32, np.float32), "F32"),
        "blk.0.attn_q.weight": (gguf_files.blocks(rng, 32, 32, "Q4_0"), "Q4_0"),
    }
    return gguf_files.write(folder / "small.gguf", metadata, tensors).read_bytes()


def mutated(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Copies with bytes changed, numbers replaced by extreme ones, pieces cut out or doubled, or the end cut off."""
    rng = np.random.default_rng(seed)
    header = data.index(b"blk.0.attn_q.weight") + 60
    for _ in range(count):
        out = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            at, kind = int(rng.integers(0, min(header, len(out)) or 1)), int(rng.integers(6))
            if kind == 0:
                out[at : at + 1] = bytes([int(rng.integers(256))])
            elif kind == 1:
                out[at : at + 8] = struct.pack("<Q", COUNTS[rng.integers(len(COUNTS))])
            elif kind == 2:
                out[at : at + 4] = struct.pack("<I", int(rng.integers(0, 45)))
            elif kind == 3:
                del out[at : at + int(rng.integers(1, 40))]
            elif kind == 4:
                out[at:at] = out[at : at + int(rng.integers(1, 40))]
            else:
                del out[int(rng.integers(0, len(out) + 1)) :]
        yield bytes(out)


def check(path: Path, copies: Iterator[bytes]) -> tuple[int, int]:
    """How many copies load, and how many are refused."""
    loaded = refused = 0
    for data in copies:
        path.write_bytes(data)
        begin = time.perf_counter()
        try:
            source = open_gguf(path)
            source.config()
            for name, stored in source.tensors().items():
                source.rows(name, np.arange(stored.shape[0]))
            source.tokenizer_file()
            loaded += 1
        except LlamaGPUError:
            refused += 1
        assert time.perf_counter() - begin < MOST_SECONDS
    return loaded, refused


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_headers(tmp_path: Path, count: int) -> None:
    data = small_file(tmp_path)
    tracemalloc.start()
    try:
        loaded, refused = check(tmp_path / "mutated.gguf", mutated(data, count, seed=count))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert loaded + refused == count
    assert loaded > count // 50
    assert refused > count // 4
    assert peak < MOST_BYTES


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = small_file(tmp_path)
    path = tmp_path / "cut.gguf"
    for end in range(0, len(data) - 32, 7):
        path.write_bytes(data[:end])
        with pytest.raises(UnsupportedModelError, match="broken"):
            read_header(path)


@pytest.mark.parametrize(
    ("at", "new", "word"),
    [
        (0, b"GGML", "does not begin with GGUF"),
        (0, b"version https://git-lfs", "Git LFS pointer"),
        (4, struct.pack("<I", 1), "GGUF of version 1"),
        (4, struct.pack("<I", 4), "GGUF of version 4"),
        (4, struct.pack(">I", 3), "big-endian"),
        (8, struct.pack("<Q", 2**60), "not plausible"),
        (16, struct.pack("<Q", 2**60), "not plausible"),
        (24, struct.pack("<Q", 2**60), "a key claims"),
    ],
)
def test_broken_beginnings_are_named(tmp_path: Path, at: int, new: bytes, word: str) -> None:
    data = bytearray(small_file(tmp_path))
    data[at : at + len(new)] = new
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(UnsupportedModelError, match=word):
        read_header(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (b"general.alignment\x04\0\0\0\x20\0\0\0", b"general.alignment\x04\0\0\0\x21\0\0\0", "power of two"),
        (b"output_norm.weight", b"token_embd.weight\0", "token_embd"),
        (b"blk.0.attn_q.weight\x02", b"blk.0.attn_q.weight\x09", "9 axes"),
        (b"output_norm.weight\x01\0\0\0\x20", b"output_norm.weight\x01\0\0\0\0", "cannot hold"),
    ],
)
def test_broken_entries_are_named(tmp_path: Path, old: bytes, new: bytes, word: str) -> None:
    data = small_file(tmp_path)
    assert data.count(old) == 1
    (tmp_path / "a.gguf").write_bytes(data.replace(old, new))
    with pytest.raises(UnsupportedModelError, match=word):
        open_gguf(tmp_path / "a.gguf")


def test_huge_claims_in_a_huge_file_stay_cheap(tmp_path: Path) -> None:
    """A file of 8 GB of zeros (which takes no room on the disk) whose array claims a billion strings."""
    path = tmp_path / "a.gguf"
    key = b"tokenizer.ggml.tokens"
    for count, kind in ((10**9, 8), (1_900_000, 8), (10**9, 4), (10**8, 4)):
        head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
        with path.open("wb") as file:
            file.write(head + struct.pack("<IIQ", 9, kind, count))
            file.truncate(8_000_000_000)
        begin = time.perf_counter()
        if count == 1_900_000:
            assert len(read_header(path).fields[key.decode()]) == count
        else:
            with pytest.raises(UnsupportedModelError, match="broken"):
                read_header(path)
        assert time.perf_counter() - begin < MOST_SECONDS
