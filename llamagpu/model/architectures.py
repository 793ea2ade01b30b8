"""The architectures: rows of data over one decoder forward pass.

A row names the checkpoint's tensors for each role. ``{i}`` is the layer. Roles that are multiplied together are
fused when they are loaded: the rows of q, k and v one after another, those of gate and up interleaved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Checkpoint names by role. ``ignored`` are patterns of tensors that carry no weights of the model."""

    tensors: Mapping[str, str]
    ignored: tuple[str, ...] = ()


LLAMA = Architecture(
    tensors={
        "embed": "model.embed_tokens.weight",
        "norm": "model.norm.weight",
        "head": "lm_head.weight",
        "attn_norm": "model.layers.{i}.input_layernorm.weight",
        "mlp_norm": "model.layers.{i}.post_attention_layernorm.weight",
        "q": "model.layers.{i}.self_attn.q_proj.weight",
        "k": "model.layers.{i}.self_attn.k_proj.weight",
        "v": "model.layers.{i}.self_attn.v_proj.weight",
        "o": "model.layers.{i}.self_attn.o_proj.weight",
        "gate": "model.layers.{i}.mlp.gate_proj.weight",
        "up": "model.layers.{i}.mlp.up_proj.weight",
        "down": "model.layers.{i}.mlp.down_proj.weight",
    },
    ignored=(r".*rotary_emb\.inv_freq",),
)

ARCHITECTURES: dict[str, Architecture] = {"llama": LLAMA}
