#!/usr/bin/env python3
"""Make tests/sentencepiece: two tiny SentencePiece models, and the ids that transformers and sentencepiece give.

Development only; needs transformers (the ``oracle`` extra) and sentencepiece:

    python scripts/make_tokenizer_goldens.py
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import sentencepiece
import transformers

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "sentencepiece"
TEXTS = (
    "Hello world",
    "",
    " ",
    " leading, trailing ",
    "two  spaces   three",
    "a\nb\n\n c\td",
    "Grüße, 日本語 🦙 é́ ½",
    "<s>hello</s> again",
    "</s> hello<s>",
    "x<unk>y <0x41>",
    "one<sep>two <sep> three",
    "▁literal ▁ mark",
    "<s",
    "The kernels work without a model too: `linear`, `matmul`.",
    "1234567890 + 0.5 = 3,14",
)
DECODED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
ADDED = {"500": {"content": "<|im_end|>", "special": True}, "501": {"content": "<think>", "special": False}}
# Keys of tokenizer_config.json, each with transformers' class.
CONFIGS = {
    "llama": ("LlamaTokenizer", {}),
    "legacy": ("LlamaTokenizer", {"legacy": True}),
    "not legacy": ("LlamaTokenizer", {"legacy": False, "add_bos_token": False}),
    "no prefix": ("LlamaTokenizer", {"add_prefix_space": False, "legacy": False}),
    "ends": ("LlamaTokenizer", {"add_eos_token": True, "legacy": True}),
    "gemma": ("GemmaTokenizer", DECODED),
    "added": ("LlamaTokenizer", {"legacy": False, "added_tokens_decoder": ADDED}),
}


def train(name: str, kind: str, size: int, **options: object) -> None:
    sentences = [line for page in ("README.md", "CONTRIBUTING.md") for line in (ROOT / page).read_text().splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([s for s in sentences if s.strip()]),
        model_prefix=str(OUT / name),
        model_type=kind,
        vocab_size=size,
        user_defined_symbols=["<sep>"],
        character_coverage=0.999,
        minloglevel=2,
        **options,
    )
    (OUT / f"{name}.vocab").unlink()


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    train("bpe", "bpe", 500, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False)
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.tsv"
        rules.write_text("FC\t75 65\nBD\t31 2F 32\nA\t20\n9\t20\n")  # ü → ue, ½ → 1/2, line breaks and tabs → spaces
        train("unigram", "unigram", 300, normalization_rule_tsv=str(rules))
    found: dict[str, object] = {
        "made_with": f"transformers {transformers.__version__}, sentencepiece {sentencepiece.__version__}",
        "texts": TEXTS,
    }
    configs = {}
    for name, (kind, config) in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(OUT / "bpe.model", Path(folder) / "tokenizer.model")
            config = {**config, "tokenizer_class": kind}
            (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))
            extra = {"vocab_file": str(Path(folder) / "tokenizer.model")} if kind == "GemmaTokenizer" else {}
            tokenizer = getattr(transformers, kind).from_pretrained(folder, **extra)
        texts = [*TEXTS, "a<|im_end|> b<think> c"]
        ids = [tokenizer.encode(t) for t in texts]
        configs[name] = {"config": config, "ids": ids, "decoded": [tokenizer.decode(i) for i in ids]}
    found["bpe"] = configs
    for name in ("bpe", "unigram"):
        model = sentencepiece.SentencePieceProcessor(model_file=str(OUT / f"{name}.model"))
        found[f"{name} itself"] = [model.encode(t) for t in TEXTS]
    (OUT / "goldens.json").write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
