"""GGUF tokenizers against llama.cpp (goldens_gguf_tokens.json), and against the tokenizers they were made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
import tokenizers

from llamagpu.errors import UnsupportedModelError
from llamagpu.model.sources.gguf.header import read_header
from llamagpu.model.sources.gguf.pretokenizers import PRETOKENIZERS
from llamagpu.model.sources.gguf.vocabulary import Vocabulary
from llamagpu.text.tokenizer import Tokenizer

GOLDENS = json.loads((Path(__file__).parent / "goldens_gguf_tokens.json").read_text())
# llama.cpp's expressions for these two leave out combining marks (\p{M}), which the models' own expressions have.
DIFFERENT = frozenset((pre, "नमस्ते दुनिया क्षत्रिय") for pre in ("gpt-4o", "tekken"))
Fields = dict[str, tuple[str, Any]]


def vocabulary(folder: Path, fields: Fields) -> Vocabulary:
    """A vocabulary that has been through a file."""
    metadata = {"general.architecture": ("STRING", "llama")} | fields
    return Vocabulary(read_header(gguf_files.write(folder / "v.gguf", metadata, {})).fields)


def opened(made: Vocabulary) -> Tokenizer:
    return Tokenizer(made.tokenizer_json(), made.tokenizer_config(), len(made.tokens))


@pytest.mark.parametrize("pre", GOLDENS["ids"])
def test_byte_level_ids_match_llama_cpp(tmp_path: Path, pre: str) -> None:
    made = vocabulary(tmp_path, GOLDENS["gpt2"] | {"tokenizer.ggml.pre": ("STRING", pre)})
    tokenizer = opened(made)
    for text, ids in zip(GOLDENS["texts"], GOLDENS["ids"][pre], strict=True):
        if (pre, text) not in DIFFERENT:
            # llama.cpp adds a second BOS, with a warning
            assert tokenizer.encode(text) == (ids[1:] if ids[:2] == [made.bos] * 2 else ids), text
            begin = made.tokens[made.bos] if made.add_bos and made.bos is not None else ""
            assert tokenizer.decode(ids, skip_special=False) == begin + text


@pytest.mark.parametrize("name", GOLDENS["llama_ids"])
def test_sentencepiece_ids_match_llama_cpp(tmp_path: Path, name: str) -> None:
    tokenizer = opened(vocabulary(tmp_path, GOLDENS["llama"][name]))
    for text, ids in zip(GOLDENS["texts"], GOLDENS["llama_ids"][name], strict=True):
        assert tokenizer.encode(text) == ids, text


def test_goldens_cover_every_pretokenizer() -> None:
    covered = {PRETOKENIZERS[pre] for pre in GOLDENS["ids"]}
    assert covered == set(PRETOKENIZERS.values())


def byte_level_fields(path: Path) -> Fields:
    """The metadata that a converter makes of a byte-level tokenizer.json."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    vocab = {**whole["model"]["vocab"], **{t["content"]: t["id"] for t in whole["added_tokens"]}}
    special = {t["id"]: 3 if t["special"] else 4 for t in whole["added_tokens"]}
    tokens = sorted(vocab, key=lambda token: vocab[token])
    merges = [m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]]
    return {
        "tokenizer.ggml.model": ("STRING", "gpt2"),
        "tokenizer.ggml.pre": ("STRING", "llama-bpe"),
        "tokenizer.ggml.tokens": ("ARRAY", tokens),
        "tokenizer.ggml.token_type": ("ARRAY", [special.get(i, 1) for i in range(len(tokens))]),
        "tokenizer.ggml.merges": ("ARRAY", merges),
        "tokenizer.ggml.bos_token_id": ("UINT32", 128000),
        "tokenizer.ggml.eos_token_id": ("UINT32", 128001),
    }


