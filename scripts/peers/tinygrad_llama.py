"""tinygrad's Llama on its WebGPU backend (Dawn)."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import types

import numpy as np
from runner import SHAPE, options, serve

CHUNK = 32  # prompt tokens per call, as in tinygrad's own generate()


def main() -> None:
    """Load the model and serve. A function, because tinygrad starts processes that import this file."""
    o = options()
    os.environ.setdefault("DEV", "WEBGPU")
    from tinygrad import Device, Tensor, UOp, nn

    # The model imports kernels for other devices, which the 0.14 wheel lacks.
    kernels, amd = types.ModuleType("tinygrad.llm.kernels"), types.ModuleType("tinygrad.llm.kernels.amd")
    amd.Linear, amd.amd_custom_kernels_supported = nn.Linear, lambda device: False  # type: ignore[attr-defined]
    amd.flash_attention = amd.gated_delta_prefill = None  # type: ignore[attr-defined]
    sys.modules |= {"tinygrad.llm.kernels": kernels, "tinygrad.llm.kernels.amd": amd}
    from tinygrad.llm.model import Transformer, TransformerConfig

    sys.setrecursionlimit(200000)
    config = TransformerConfig(
        num_blocks=SHAPE["num_hidden_layers"],
        dim=SHAPE["hidden_size"],
        hidden_dim=SHAPE["intermediate_size"],
        n_heads=SHAPE["num_attention_heads"],
        n_kv_heads=SHAPE["num_key_value_heads"],
        norm_eps=SHAPE["rms_norm_eps"],
        vocab_size=SHAPE["vocab_size"],
        head_dim=SHAPE["head_dim"],
        rope_theta=SHAPE["rope_theta"],
        rope_dim=SHAPE["head_dim"],
        v_head_dim=SHAPE["head_dim"],
        max_context=1024,
    )
    rng, model = np.random.default_rng(0), Transformer(config)
    model.output.weight = model.token_embd.weight
    for name, tensor in nn.state.get_state_dict(model).items():
        if name != "output.weight":
            random = (rng.standard_normal(tensor.shape, dtype=np.float32) * 0.02).astype(np.float16)
            tensor.replace(Tensor(np.ones(tensor.shape, np.float32) if "norm" in name else random).realize())
    model.output.weight = model.token_embd.weight
    position = UOp.variable("start_pos", 0, config.max_context - 1)
    cold = Tensor([0.0]).realize()

    def prompt() -> None:
        ids = Tensor(rng.integers(0, SHAPE["vocab_size"], (1, o.prompt)).astype(np.int32)).realize()
        for first in range(0, o.prompt, CHUNK):
            out = model(ids[:, first : first + CHUNK], position.bind(first), cold).realize()
        out.item()

    def decode() -> None:
        out = Tensor([[1]], dtype="int32").realize()
        for i in range(o.decode):
            out = model(out, position.bind(i), cold).realize()
            out.item()

    for run in (prompt, decode):  # tinygrad captures a function in its second run and replays it from then on
        run()
        run()
    versions = (importlib.metadata.version(name) for name in ("tinygrad", "dawn-python"))
    version = "tinygrad {}, dawn-python {}".format(*versions)
    serve(f"{Device.DEFAULT}, llvmpipe", version, {"prompt": (o.prompt, prompt), "decode": (o.decode, decode)})


if __name__ == "__main__":
    main()
