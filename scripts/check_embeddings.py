#!/usr/bin/env python3
"""Compare embeddings with sentence-transformers on the same directory.

    python scripts/check_embeddings.py MODEL --write vectors.npz     # needs sentence-transformers
    python scripts/check_embeddings.py MODEL --read vectors.npz      # needs llamagpu

Prints, for each dtype, the smallest cosine and the largest error of 200 texts of 1 to 256 tokens in many scripts, the
queries of a small retrieval set whose first five documents change, and tokens a second packed, one text at a time, and
beside sentence-transformers on the CPU (measured in --write). With ``--languages``, for multilingual models with the
prompts query and passage, also how many of ten questions find their answer first in another language. Fails if a text's
ids differ, if a cosine is below 0.99999 in float32 or 0.999 in float16 and int8, or if these orders change.

``--goldens tests/goldens_e5.safetensors`` writes the questions' and answers' vectors and ids, for tests/test_e5.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llamagpu import Embedder
    from llamagpu.text import Tokenizer

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


# A question in English and in another language, and the answer in both.
FACTS = (
    (
        *("What is the capital of Portugal?", "Was ist die Hauptstadt von Portugal?"),
        *("Lisbon is the capital of Portugal.", "Lissabon ist die Hauptstadt Portugals."),
    ),
    (
        *("How do bees make honey?", "Comment les abeilles font-elles le miel ?"),
        *("Bees make honey from the nectar of flowers.", "Les abeilles fabriquent le miel avec le nectar des fleurs."),
    ),
    (
        *("At what temperature does water boil?", "¿A qué temperatura hierve el agua?"),
        *("Water boils at 100 degrees Celsius.", "El agua hierve a 100 grados centígrados."),
    ),
    (
        *("Who wrote War and Peace?", "Кто написал «Войну и мир»?"),
        *("War and Peace is a novel by Leo Tolstoy.", "«Война и мир» — роман Льва Толстого."),
    ),
    (
        *("What is the highest mountain of Japan?", "日本で一番高い山は何ですか。"),
        *("Mount Fuji is the highest mountain in Japan.", "富士山は日本で最も高い山です。"),
    ),
    (
        *("How long is the Great Wall?", "长城有多长？"),
        *("The Great Wall of China is over 20,000 kilometres long.", "中国的长城全长超过两万公里。"),
    ),
    (
        *("Which river flows through Cairo?", "ما هو النهر الذي يمر بالقاهرة؟"),
        *("The Nile flows through Cairo.", "يمر نهر النيل عبر القاهرة."),
    ),
    (
        *("What do cows eat?", "गाय क्या खाती है?"),
        *("Cows eat grass and hay.", "गाय घास और भूसा खाती है।"),
    ),
    (
        *("How many players are in a football team?", "축구팀에는 선수가 몇 명 있습니까?"),
        *("A football team has eleven players.", "축구팀에는 열한 명의 선수가 있습니다."),
    ),
    (
        *("When did the first man walk on the Moon?", "Πότε περπάτησε ο πρώτος άνθρωπος στη Σελήνη;"),
        *("A man first walked on the Moon in 1969.", "Ο άνθρωπος περπάτησε πρώτη φορά στη Σελήνη το 1969."),
    ),
)
PROMPTS = ("query: ", "query: ", "passage: ", "passage: ")  # of a fact's texts
BARS = {"float32": 0.99999, "float16": 0.999, "int8": 0.999}  # int4 is for information


def texts() -> list[str]:
    """200 texts of 1 to about 256 tokens."""
    rng = np.random.default_rng(0)
    return [
        " ".join(rng.choice(WORDS, int(rng.integers(1, 24)))) if i % 4 else WORDS[i % len(WORDS)] for i in range(200)
    ]


def found_first(encode: Callable[..., np.ndarray]) -> int:
    """Questions whose own answer comes first, of English ones among the answers in other languages and the reverse.

    Args:
        encode: as of sentence-transformers and ``Embedder``.
    """
    english, foreign, answers, translated = (list(part) for part in zip(*FACTS, strict=True))
    count = 0
    for questions, among in ((english, translated), (foreign, answers)):
        scores = encode(questions, prompt_name="query") @ encode(among, prompt_name="passage").T
        count += int((scores.argmax(axis=1) == np.arange(len(FACTS))).sum())
    return count


def write(model: Path, out: Path, languages: bool) -> None:
    """Ids, vectors and seconds of sentence-transformers on the CPU."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(model), device="cpu")
    loaded.encode(texts()[:32])
    start = time.perf_counter()
    vectors = loaded.encode(texts())
    seconds = time.perf_counter() - start
    queries, documents = loaded.encode(list(QUERIES)), loaded.encode(list(DOCUMENTS))
    ids = loaded.tokenizer(texts(), truncation=True, max_length=loaded.max_seq_length)["input_ids"]
    kept = {"texts": vectors, "queries": queries, "documents": documents, "seconds": seconds}
    kept |= {"ids": np.concatenate(ids), "lengths": [len(i) for i in ids]}
    np.savez(out, **kept, **({"first": found_first(loaded.encode)} if languages else {}))