def sentencepiece_fields(path: Path) -> Fields:
    """The metadata that a converter makes of Llama 2's tokenizer: the score of a token is minus the rank of its first
    merge."""
    whole = json.loads(path.read_text(encoding="utf-8"))["model"]
    tokens = sorted(whole["vocab"], key=lambda token: whole["vocab"][token])
    scores = [0.0] * len(tokens)
    for rank, merge in reversed(list(enumerate(whole["merges"]))):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        scores[whole["vocab"][left + right]] = -float(rank)
    merged = {i for i, s in enumerate(scores) if s}
    lowest = -float(len(whole["merges"]))
    for i, token in enumerate(tokens):  # single characters come last
        if i > 258 and i not in merged and len(token) == 1:
            scores[i] = lowest - i
    types = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]
    return {
        "tokenizer.ggml.model": ("STRING", "llama"),
        "tokenizer.ggml.tokens": ("ARRAY", tokens),
        "tokenizer.ggml.scores": ("ARRAY", scores),
        "tokenizer.ggml.token_type": ("ARRAY", types),
        "tokenizer.ggml.bos_token_id": ("UINT32", 1),
        "tokenizer.ggml.eos_token_id": ("UINT32", 2),
        "tokenizer.ggml.unknown_token_id": ("UINT32", 0),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("name", "where"), [("llama-bpe", "llama3"), ("llama-spm", "llama2")])
def test_published_tokenizers_survive(shared: Path, tmp_path: Path, name: str, where: str) -> None:
    """Llama's own tokenizers, as metadata of a file and back: llama.cpp's published cases, and the original's ids."""
    path = shared / "tokenizers" / where / "tokenizer.json"
    made = vocabulary(tmp_path, (byte_level_fields if where == "llama3" else sentencepiece_fields)(path))
    tokenizer, original = opened(made), tokenizers.Tokenizer.from_file(str(path))
    folder = shared / "tokenizers" / "llama-cpp-cases"
    inputs = (folder / f"ggml-vocab-{name}.gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    outputs = (folder / f"ggml-vocab-{name}.gguf.out").read_text().splitlines()
    for text, line in zip(inputs, outputs, strict=False):
        assert tokenizer.encode(text, special=False) == [int(i) for i in line.split()], repr(text)
    for text in (*GOLDENS["texts"], *inputs):
        ids = original.encode(text).ids
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids[1:]) == original.decode(ids[1:])


def test_ids_and_special_tokens(tmp_path: Path) -> None:
    """Generation stops at EOS and EOT, and at control tokens that end an answer by their name."""
    tokens = ["<s>", "</s>", "<|im_end|>", "<|eot_id|>", "<tool>", "a", "<|endoftext|>"]
    fields = {
        "tokenizer.ggml.model": ("STRING", "gpt2"),
        "tokenizer.ggml.pre": ("STRING", "gpt-2"),
        "tokenizer.ggml.tokens": ("ARRAY", tokens),
        "tokenizer.ggml.token_type": ("ARRAY", [3, 3, 3, 3, 4, 1, 1]),
        "tokenizer.ggml.merges": ("ARRAY", ["a a"]),
        "tokenizer.ggml.bos_token_id": ("UINT32", 0),
        "tokenizer.ggml.eos_token_id": ("UINT32", 1),
        "tokenizer.ggml.eot_token_id": ("UINT32", 2),
    }
    made = vocabulary(tmp_path, fields)
    assert made.ids() == {"bos_token_id": 0, "eos_token_id": [1, 2, 3]}
    assert made.tokenizer_config() == {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"tokenizer.ggml.model": ("STRING", "bert")}, "model: supported are llama"),
        ({"tokenizer.ggml.pre": ("STRING", "viking")}, "'viking' for tokenizer.ggml.pre: supported are llama-bpe"),
        ({"tokenizer.ggml.eos_token_id": ("UINT32", 9999)}, "eos_token_id: there are 839 tokens"),
        ({"tokenizer.ggml.merges": ("ARRAY", ["no merge"])}, "not in the vocabulary"),
        ({"tokenizer.ggml.token_type": ("ARRAY", [1])}, "token_type"),
        ({"tokenizer.ggml.add_bos_token": ("UINT32", 1)}, "add_bos_token.*true or false"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, changes: Fields, word: str) -> None:
    with pytest.raises(UnsupportedModelError, match=word):
        vocabulary(tmp_path, GOLDENS["gpt2"] | {"tokenizer.ggml.pre": ("STRING", "gpt-2")} | changes).tokenizer_json()


def test_a_token_twice_keeps_its_first_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields = GOLDENS["gpt2"] | {"tokenizer.ggml.pre": ("STRING", "gpt-2")}
    kind, tokens = fields["tokenizer.ggml.tokens"]
    made = vocabulary(tmp_path, fields | {"tokenizer.ggml.tokens": (kind, [*tokens[:-1], tokens[40]])})
    made.types = np.ones_like(made.types)
    assert opened(made).encode(tokens[40]) == [40]
    assert "1 tokens twice" in caplog.text
