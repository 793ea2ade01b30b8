"""Tokenizers, streaming decode, stop strings."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from llamagpu import LLM
from llamagpu.model.sources import HuggingFace
from llamagpu.text import StopFilter, TextStream, Tokenizer

TEXTS = (
    "Hello 👩‍👩‍👧 wörld",
    "日本語のテスト、漢字と仮名。",
    "🦙🦙🦙",
    "  two spaces, a\ttab\n\nand lines ",
    "é́ combining, ½ and ﷽",
    "a real \ufffd inside",
)
TOKENIZERS = ("tokenizers/llama3", "tokenizers/llama2", "models/stories260k", "models/tinystories-656k")


def open_tokenizer(directory: Path) -> Tokenizer:
    source = HuggingFace(directory)
    return Tokenizer(source.tokenizer_file(), source.tokenizer_config(), 2**20)


def check_every_cut(tokenizer: Tokenizer, text: str) -> None:
    """For every number of ids, the pieces and the flushed rest join to the full decode. No piece splits a character."""
    ids = tokenizer.encode(text)
    for cut in range(len(ids) + 1):
        stream = TextStream(tokenizer)
        pieces = [stream.push(i) for i in ids[:cut]]
        assert "\ufffd" in text or not any("\ufffd" in p for p in pieces)
        assert "".join(pieces) + stream.flush() == tokenizer.decode(ids[:cut])


@pytest.mark.parametrize("text", TEXTS)
def test_streaming_decode_of_the_bundled_tokenizer(story: LLM, text: str) -> None:
    check_every_cut(story._tokenizer, text)
    assert story.detokenize(story.tokenize(text)) == text


@pytest.mark.parametrize("where", TOKENIZERS)
def test_streaming_decode_of_other_tokenizers(shared: Path, where: str) -> None:
    """Byte-level, and SentencePiece with byte fallback."""
    tokenizer = open_tokenizer(shared / where)
    for text in TEXTS:
        check_every_cut(tokenizer, text)


def test_streaming_decode_of_random_ids(story: LLM) -> None:
    """The bytes of random ids need not be UTF-8. The stream still gives the text of the full decode."""
    rng = random.Random(3)
    for _ in range(200):
        ids = [rng.randrange(2, 300) for _ in range(12)]
        stream = TextStream(story._tokenizer)
        text = "".join(stream.push(i) for i in ids) + stream.flush()
        assert text == story.detokenize(ids)


@pytest.mark.parametrize(("name", "where"), [("llama-bpe", "llama3"), ("llama-spm", "llama2")])
def test_ids_match_published_cases(shared: Path, name: str, where: str) -> None:
    folder = shared / "tokenizers" / "llama-cpp-cases"
    inputs = (folder / f"ggml-vocab-{name}.gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    outputs = (folder / f"ggml-vocab-{name}.gguf.out").read_text().splitlines()
    tokenizer = open_tokenizer(shared / "tokenizers" / where)
    assert inputs.pop() == ""  # a separator ends the file
    assert len(inputs) == len(outputs) > 30
    for text, line in zip(inputs, outputs, strict=True):
        assert tokenizer.encode(text, special=False) == [int(i) for i in line.split()], repr(text)


def test_special_tokens_that_are_marked_normalized(shared: Path) -> None:
    """The tokenizers library itself does not skip these."""
    tokenizer = open_tokenizer(shared / "models" / "tinystories-656k")
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.decode([1, 80, 147, 2]) == tokenizer.decode([80, 147])
    assert "<|start_story|>" in tokenizer.decode([1, 80], skip_special=False)


def test_bos_is_added_once(story: LLM) -> None:
    assert story.tokenize("a")[0] == story.config.bos_token_id
    assert story.tokenize("a", add_special_tokens=False) == story.tokenize("a")[1:]
    source = story._prepared.source
    text = source.tokenizer_file()
    assert isinstance(text, str)
    start, end = text.index('"post_processor"'), text.index('"decoder"')
    bare = text[:start] + '"post_processor": null, ' + text[end:]
    assert Tokenizer(bare, source.tokenizer_config(), 2048).encode("a") == story.tokenize("a")


# --- stop strings --------------------------------------------------------------------------


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[list[str], bool]:
    f = StopFilter(stops)
    out = [f.push(p) for p in pieces]
    return [*out, f.flush()], f.stopped


@pytest.mark.parametrize("stops", [("END",), ("aab", "abc"), ("\n\n", "."), ("aaa",), ()])
def test_stop_strings_over_every_cut(stops: tuple[str, ...]) -> None:
    """However the text is cut into pieces, the output is the text before the first stop string."""
    for text in ("xxENDyy", "ENENDE", "aaabc", "aaaab", "one.\n\ntwo", "EN", ""):
        ends = [text.index(s) for s in stops if s in text]
        expected = text[: min(ends)] if ends else text
        for marks in itertools.product((False, True), repeat=max(0, len(text) - 1)):
            cuts = [0, *(i + 1 for i, m in enumerate(marks) if m), len(text)]
            pieces, stopped = run(stops, [text[a:b] for a, b in itertools.pairwise(cuts)])
            assert stopped == bool(ends)
            assert "".join(pieces) == expected


def test_stop_strings_hold_back_no_more_than_needed() -> None:
    pieces, stopped = run(("END",), ["a E", "N", "x", "EN", "D more"])
    assert pieces == ["a ", "", "ENx", "", "", ""]
    assert stopped
