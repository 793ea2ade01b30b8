"""ONNX Runtime through onnxruntime-genai, with its WebGPU provider or on the CPU."""

from __future__ import annotations

import importlib.metadata
import json

import numpy as np
import onnxruntime as ort
import onnxruntime_genai as og
from runner import SHAPE, THREADS, only_llvmpipe, options, serve

PRECISIONS = {"f32": "fp32", "f16": "fp16", "8-bit": "int8", "4-bit": "int4"}


def run(model: og.Model, prompt: int, decode: int) -> None:
    """Run a prompt of ``prompt`` tokens and generate ``decode`` tokens."""
    params = og.GeneratorParams(model)
    length = prompt + decode
    params.set_search_options(max_length=length, min_length=length, do_sample=False, batch_size=1)
    generator = og.Generator(model, params)
    ids = np.random.default_rng(0).integers(3, SHAPE["vocab_size"], (1, prompt))
    generator.append_tokens(ids.astype(np.int32))
    for _ in range(decode):
        generator.generate_next_token()


if __name__ == "__main__":
    o = options()
    config = og.Config(str(o.peers / "models" / f"onnx-{o.backend}-{PRECISIONS[o.dtype]}"))
    version, device = f"onnxruntime {ort.__version__}, genai {og.__version__}", f"CPU, {THREADS} threads"
    if o.backend == "webgpu":
        import onnxruntime_ep_webgpu as provider

        og.register_execution_provider_library("WebGpuExecutionProvider", provider.get_library_path())
        version += f", ep-webgpu {importlib.metadata.version('onnxruntime-ep-webgpu')}"
        device = "llvmpipe"
    else:
        session = {"intra_op_num_threads": THREADS}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)
    if o.backend == "webgpu":
        only_llvmpipe()
    tests = {
        "prompt": (o.prompt, lambda: run(model, o.prompt, 1)),
        "decode": (o.decode, lambda: run(model, 1, o.decode)),
    }
    serve(device, version, tests)
