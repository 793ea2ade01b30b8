"""Shared code of the runners. A runner loads its model once and runs one repetition at a time.

So bench_peers.py can measure all engines in turns. A runner prints a line of JSON when it is ready (``device``,
``version``), and one for every line that it reads: ``prompt`` or ``decode``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

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


def options() -> argparse.Namespace:
    """The arguments of every runner."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--peers", type=Path, default=Path(".peers"), help="the directory that scripts/peers/setup made"
    )
    parser.add_argument("--backend", default="")
    parser.add_argument("--dtype", default="f16")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--decode", type=int, default=16)
    return parser.parse_args()


def serve(device: str, version: str, tests: dict[str, tuple[int, Callable[[], None]]]) -> None:
    """Warm up, then run a test for every line that is read.

    Args:
        tests: for each name, the tokens of a repetition and the function that runs it.
    """
    for _, run in tests.values():
        run()
    print(json.dumps({"device": device, "version": version}), flush=True)
    for line in sys.stdin:
        tokens, run = tests[line.strip()]
        start = time.perf_counter()
        run()
        print(json.dumps({"tokens_per_s": tokens / (time.perf_counter() - start)}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # some engines do not exit by themselves
