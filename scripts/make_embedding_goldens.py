#!/usr/bin/env python3
"""Make tests/goldens_embeddings.safetensors: vectors of random decoders by sentence-transformers, float32, CPU.

Development only; needs the ``oracle`` extra. Weights come from numpy seeds (tests/random_embedders.py).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
import random_embedders  # noqa: E402


def main() -> None:
    """Write the goldens: of every model the vectors of all texts, and with the prompt for queries."""
    kept = {}
    for name in random_embedders.CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            model = SentenceTransformer(
                str(random_embedders.write(Path(folder), name)),
                device="cpu",
                model_kwargs={"attn_implementation": "eager"},
            )
            kept[name] = model.encode(random_embedders.texts())
            kept[f"{name}.query"] = model.encode(random_embedders.texts(), prompt_name="query")
        print(name, kept[name].shape, model.max_seq_length)
    save_file(kept, TESTS / "goldens_embeddings.safetensors")


if __name__ == "__main__":
    main()
