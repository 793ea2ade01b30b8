"""Tokenizers, streaming decode, stop strings, SentencePiece models."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import random_models

from llamagpu import LLM, gpu
from llamagpu.errors import ModelNotFoundError, UnsupportedModelError
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


# --- SentencePiece models ------------------------------------------------------------------

MODELS = Path(__file__).parent / "sentencepiece"
GOLDENS = json.loads((MODELS / "goldens.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", GOLDENS["bpe"])
def test_a_converted_model_gives_the_ids_of_transformers(name: str) -> None:
    """For transformers' classes for Llama and Gemma, with and without ``legacy``."""
    golden = GOLDENS["bpe"][name]
    tokenizer = Tokenizer((MODELS / "bpe.model").read_bytes(), golden["config"], 600)
    texts = [*GOLDENS["texts"], "a<|im_end|> b<think> c"]
    for text, ids, decoded in zip(texts, golden["ids"], golden["decoded"], strict=True):
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids, skip_special=False) == decoded


@pytest.mark.parametrize("name", ["bpe", "unigram"])
def test_a_converted_model_gives_the_ids_of_sentencepiece(name: str) -> None:
    """On texts without special tokens. Metaspace, which transformers uses, adds no space before a space in BPE."""
    tokenizer = Tokenizer((MODELS / f"{name}.model").read_bytes(), {}, 600)
    checked = 0
    for text, ids in zip(GOLDENS["texts"], GOLDENS[f"{name} itself"], strict=True):
        if not any(mark in text for mark in ("<s>", "</s>", "<unk>", "<sep>", "▁")) and text.lstrip() == text:
            assert tokenizer.encode(text, special=False) == ids, text
            checked += 1
    assert checked >= 8


def test_converted_models_stream_whole_characters() -> None:
    for name in ("bpe", "unigram"):
        tokenizer = Tokenizer((MODELS / f"{name}.model").read_bytes(), {"bos_token": "<s>"}, 600)
        for text in TEXTS if name == "bpe" else ("two words", "1/2"):
            check_every_cut(tokenizer, text)


@pytest.mark.parametrize(
    ("model", "config", "error"),
    [
        (b"", {}, "not a SentencePiece model"),
        (b"IQ== 0\nIg== 1\n", {}, "tiktoken"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", {}, "not a SentencePiece model"),
        (b"\x0a\x06\x0a\x01a\x18\x00\x00", {}, "not a SentencePiece model"),
        (b"\x0a\x03\x0a\x01a\x12\x02\x18\x03", {}, "neither a BPE nor a Unigram"),
        (None, {"added_tokens_decoder": {"x": {"content": "a"}}}, "not a token"),
        (None, {"added_tokens_decoder": {"5": 5}}, "not a token"),
        (None, {"added_tokens_decoder": {"900": {"content": "new"}}}, "must be 500"),
        (None, {"added_tokens_decoder": {"7": {"content": "new"}}}, "has the piece"),
    ],
)
def test_models_that_cannot_be_converted(model: bytes | None, config: dict, error: str) -> None:
    with pytest.raises(UnsupportedModelError, match=error):
        Tokenizer((MODELS / "bpe.model").read_bytes() if model is None else model, config, 600)


def test_every_cut_of_a_model_file_is_refused_or_read() -> None:
    """A truncated file is one of our errors, never another exception."""
    whole = (MODELS / "unigram.model").read_bytes()
    for cut in range(0, len(whole), 97):
        try:
            Tokenizer(whole[:cut], {}, 600)
        except UnsupportedModelError:
            pass


def test_a_model_with_a_sentencepiece_file_generates(tmp_path: Path, device: gpu.Device) -> None:
    c = random_models.config(vocab_size=500)
    random_models.write_model(tmp_path, c, random_models.tensors(c, 1), tokenizer=False)
    (tmp_path / "tokenizer.model").write_bytes((MODELS / "bpe.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "add_bos_token": true}')
    with LLM(tmp_path, device=device) as llm:
        result = llm.generate("Hello world", max_tokens=3)
        assert result.prompt_token_ids == llm.tokenize("Hello world") == [1, *GOLDENS["bpe"]["llama"]["ids"][0]]
        assert llm.detokenize(result.prompt_token_ids) == "Hello world"


def test_where_tokenizers_are_found(tmp_path: Path) -> None:
    """tokenizer.model serves without tokenizer.json; older checkpoints have special and added tokens in other files."""
    source = HuggingFace(tmp_path)
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match=r"tekken.json is not supported(.|\n)*save_pretrained"):
        source.tokenizer_file()
    (tmp_path / "tokenizer.model").write_bytes((MODELS / "bpe.model").read_bytes())
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<s>", "additional_special_tokens": ["<|end|>"]}')
    (tmp_path / "added_tokens.json").write_text('{"<|end|>": 500, "<think>": 501}')
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true, "legacy": false}')
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.encode("<|end|><think>") == [1, 500, 501]
    assert tokenizer.special_texts == {"<unk>", "<s>", "</s>", "<|end|>"}
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="cannot be read"):
        open_tokenizer(tmp_path)


def test_bytes_of_tokens(shared: Path) -> None:
    """They add up to the text, for byte-level tokenizers and for those of SentencePiece, whose texts begin with a
    space."""
    text = " a naïve café 日本 🙂 x\nthe"
    for name in ("llama3", "llama2"):
        folder = shared / "tokenizers" / name
        tokenizer = Tokenizer((folder / "tokenizer.json").read_text(), {}, 200_000)
        ids = tokenizer.encode(text, special=False)
        assert b"".join(tokenizer.token_bytes(i) for i in ids).decode().strip() == text.strip()
        assert tokenizer.token_bytes(199_999) == b""
    assert tokenizer.token_bytes(1) == b"<s>"
