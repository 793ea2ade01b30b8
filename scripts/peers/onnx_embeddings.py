"""ONNX Runtime with its WebGPU provider or on the CPU; batches of texts of similar lengths, padded."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import onnxruntime as ort
from runner import BATCH, THREADS, embedding_options, only_llvmpipe, serve_embeddings
from tokenizers import Tokenizer


def session(model: str, backend: str) -> tuple[ort.InferenceSession, str, str]:
    """The session on the backend, its device and its version."""
    settings, version = ort.SessionOptions(), f"onnxruntime {ort.__version__}"
    settings.log_severity_level = 3
    if backend == "cpu":
        settings.intra_op_num_threads = THREADS
        return ort.InferenceSession(model, settings), f"CPU, {THREADS} threads", version
    import onnxruntime_ep_webgpu as provider

    ort.register_execution_provider_library("WebGpuExecutionProvider", provider.get_library_path())
    devices = [d for d in ort.get_ep_devices() if d.ep_name == provider.get_ep_name()]
    settings.add_provider_for_devices(devices[:1], {})
    made = ort.InferenceSession(model, settings)
    only_llvmpipe()
    return made, "llvmpipe", f"{version}, ep-webgpu {importlib.metadata.version('onnxruntime-ep-webgpu')}"


def encode(session: ort.InferenceSession, tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Vectors of texts, float32 [texts, hidden], in batches of similar lengths, the longest first."""
    found = tokenizer.encode_batch(texts)
    order = sorted(range(len(texts)), key=lambda i: -len(found[i].ids))
    out: list[np.ndarray] = [np.empty(0)] * len(texts)
    for begin in range(0, len(order), BATCH):
        batch = order[begin : begin + BATCH]
        ids = np.zeros((len(batch), len(found[batch[0]].ids)), np.int64)
        mask = np.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, : len(found[i].ids)], mask[row, : len(found[i].ids)] = found[i].ids, 1
        (vectors,) = session.run(None, {"ids": ids, "mask": mask})
        for i, vector in zip(batch, vectors, strict=True):
            out[i] = vector
    return np.stack(out)


if __name__ == "__main__":
    o = embedding_options()
    tokenizer = Tokenizer.from_file(str(o.model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)  # the model's max_seq_length; its tokenizer.json says 128
    model, device, version = session(f"{o.model}.onnx", o.backend)
    ways = {
        "list": lambda texts, lengths: encode(model, tokenizer, texts),
        "single": lambda texts, lengths: np.concatenate([encode(model, tokenizer, [text]) for text in texts]),
    }
    serve_embeddings(o, device, version, ways)
