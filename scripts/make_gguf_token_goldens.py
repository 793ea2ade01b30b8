"""What llama.cpp makes of texts with every pre-tokenizer: tests/goldens_gguf_tokens.json.

    python scripts/make_gguf_token_goldens.py    # needs xllamacpp (llama.cpp as a package), gguf and tokenizers

The vocabulary is learnt from the texts without splitting them, so that its tokens cross all borders: ids then show
where a pre-tokenizer splits.
"""

from __future__ import annotations

import json
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
import gguf_files  # noqa: E402

OUT = ROOT / "tests" / "goldens_gguf_tokens.json"
TEXTS = [
    "Hello world, hello  World!",
    "two  spaces and   three    four",
    "tab\tand\nnewline\r\n\r\nx \n y",
    " leading and trailing ",
    "don't I'll WE'VE 'tis o'clock's",
    "1234567 12.5 3,000 7 x9y 1000000",
    "naïve café ÀÉÎ Ünï",
    "日本語のテキスト、テスト。123",
    "한국어 텍스트 문장",
    "🙂👩‍👩‍👧 emoji 🏳️‍🌈",
    "def f(x):\n    return x**2  # comment\n\n\nprint(f(3))\n",
    'a<b>c</b> {"json": [1, 2], "k": null}',
    "مرحبا بالعالم",
    "नमस्ते दुनिया क्षत्रिय",
    "…“quotes”—dash $5 + 3 = 8 ^~`",
    "   ",
    "\n\n",
    "CamelCaseXMLHttpRequest snake_case kebab-case",
    "http://example.com/?q=1&b=2#frag",
    "!!!???... (a) [b] {c}",
    "Ελληνικά κείμενο кириллица текст",
    "½ ² ⅷ ٣ ௧",
    "   indented\n\tcode\n        deep",
    "x /path/to/file\n/next",
    "<ctl>ctl</ctl> and <user> token",
    "",
]
PRES = [
    *("llama-bpe", "smaug-bpe", "dbrx", "qwen2", "hunyuan", "hunyuan-dense", "smollm", "refact", "starcoder"),
    *("exaone", "exaone4", "gpt-2", "olmo", "gpt-4o", "tekken", "default"),
]
CONTROL = ["<ctl>", "</ctl>", "<user>"]


def byte_level() -> dict[str, tuple[str, Any]]:
    """A vocabulary of bytes, 600 merges and three added tokens, without ``pre``."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=856, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(TEXTS * 3, trainer)
    model = json.loads(bpe.to_str())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    types = [1] * len(tokens) + [3, 3, 4]
    return {
        "tokenizer.ggml.model": ("STRING", "gpt2"),
        "tokenizer.ggml.tokens": ("ARRAY", tokens + CONTROL),
        "tokenizer.ggml.token_type": ("ARRAY", types),
        "tokenizer.ggml.merges": ("ARRAY", [" ".join(merge) for merge in model["merges"]]),
        "tokenizer.ggml.bos_token_id": ("UINT32", len(tokens)),
        "tokenizer.ggml.eos_token_id": ("UINT32", len(tokens) + 1),
    }


def sentencepiece() -> dict[str, tuple[str, Any]]:
    """A SentencePiece vocabulary: control tokens, bytes, pieces with scores, and runs of spaces as added tokens."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=700, show_progress=False)
    bpe.train_from_iterator([text.replace(" ", "\u2581") for text in TEXTS * 3], trainer)
    pieces = [token for token, _ in sorted(bpe.get_vocab().items(), key=lambda item: item[1])]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *CONTROL, "   ", *pieces]
    types = [2, 3, 3] + [6] * 256 + [3, 3, 4, 4] + [1] * len(pieces)
    scores = [0.0] * 263 + [-float(i) for i in range(len(pieces))]
    return {
        "tokenizer.ggml.model": ("STRING", "llama"),
        "tokenizer.ggml.pre": ("STRING", "default"),
        "tokenizer.ggml.tokens": ("ARRAY", tokens),
        "tokenizer.ggml.token_type": ("ARRAY", types),
        "tokenizer.ggml.scores": ("ARRAY", scores),
        "tokenizer.ggml.bos_token_id": ("UINT32", 1),
        "tokenizer.ggml.eos_token_id": ("UINT32", 2),
        "tokenizer.ggml.unknown_token_id": ("UINT32", 0),
    }


def ids(fields: dict[str, tuple[str, Any]], folder: Path) -> list[list[int]]:
    """llama.cpp's ids of every text, through the HTTP server of a tiny model with this vocabulary."""
    import xllamacpp

    rng = np.random.default_rng(0)
    vocab = len(fields["tokenizer.ggml.tokens"][1])
    sizes = {"vocab_size": vocab, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64}
    c = sizes | {"rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    tensors = {n: (rng.standard_normal(s, np.float32), "F32") for n, s in gguf_files.llama_shapes(c).items()}
    metadata = {k: v for k, v in gguf_files.llama_metadata(c).items() if not k.startswith("tokenizer.")}
    path = gguf_files.write(folder / "tiny.gguf", metadata | fields, tensors)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(path), 64, 1, False
    server = xllamacpp.Server(params)

    def tokenize(text: str) -> list[int]:
        body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        address = server.listening_address + "/tokenize"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        return list(json.loads(urllib.request.urlopen(request).read())["tokens"])

    return [tokenize(text) for text in TEXTS]


def main() -> None:
    """Write the goldens."""
    level, pieces = byte_level(), sentencepiece()
    prefix = "tokenizer.ggml.add_space_prefix"
    spm = {
        "prefix": pieces,
        "plain": pieces | {prefix: ("BOOL", False), "tokenizer.ggml.add_eos_token": ("BOOL", True)},
    }
    with tempfile.TemporaryDirectory() as folder:
        made = {pre: ids(level | {"tokenizer.ggml.pre": ("STRING", pre)}, Path(folder)) for pre in PRES}
        made_spm = {name: ids(fields, Path(folder)) for name, fields in spm.items()}
    values = {"texts": TEXTS, "gpt2": level, "llama": spm, "ids": made, "llama_ids": made_spm}
    lines = [f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in values.items()]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