def write_goldens(model: Path, out: Path) -> None:
    """Ids and vectors of the questions and answers with their prompts, by sentence-transformers on the CPU."""
    from safetensors.numpy import save_file
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(model), device="cpu")
    ids = loaded.tokenizer(prompted())["input_ids"]
    lengths = np.array([len(i) for i in ids], np.int32)
    save_file(
        {"vectors": loaded.encode(prompted()), "ids": np.concatenate(ids, dtype=np.int32), "lengths": lengths}, out
    )


def prompted() -> list[str]:
    """The questions and answers with their prompts, fact by fact."""
    return [prompt + text for fact in FACTS for prompt, text in zip(PROMPTS, fact, strict=True)]


def compare(model: Path, read: Path, dtypes: list[str], timing: bool) -> list[str]:
    """Print the lines of every dtype; what failed."""
    from llamagpu import Embedder

    expected = np.load(read)
    most, tokens = int(expected["lengths"].max()), int(expected["lengths"].sum())
    same = [i for ids, _, _ in tokenizer(model).encode_pairs(texts(), most) for i in ids] == expected["ids"].tolist()
    failed = [] if same else ["ids"]
    for dtype in dtypes:
        with Embedder(model, dtype=dtype) as embedder:
            vectors = embedder.encode(texts())
            packed, alone = timed(embedder) if timing else (0.0, 0.0)
            queries, documents = embedder.encode(list(QUERIES)), embedder.encode(list(DOCUMENTS))
            first = found_first(embedder.encode) if "first" in expected else 0
        cosine = (vectors * expected["texts"]).sum(axis=1).min()
        error = np.abs(vectors - expected["texts"]).max()
        order, reference = ranked(queries, documents), ranked(expected["queries"], expected["documents"])
        changed = int((order != reference).any(axis=1).sum())
        print(f"{dtype}: smallest cosine {cosine:.7f}, largest error {error:.1e}; ", end="")
        print(f"the first five documents change for {changed} of {len(QUERIES)}")
        if "first" in expected:
            print(f"  {first} of {2 * len(FACTS)} answers come first across languages", end="")
            print(f", {expected['first']} with sentence-transformers")
        if timing:
            print(f"  {tokens / packed:,.0f} tokens/s packed, {tokens / alone:,.0f} one text at a time")
        sys.stdout.flush()
        if dtype in BARS and (cosine < BARS[dtype] or changed or ("first" in expected and first < expected["first"])):
            failed.append(dtype)
    if timing:
        print(f"{tokens / expected['seconds']:,.0f} tokens/s by sentence-transformers on the CPU")
    return failed


def tokenizer(model: Path) -> Tokenizer:
    """The tokenizer of a model's directory."""
    from llamagpu.model.sources import open_directory
    from llamagpu.text import Tokenizer

    source = open_directory(model)
    return Tokenizer(source.tokenizer_file(), source.tokenizer_config(), source.config()["vocab_size"])


def timed(embedder: Embedder) -> tuple[float, float]:
    """Seconds for the texts, packed and one at a time. The first call has compiled the kernels."""
    start = time.perf_counter()
    embedder.encode(texts())
    packed = time.perf_counter() - start
    start = time.perf_counter()
    for text in texts():
        embedder.encode(text)
    return packed, time.perf_counter() - start


def ranked(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The first five documents of every query."""
    return (-queries @ documents.T).argsort(axis=1, kind="stable")[:, :5]


def main() -> None:
    """Parse the arguments and run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--read", type=Path)
    parser.add_argument("--goldens", type=Path)
    parser.add_argument("--languages", action="store_true", help="with --write")
    parser.add_argument("--dtypes", default="float32,float16,int8,int4", help="with --read")
    parser.add_argument("--untimed", action="store_true", help="with --read: vectors alone, a third of the time")
    args = parser.parse_args()
    if args.write is not None:
        write(args.model, args.write, args.languages)
    if args.goldens is not None:
        write_goldens(args.model, args.goldens)
    if args.read is not None:
        failed = compare(args.model, args.read, args.dtypes.split(","), not args.untimed)
        if failed:
            sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
