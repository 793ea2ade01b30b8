#!/usr/bin/env python3
"""Compare embeddings with sentence-transformers on the same directory.

    python scripts/check_embeddings.py MODEL --write vectors.npz     # needs sentence-transformers
    python scripts/check_embeddings.py MODEL --read vectors.npz      # needs llamagpu

Prints, for each dtype, the smallest cosine of 200 texts of 1 to 256 tokens in many scripts, the queries of a small
retrieval set whose order of documents changes, and tokens a second packed, one text at a time, and beside
sentence-transformers on the CPU (measured in --write).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

WORDS = (
    *("the cat sat on a mat", "Die Katze saß auf der Matte", "Le chat était sur le tapis", "Кошка сидела на коврике"),
    *(
        "猫がマットの上に座った",
        "고양이가 매트 위에 앉았다",
        "القطة جلست على الحصيرة",
        "बिल्ली चटाई पर बैठी",
        "גור חתולים על מחצלת",
    ),
    *(
        "Η γάτα κάθισε στο χαλί",
        "แมวนั่งบนเสื่อ",
        "def f(x): return x ** 2  # 平方",
        "🐱🐾 ½ ² ﬁ Ｆｕｌｌ",
        "E=mc^2; https://example.org/?q=1",
    ),
)
TOPICS = ("a cat", "the sea", "bread", "a train", "the moon", "a garden", "music", "snow", "a library", "football")
QUERIES = tuple(f"A story about {topic}" for topic in TOPICS)
DOCUMENTS = tuple(
    text.format(topic)
    for topic in TOPICS
    for text in ("Last year I wrote a long tale of {}.", "Everything that people know of {}.", "Why {} makes us happy.")
)


def texts() -> list[str]:
    """200 texts of 1 to about 256 tokens."""
    rng = np.random.default_rng(0)
    return [
        " ".join(rng.choice(WORDS, int(rng.integers(1, 24)))) if i % 4 else WORDS[i % len(WORDS)] for i in range(200)
    ]


def write(model: Path, out: Path) -> None:
    """Vectors and seconds of sentence-transformers on the CPU."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(model), device="cpu")
    loaded.encode(texts()[:32])
    start = time.perf_counter()
    vectors = loaded.encode(texts())
    seconds = time.perf_counter() - start
    queries, documents = loaded.encode(list(QUERIES)), loaded.encode(list(DOCUMENTS))
    np.savez(out, texts=vectors, queries=queries, documents=documents, seconds=seconds)


def compare(model: Path, read: Path) -> None:
    """Print the lines of every dtype."""
    from llamagpu import Embedder

    expected = np.load(read)
    order = (-expected["queries"] @ expected["documents"].T).argsort(axis=1, kind="stable")
    for dtype in ("float32", "float16", "int8"):
        with Embedder(model, dtype=dtype) as embedder:
            given = texts()
            tokens = sum(len(ids) for ids, _, _ in embedder._tokenizer.encode_pairs(given, embedder.max_length))
            embedder.encode(given)  # compiles
            start = time.perf_counter()
            vectors = embedder.encode(given)
            packed = time.perf_counter() - start
            start = time.perf_counter()
            for text in given:
                embedder.encode(text)
            alone = time.perf_counter() - start
            found = (-embedder.encode(list(QUERIES)) @ embedder.encode(list(DOCUMENTS)).T).argsort(
                axis=1, kind="stable"
            )
        cosine = (vectors * expected["texts"]).sum(axis=1).min()
        changed = int((found[:, :5] != order[:, :5]).any(axis=1).sum())
        print(f"{dtype}: smallest cosine {cosine:.7f}; the first five documents change for {changed} of {len(QUERIES)}")
        print(f"  {tokens / packed:,.0f} tokens/s packed, {tokens / alone:,.0f} one text at a time")
    print(f"{tokens / expected['seconds']:,.0f} tokens/s by sentence-transformers on the CPU")


def main() -> None:
    """Parse the arguments and run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--read", type=Path)
    args = parser.parse_args()
    if args.write is not None:
        write(args.model, args.write)
    if args.read is not None:
        compare(args.model, args.read)


if __name__ == "__main__":
    main()
