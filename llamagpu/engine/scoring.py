"""Log-probabilities of given tokens, on the host, in blocks of rows that stay small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llamagpu.engine.llm import LLM
from llamagpu.engine.request import NotFinite, Reuse
from llamagpu.kernels.kv_write import PAGE

_READ = 1 << 24  # logits read from the GPU at a time: 64 MB
_BLOCK = 1 << 22  # logits of a block: 32 MB in float64


def logit_blocks(
    llm: LLM, ids: Sequence[int], first: int = 0, *, reuse: Reuse = "none"
) -> Iterator[npt.NDArray[np.float32]]:
    """The logits of positions ``first`` on, in order: blocks of float32 [rows, vocab_size].

    Two models with one vocabulary give blocks of equal size. If the rows are too many to be read at once, the next
    ones run with the cache of those before; ``reuse`` lets the first ones begin there too (see ``LLM.logits``).
    """
    vocab = llm.config.vocab_size
    read, block = max(1, _READ // vocab // PAGE) * PAGE, max(1, _BLOCK // vocab)
    for begin in range(first, len(ids), read):
        rows = llm.logits(ids[: begin + read], first=begin, reuse=reuse if begin == first else "exact")
        for at in range(0, len(rows), block):
            yield rows[at : at + block]


def log_probabilities(logits: npt.NDArray[np.float32], tokens: int) -> npt.NDArray[np.float64]:
    """Log-softmax of every row, in float64 (the maximum is subtracted before the exponentials).

    Args:
        logits: [rows, vocab_size].
        tokens: of the sequence, for the error.

    Raises:
        NotFinite: a row holds NaN or infinity.
    """
    top = logits.max(axis=1, keepdims=True)  # NaN if the row has one
    if not np.isfinite(top).all():
        raise NotFinite.after(tokens)
    out: npt.NDArray[np.float64] = logits.astype(np.float64) - top
    out -= np.log(np.exp(out).sum(axis=1, keepdims=True))
    return out
