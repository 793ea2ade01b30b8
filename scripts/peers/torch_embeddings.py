"""sentence-transformers with torch on the CPU."""

from __future__ import annotations

import numpy as np
import sentence_transformers
import torch
from runner import BATCH, THREADS, embedding_options, serve_embeddings

if __name__ == "__main__":
    o = embedding_options()
    torch.set_num_threads(THREADS)
    model = sentence_transformers.SentenceTransformer(str(o.model), device="cpu")
    ways = {
        "list": lambda texts, lengths: model.encode(texts, batch_size=BATCH),
        "single": lambda texts, lengths: np.stack([model.encode(text) for text in texts]),
    }
    version = f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}"
    serve_embeddings(o, f"CPU, {THREADS} threads", version, ways)
