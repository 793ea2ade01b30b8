"""This project's embeddings: lists, single texts, and batches padded as engines without packs pad them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
from runner import BATCH, LLAMAGPU_DTYPES, embedding_options, serve_embeddings

from llamagpu import Embedder, gpu
from llamagpu.version import __version__

FILLER = " the"  # one token


def padded(texts: list[str], lengths: list[int], order: list[int]) -> list[str]:
    """The texts in an order, each filled up with words to the longest of its batch. So the same kernels do the work of
    padding."""
    out = []
    for begin in range(0, len(order), BATCH):
        batch = order[begin : begin + BATCH]
        longest = max(lengths[i] for i in batch)
        out += [texts[i] + FILLER * (longest - lengths[i]) for i in batch]
    return out


if __name__ == "__main__":
    o = embedding_options()
    with Embedder(o.model, dtype=LLAMAGPU_DTYPES[o.dtype]) as embedder:
        ways = {
            "list": lambda texts, lengths: embedder.encode(texts),
            "single": lambda texts, lengths: np.stack([embedder.encode(text) for text in texts]),
        }
        extra = {
            "padded": lambda texts, lengths: embedder.encode(padded(texts, lengths, list(range(len(texts))))),
            "padded, sorted": lambda texts, lengths: embedder.encode(
                padded(texts, lengths, sorted(range(len(texts)), key=lengths.__getitem__))
            ),
        }
        serve_embeddings(
            o,
            f"{embedder.device.adapter}, {embedder.device.adapter.driver}",
            f"llamagpu {__version__}, {gpu.version()}",
            ways,
            extra,
        )
