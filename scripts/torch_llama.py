"""A Llama in plain torch, for comparison: random weights of a named shape, fused projections, a static cache.

On CUDA a graph replays each step, so that the host takes no part in it.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from llamagpu.model.shapes import shape_config


class TorchLlama:
    """A Llama that times decode steps and prompts.

    Args:
        shape: a name of ``llamagpu.model.shapes.SHAPES``.
        device: ``cuda`` or ``cpu``.
    """

    def __init__(self, shape: str, dtype: torch.dtype, device: str):
        self.config = c = shape_config(shape)
        self.device, self.dtype = device, dtype

        def weight(*size: int) -> torch.Tensor:
            return torch.empty(size, dtype=dtype, device=device).uniform_(-0.03, 0.03)

        self.embed = weight(c.vocab_size, c.hidden_size)
        self.head = self.embed if c.tie_word_embeddings else weight(c.vocab_size, c.hidden_size)
        self.norm = torch.ones(c.hidden_size, dtype=dtype, device=device)
        self.layers = [
            {
                "qkv": weight(c.q_size + 2 * c.kv_size, c.hidden_size),
                "o": weight(c.hidden_size, c.q_size),
                "gate_up": weight(2 * c.intermediate_size, c.hidden_size),
                "down": weight(c.hidden_size, c.intermediate_size),
            }
            for _ in range(c.num_hidden_layers)
        ]

    def cache(self, batch: int, positions: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Zeroed keys and values [batch, kv_heads, positions, head_dim] of every layer."""
        c = self.config
        size = (batch, c.num_key_value_heads, positions, c.head_dim)
        return [
            (
                torch.zeros(size, dtype=self.dtype, device=self.device),
                torch.zeros(size, dtype=self.dtype, device=self.device),
            )
            for _ in self.layers
        ]

    def forward(self, tokens: torch.Tensor, first: int, cache: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """The next tokens [batch] after tokens [batch, n] that begin at position ``first``."""
        c, (batch, n) = self.config, tokens.shape
        positions = torch.arange(first, first + n, device=self.device, dtype=torch.float32)
        rates = c.rope.rope_theta ** (
            -torch.arange(0, c.head_dim, 2, device=self.device, dtype=torch.float32) / c.head_dim
        )
        angle = positions[:, None] * rates
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        x = F.embedding(tokens, self.embed)
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            h = F.rms_norm(x, (c.hidden_size,), self.norm, c.rms_norm_eps)
            q, k, v = F.linear(h, layer["qkv"]).split((c.q_size, c.kv_size, c.kv_size), dim=-1)
            q = _turn(q.view(batch, n, -1, c.head_dim).transpose(1, 2), cos, sin)
            k = _turn(k.view(batch, n, -1, c.head_dim).transpose(1, 2), cos, sin)
            keys[:, :, first : first + n] = k
            values[:, :, first : first + n] = v.view(batch, n, -1, c.head_dim).transpose(1, 2)
            seen = keys[:, :, : first + n], values[:, :, : first + n]
            a = F.scaled_dot_product_attention(q, *seen, is_causal=n > 1, enable_gqa=True)
            x = x + F.linear(a.transpose(1, 2).reshape(batch, n, -1), layer["o"])
            h = F.rms_norm(x, (c.hidden_size,), self.norm, c.rms_norm_eps)
            gate, up = F.linear(h, layer["gate_up"]).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer["down"])
        h = F.rms_norm(x[:, -1], (c.hidden_size,), self.norm, c.rms_norm_eps)
        return F.linear(h, self.head).argmax(dim=-1)

    def _run(self, tokens: torch.Tensor, first: int, cache: Any) -> Any:
        """A function that runs one pass: on CUDA, it replays a captured graph."""
        if self.device != "cuda":
            return lambda: self.forward(tokens, first, cache)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.forward(tokens, first, cache)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.forward(tokens, first, cache)
        return graph.replay

    @torch.inference_mode()
    def decode(self, batch: int, depth: int, steps: int) -> float:
        """Tokens a second of ``batch`` sequences, each step after ``depth`` tokens."""
        tokens = torch.ones((batch, 1), dtype=torch.long, device=self.device)
        return batch / self._seconds(self._run(tokens, depth, self.cache(batch, depth + 1)), steps)

    @torch.inference_mode()
    def prompt(self, tokens: int, steps: int) -> float:
        """Tokens a second of a prompt."""
        ids = torch.ones((1, tokens), dtype=torch.long, device=self.device)
        return tokens / self._seconds(self._run(ids, 0, self.cache(1, tokens)), steps)

    def _seconds(self, run: Any, steps: int) -> float:
        for _ in range(3):
            run()
        self._wait()
        start = time.perf_counter()
        for _ in range(steps):
            run()
        self._wait()
        return (time.perf_counter() - start) / steps

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of [batch, heads, n, head_dim], which pairs the first half of a head with the second."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
