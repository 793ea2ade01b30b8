"""An architecture: a row of data for the one decoder forward pass, and the specs that it makes from a config."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from llamagpu.model.config_values import Values
from llamagpu.model.rope import Rope

Test = Callable[[Any], bool]
FULL, SLIDING = "full_attention", "sliding_attention"
LAYER_TYPES = {FULL: FULL, SLIDING: SLIDING}
BASE = "model."  # prefix of the decoder in checkpoints of models with a head
MODULES = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attn_norm": "model.layers.{i}.input_layernorm",
    "mlp_norm": "model.layers.{i}.post_attention_layernorm",
    "q": "model.layers.{i}.self_attn.q_proj",
    "k": "model.layers.{i}.self_attn.k_proj",
    "v": "model.layers.{i}.self_attn.v_proj",
    "q_norm": "model.layers.{i}.self_attn.q_norm",
    "k_norm": "model.layers.{i}.self_attn.k_norm",
    "o": "model.layers.{i}.self_attn.o_proj",
    "gate": "model.layers.{i}.mlp.gate_proj",
    "up": "model.layers.{i}.mlp.up_proj",
    "down": "model.layers.{i}.mlp.down_proj",
}
_ROTATED = ("q", "k", "qkv", "q_norm", "k_norm")


@dataclass(frozen=True)
class LayerSpec:
    """How a layer differs from Llama's.

    Attributes:
        qkv_bias, o_bias, mlp_bias: whether these projections add a bias.
        pre_norms, post_norms: whether attention and MLP normalize their input, and their output before it is added.
        qk_norm: norm of q and k: ``head`` (each head, before the rotation), ``head_last`` (after it), ``row`` (all
            heads of q together, all of k together, before it) or None.
        rope: the rotary embedding; None rotates nothing.
        query_scaling: (beta, original) of Llama 4's scaling of q by position (``kernels.qk_norm``), or None.
        window: positions that a token sees, its own included; None is all.
        attention_scale: factor of the scores; None is head_dim^-½.
        score_cap: soft cap of the scores, or None.
        activation: of the MLP, a file of ``shaders/lib/activation``; ``gated`` multiplies it by the up projection.
        residual_scale: factor of what attention and MLP add.
    """

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    pre_norms: bool = True
    post_norms: bool = False
    qk_norm: str | None = None
    rope: Rope | None = None
    query_scaling: tuple[float, int] | None = None
    window: int | None = None
    attention_scale: float | None = None
    score_cap: float | None = None
    activation: str = "silu"
    gated: bool = True
    residual_scale: float = 1.0

    @property
    def apart(self) -> bool:
        """Whether q and k need a pass of their own after the projection."""
        return self.qk_norm is not None or self.query_scaling is not None

    def seen(self, positions: int) -> int:
        """Positions that the last of ``positions`` tokens sees."""
        return positions if self.window is None else min(positions, self.window)


@dataclass(frozen=True)
class OuterSpec:
    """How embedding and head differ from Llama's: a factor and a norm (without weights) of the embedding; a factor and
    a soft cap of the logits."""

    embed_scale: float = 1.0
    embed_norm: bool = False
    logit_scale: float = 1.0
    logit_cap: float | None = None


@dataclass(frozen=True)
class Architecture:
    """A row of data: one architecture.

    Attributes:
        defaults: the optional config keys that the row reads, with the reference's defaults.
        layer: the spec of layer i from the config's values, i, and whether the layer slides. Window and rope are set
            after it, unless it sets ``rope`` to None by ``no_rope``.
        neutral: keys that the reference reads and the row does not; values that fail the test are refused by name.
        slides: whether layer i has a sliding window where ``layer_types`` does not say it.
        no_rope: whether layer i rotates nothing.
        outer: the spec of embedding and head.
        modules: names in the checkpoint by role, without ``.weight``; ``{i}`` is the layer. Roles that are multiplied
            together are fused on loading; ``qkv`` and ``gate_up`` name tensors that are fused in the checkpoint.
        ignored: patterns of tensors that carry no weights of the model.
        intermediate: the config key of the MLP's size.
        layer_types: the names of layer types in configs, and what they mean.
        thetas: the default rope_theta by layer type; a missing type is as full attention.
        norm_offset: added to the weights of norms.
        norm_weights: whether norms have weights; otherwise they are ones.
        partial_rotary: whether the row reads ``partial_rotary_factor`` and ``original_max_position_embeddings``.
        rope_types: other names of rope types in this architecture's configs.
        rope_default: the rope parameters of a config without any.
        neighbours: whether rotary pairs are neighbours in the checkpoint; otherwise they lie half a head apart.
        backwards: whether the rotation turns the other way.
    """

    defaults: Mapping[str, Any]
    layer: Callable[[Values, int], LayerSpec]
    neutral: Mapping[str, Test] = field(default_factory=dict)
    slides: Callable[[Values, int], bool] = lambda c, i: False
    no_rope: Callable[[Values, int, bool], bool] = lambda c, i, slides: False
    outer: Callable[[Values], OuterSpec] = lambda c: OuterSpec()
    modules: Mapping[str, str] = field(default_factory=lambda: dict(MODULES))
    ignored: tuple[str, ...] = (r".*rotary_emb\.inv_freq",)
    intermediate: str = "intermediate_size"
    layer_types: Mapping[str, str] = field(default_factory=lambda: dict(LAYER_TYPES))
    thetas: Mapping[str, float] = field(default_factory=lambda: {FULL: 10000.0})
    norm_offset: float = 0.0
    norm_weights: bool = True
    partial_rotary: bool = False
    rope_types: Mapping[str, str] = field(default_factory=dict)
    rope_default: Mapping[str, Any] = field(default_factory=dict)
    neighbours: bool = False
    backwards: bool = False

    def tensor(self, role: str, layer: int | None = None, suffix: str = "weight") -> str:
        """The name of a role's tensor in the checkpoint."""
        return f"{self.modules[role].format(i=layer)}.{suffix}"

    @cached_property
    def _rotated(self) -> dict[str, re.Pattern[str]]:
        names = {role: self.modules[role] for role in _ROTATED if role in self.modules}
        return {role: re.compile(re.escape(n).replace(r"\{i\}", r"\d+") + r"\.\w+") for role, n in names.items()}

    def rotated(self, name: str) -> str | None:
        """The role of a checkpoint's tensor whose rows are rotated in pairs, or None."""
        names = (name, BASE + name)  # base models are stored without the prefix
        return next((role for role, p in self._rotated.items() if any(map(p.fullmatch, names))), None)


def one_of(*values: Any) -> Test:
    """A test that accepts the given values, of the same type."""
    return lambda value: any(value == v and type(value) is type(v) for v in values)


def anything(value: Any) -> bool:
    """A test that accepts every value: another key switches this one off, or it has no effect in a forward pass."""
    return True
