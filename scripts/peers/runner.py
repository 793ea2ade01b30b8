"""Shared code of the runners. A runner loads its model once and runs one repetition at a time.

So bench_peers.py and bench_embeddings.py can measure all engines in turns. A runner prints a line of JSON when it is
ready (``device``, ``version``), and one for every line that it reads: the name of a test, such as ``prompt``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

# The measured shape: SmolLM2-135M, with random weights.
SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
THREADS = os.cpu_count() or 1
LLAMAGPU_DTYPES = {"f32": "float32", "f16": "float16", "8-bit": "int8", "4-bit": "int4"}
BATCH = 32  # texts that the other engines embed together: sentence-transformers' default


def options() -> argparse.Namespace:
    """The arguments of the runners that generate."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--peers", type=Path, default=Path(".peers"), help="the directory that scripts/peers/setup made"
    )
    parser.add_argument("--backend", default="")
    parser.add_argument("--dtype", default="f16")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--decode", type=int, default=16)
    return parser.parse_args()


def embedding_options() -> argparse.Namespace:
    """The arguments of the runners that embed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, help="a directory; the ONNX file lies beside it")
    parser.add_argument("--texts", type=Path, help="JSON: ``texts``, and ``lengths`` in tokens")
    parser.add_argument("--backend", default="")
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--ways", default="list", help="the ways to measure, separated by semicolons")
    parser.add_argument("--out", type=Path, help="where the vectors go: OUT-WAY.npy")
    return parser.parse_args()


def only_llvmpipe() -> None:
    """Fail if this process loaded a Vulkan driver other than llvmpipe's."""
    with open("/proc/self/maps") as maps:
        drivers = {line.split("/")[-1].strip() for line in maps if "libvulkan_" in line}
    assert drivers == {"libvulkan_lvp.so"}, drivers


def serve(device: str, version: str, tests: dict[str, tuple[int, Callable[[], object]]], warm: bool = True) -> None:
    """Warm up, then run a test for every line that is read.

    Args:
        tests: for each name, the tokens of a repetition and the function that runs it.
    """
    for _, run in tests.values() if warm else ():
        run()
    print(json.dumps({"device": device, "version": version}), flush=True)
    for line in sys.stdin:
        tokens, run = tests[line.strip()]
        start = time.perf_counter()
        run()
        print(json.dumps({"tokens_per_s": tokens / (time.perf_counter() - start)}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # some engines do not exit by themselves


def serve_embeddings(
    o: argparse.Namespace,
    device: str,
    version: str,
    ways: dict[str, Callable[[list[str], list[int]], Any]],
    extra: dict[str, Callable[[list[str], list[int]], Any]] | None = None,
) -> None:
    """Write the vectors of the chosen ways, which also warms up; then serve the chosen ways as tests over all texts.

    Args:
        ways: for each name, a function of texts and their lengths in tokens that returns vectors [texts, dimension].
        extra: ways whose vectors are not these texts'.
    """
    given = json.loads(o.texts.read_text(encoding="utf-8"))
    texts, lengths = given["texts"], given["lengths"]
    chosen = o.ways.split(";")
    for name in (name for name in chosen if name in ways):
        np.save(f"{o.out}-{name}.npy", ways[name](texts, lengths))
    every = ways | (extra or {})
    tests = {name: (sum(lengths), partial(every[name], texts, lengths)) for name in chosen}
    serve(device, version, tests, warm=False)
