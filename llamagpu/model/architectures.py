"""The architectures: each is a row of data for the same decoder forward pass.

To add one, write a row: the names in the checkpoint by role, the defaults of the config keys that it reads, a
function from those keys to the spec of a layer, and the remaining keys that the reference implementation reads, each
with a test for values that change nothing. ``tests/reference_keys.json`` lists the keys of the reference, and a test
checks that each is accounted for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Test = Callable[[Any], bool]
MODULES = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attn_norm": "model.layers.{i}.input_layernorm",
    "mlp_norm": "model.layers.{i}.post_attention_layernorm",
    "q": "model.layers.{i}.self_attn.q_proj",
    "k": "model.layers.{i}.self_attn.k_proj",
    "v": "model.layers.{i}.self_attn.v_proj",
    "o": "model.layers.{i}.self_attn.o_proj",
    "gate": "model.layers.{i}.mlp.gate_proj",
    "up": "model.layers.{i}.mlp.up_proj",
    "down": "model.layers.{i}.mlp.down_proj",
}


@dataclass(frozen=True)
class LayerSpec:
    """The differences between layers of the architectures: which projections add a bias."""

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False


@dataclass(frozen=True)
class Architecture:
    """A row of data: one architecture.

    Attributes:
        defaults: the optional config keys that the row reads, with the reference's defaults.
        layer: the spec of layer i, from the config's values and i.
        neutral: keys that the reference reads and the row does not; values that fail the test are refused by name.
        modules: names in the checkpoint by role, without ``.weight``; ``{i}`` is the layer. Roles that are multiplied
            together are fused on loading.
        ignored: patterns of tensors that carry no weights of the model.
    """

    defaults: Mapping[str, Any]
    layer: Callable[[Mapping[str, Any], int], LayerSpec]
    neutral: Mapping[str, Test] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=lambda: dict(MODULES))
    ignored: tuple[str, ...] = (r".*rotary_emb\.inv_freq",)

    def tensor(self, role: str, layer: int | None = None, suffix: str = "weight") -> str:
        """The name of a role's tensor in the checkpoint."""
        return f"{self.modules[role].format(i=layer)}.{suffix}"


def one_of(*values: Any) -> Test:
    """A test that accepts the given values, of the same type."""
    return lambda value: any(value == v and type(value) is type(v) for v in values)


def all_equal(wanted: str) -> Test:
    """A test that accepts None, and lists that hold ``wanted`` only."""
    return lambda value: value is None or (isinstance(value, list) and all(v == wanted for v in value))


def anything(value: Any) -> bool:
    """A test that accepts every value: another key switches this one off."""
    return True


# Keys that every row reads, and keys that change no result of a forward pass.
REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_theta": None,
    "rope_scaling": None,
    "rope_parameters": None,
}
WITHOUT_EFFECT = frozenset(
    (
        *("_attn_implementation_autoset", "_name_or_path", "architectures", "attention_dropout", "auto_map"),
        *("chunk_size_feed_forward", "dtype", "id2label", "initializer_range", "label2id", "model_type"),
        *("output_attentions", "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type"),
        *("quantization", "quantization_config", "return_dict", "torch_dtype", "transformers_version", "use_cache"),
    )
)
NEUTRAL = {"partial_rotary_factor": one_of(None, 1, 1.0), "is_encoder_decoder": one_of(None, False)}


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        defaults=DEFAULTS | {"max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
        layer=lambda c, i: LayerSpec(c["attention_bias"], c["attention_bias"], c["mlp_bias"]),
        neutral=NEUTRAL,
    ),
    "mistral": Architecture(
        defaults=DEFAULTS | {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
        layer=lambda c, i: LayerSpec(),
        neutral=NEUTRAL | {"sliding_window": one_of(None)},
    ),
    "qwen2": Architecture(
        defaults=DEFAULTS | {"max_position_embeddings": 32768, "num_key_value_heads": 32},
        layer=lambda c, i: LayerSpec(qkv_bias=True),
        # Without use_sliding_window the reference reads neither of the other two.
        neutral=NEUTRAL
        | {
            "use_sliding_window": one_of(None, False),
            "sliding_window": anything,
            "max_window_layers": anything,
            "layer_types": all_equal("full_attention"),
        },
    ),
}
