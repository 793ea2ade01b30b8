#!/usr/bin/env python3
"""Write the exact results of many models to a file, or compare two such files byte by byte.

To show that a change alters no number, run this before and after it on the same adapter:

    python scripts/bits.py before.npz                        # at the old commit
    python scripts/bits.py after.npz                         # at the new commit
    python scripts/bits.py --compare before.npz after.npz

Models: the random ones of the goldens (fused and unfused), the bundled one in every dtype, and each directory given
with ``--model``. Results of each: logits, token ids (greedy, drawn, filtered, in a batch), and log-probabilities.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))
import random_models  # noqa: E402

from llamagpu import LLM, gpu  # noqa: E402

DTYPES = ("auto", "float32", "float16", "bfloat16", "int8", "int4")
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 0.9, "seed": 5},
    "filtered": {"temperature": 1.1, "seed": 6, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1},
}
Found = Iterator[tuple[str, np.ndarray]]


def results(llm: LLM, prompt: list[int], tokens: int) -> Found:
    """The results of one prompt, by name."""
    more: dict[str, Any] = {"max_tokens": min(tokens, llm.context - len(prompt)), "ignore_eos": True}
    yield "logits", llm.logits(prompt)
    for name, options in SETTINGS.items():
        yield name, np.array(llm.generate(prompt, **more, **options).token_ids)
    likely = llm.generate(prompt, **more, logprobs=5).logprobs or []
    yield "logprobs", np.array([p for token in likely for _, p in token.top])
    batch = [llm.stream(p, **more, temperature=0.7, seed=9) for p in (prompt[:7], prompt, prompt[:3])]
    yield "batch", np.array([i for stream in batch for i in stream.result.token_ids])


def random_goldens(device: gpu.Device) -> Found:
    """Results of the random models of the goldens, fused and unfused."""
    for seed, (name, config) in enumerate(random_models.CONFIGS.items(), 1):
        with tempfile.TemporaryDirectory() as folder:
            random_models.write_model(Path(folder), config, random_models.tensors(config, seed, 1.3))
            for fused in (True, False):
                with LLM(folder, device=device, fused=fused) as llm:
                    for length in (1, 31, 300):
                        found = results(llm, random_models.prompt(config, length, seed), 10)
                        yield from ((f"{name} fused={fused} {length} {k}", v) for k, v in found)


def trained(device: gpu.Device, models: list[str | None]) -> Found:
    """Results of the bundled model (None) and of model directories, in every dtype."""
    for model in models:
        for dtype in DTYPES:
            name = Path(model or "bundled").name
            with LLM(model, device=device, dtype=dtype) as llm:
                for text in ("Once upon a time", "Lily and Tim went to the big park to see the ducks. " * 8):
                    found = results(llm, llm.tokenize(text), 24)
                    yield from ((f"{name} {dtype} {len(text)} {k}", v) for k, v in found)


def compare(before: Path, after: Path) -> int:
    """Print the names whose bytes differ, and return the exit code."""
    old, new = np.load(before), np.load(after)
    shared = [name for name in old.files if name in new.files]
    differ = [n for n in shared if old[n].tobytes() != new[n].tobytes() or old[n].dtype != new[n].dtype]
    missing = sorted(set(old.files) - set(new.files))
    for name in (*differ, *missing):
        print("differs:" if name in shared else "missing:", name)
    print(f"{len(shared) - len(differ)} of {len(old.files)} results are equal, byte for byte")
    return bool(differ or missing)


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--compare", action="store_true", help="compare two files")
    parser.add_argument("--model", action="append", default=[], help="a model directory; may be given several times")
    given = parser.parse_args()
    if given.compare:
        return compare(*given.files)
    found: dict[str, np.ndarray] = {}
    with gpu.open() as device:
        for source in (random_goldens(device), trained(device, [None, *given.model])):
            for name, values in source:
                found[name] = values
                print(name, flush=True)
    np.savez(given.files[0], **found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
