"""transformers with torch on the CPU, with a dynamic cache."""

from __future__ import annotations

import torch
import transformers
from runner import SHAPE, THREADS, options, serve
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


@torch.inference_mode()
def run(model: LlamaForCausalLM, prompt: int, decode: int) -> None:
    """Run a prompt of ``prompt`` tokens and generate ``decode`` tokens."""
    cache = DynamicCache(config=model.config)
    ids = torch.randint(0, SHAPE["vocab_size"], (1, prompt))
    for _ in range(decode):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        ids = logits[:, -1:].argmax(-1)


if __name__ == "__main__":
    o = options()
    torch.set_num_threads(THREADS)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, attn_implementation="sdpa")).to(DTYPES[o.dtype]).eval()
    tests = {
        "prompt": (o.prompt, lambda: run(model, o.prompt, 1)),
        "decode": (o.decode, lambda: run(model, 1, o.decode)),
    }
    serve(f"CPU, {THREADS} threads", f"transformers {transformers.__version__}, torch {torch.__version__}", tests)
