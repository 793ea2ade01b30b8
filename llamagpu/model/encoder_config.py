"""Encoders of the BERT family: a row of data for each architecture, and the config that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llamagpu.errors import UnsupportedModelError, shown
from llamagpu.model.architecture import Test, anything, one_of
from llamagpu.model.config_values import Values, bad_config

_BERT = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "embed_norm": "embeddings.LayerNorm",
    "q": "encoder.layer.{i}.attention.self.query",
    "k": "encoder.layer.{i}.attention.self.key",
    "v": "encoder.layer.{i}.attention.self.value",
    "o": "encoder.layer.{i}.attention.output.dense",
    "attn_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "up": "encoder.layer.{i}.intermediate.dense",
    "down": "encoder.layer.{i}.output.dense",
    "mlp_norm": "encoder.layer.{i}.output.LayerNorm",
}
_DISTILBERT = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "embed_norm": "embeddings.LayerNorm",
    "q": "transformer.layer.{i}.attention.q_lin",
    "k": "transformer.layer.{i}.attention.k_lin",
    "v": "transformer.layer.{i}.attention.v_lin",
    "o": "transformer.layer.{i}.attention.out_lin",
    "attn_norm": "transformer.layer.{i}.sa_layer_norm",
    "up": "transformer.layer.{i}.ffn.lin1",
    "down": "transformer.layer.{i}.ffn.lin2",
    "mlp_norm": "transformer.layer.{i}.output_layer_norm",
}
_MPNET = {role: name for role, name in _BERT.items() if role != "types"} | {
    "relative": "encoder.relative_attention_bias",
    "q": "encoder.layer.{i}.attention.attn.q",
    "k": "encoder.layer.{i}.attention.attn.k",
    "v": "encoder.layer.{i}.attention.attn.v",
    "o": "encoder.layer.{i}.attention.attn.o",
    "attn_norm": "encoder.layer.{i}.attention.LayerNorm",
}
_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
    "hidden_act": "hidden_act",
}
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}
_MOST_TYPES = 1024
BUCKETS = 32  # of distances, each with a bias for every head (MPNet)
_NEUTRAL: Mapping[str, Test] = {
    "position_embedding_type": one_of(None, "absolute"),
    "is_decoder": one_of(None, False),
    "add_cross_attention": one_of(None, False),
    "chunk_size_feed_forward": anything,
}
_IGNORED = (r".*position_ids", r"(.*\.)?pooler\..*", r"cls\..*", r"lm_head\..*", r"vocab_.*")


@dataclass(frozen=True)
class EncoderArchitecture:
    """A row of data: one architecture.

    Attributes:
        prefix: of names in checkpoints of models with a head; those of base models lack it.
        modules: names by role; ``{i}`` is the layer.
        keys: names of config keys, by their names in BERT's configs.
        first_position: the row of the position table of a sequence's first token; None is pad_token_id + 1, as in
            RoBERTa.
        neutral: further keys, with tests for values that change nothing.
        square: keys of widths, with their defaults, that must equal hidden_size.
        ignored: patterns of tensors that no embedding needs: heads, poolers, constant buffers.
    """

    prefix: str
    modules: Mapping[str, str] = field(default_factory=lambda: dict(_BERT))
    keys: Mapping[str, str] = field(default_factory=lambda: dict(_KEYS))
    first_position: int | None = 0
    neutral: Mapping[str, Test] = field(default_factory=dict)
    square: Mapping[str, int] = field(default_factory=dict)
    ignored: tuple[str, ...] = _IGNORED


_ROBERTA = EncoderArchitecture("roberta.", first_position=None)
ENCODERS: dict[str, EncoderArchitecture] = {
    "bert": EncoderArchitecture("bert."),
    "roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "data2vec-text": EncoderArchitecture("data2vec_text.", first_position=None),
    "electra": EncoderArchitecture(
        "electra.",
        square={"embedding_size": 128},
        ignored=(*_IGNORED, r"discriminator_predictions\..*", r"generator_.*"),
    ),
    "ernie": EncoderArchitecture("ernie.", {**_BERT, "tasks": "embeddings.task_type_embeddings"}),
    "mpnet": EncoderArchitecture(
        "mpnet.",
        _MPNET,
        first_position=2,
        neutral={"relative_attention_num_buckets": one_of(None, BUCKETS)},
    ),
    "distilbert": EncoderArchitecture(
        "distilbert.",
        _DISTILBERT,
        keys={
            "vocab_size": "vocab_size",
            "hidden_size": "dim",
            "intermediate_size": "hidden_dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "max_position_embeddings": "max_position_embeddings",
            "hidden_act": "activation",
        },
    ),
}
_GATED = "rotary embeddings and gated MLPs"
REFUSED_ENCODERS: dict[str, str] = {
    "modernbert": f"local attention, {_GATED}",
    **dict.fromkeys(("nomic_bert", "new", "eurobert"), _GATED),  # "new" is GTE's NewModel
    **dict.fromkeys(("deberta", "deberta-v2"), "attention between contents and positions"),
    **dict.fromkeys(("xlm-roberta-xl", "roberta-prelayernorm", "megatron-bert"), "norms before the products"),
    "albert": "layers that share their weights",
    "mobilebert": "bottlenecks",
    **dict.fromkeys(("longformer", "big_bird"), "sparse attention"),
}


@dataclass(frozen=True)
class EncoderConfig:
    """The values that an encoder's forward pass reads.

    Attributes:
        positions: the longest sequence.
        first_position: the row of the position table of a sequence's first token.
        type_vocab_size: token types; 0 if there are none.
        task_type_vocab_size: task types, of which the first one is used (ERNIE); 0 if there are none.
        activation: a file of ``shaders/lib/activation``.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    positions: int
    first_position: int
    type_vocab_size: int
    task_type_vocab_size: int
    layer_norm_eps: float
    activation: str

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return self.hidden_size // self.num_attention_heads


def is_encoder(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of an encoder, also of one that ``parse_encoder`` refuses."""
    return raw.get("model_type") in ENCODERS.keys() | REFUSED_ENCODERS.keys()


def parse_encoder(raw: Mapping[str, Any]) -> EncoderConfig:
    """An EncoderConfig from config.json's object.

    Raises:
        UnsupportedModelError: a value is missing, out of range or not supported; it is named.
    """
    row = _row(raw)
    values = Values({name: raw.get(key) for name, key in row.keys.items()}, {"hidden_act": "gelu"})
    activation = values.get("hidden_act")
    if activation not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"The activation {shown(activation)} (hidden_act) is not supported.",
            f"Supported: {', '.join(_ACTIVATIONS)}.",
            "Choose another model.",
        )
    sizes = {name: values.integer(name) for name in list(_KEYS)[:5]}
    _check_heads(sizes)
    for key, default in row.square.items():
        if raw.get(key, default) != sizes["hidden_size"]:
            raise _refused(key, raw.get(key, default))
    first = _first_position(raw, sizes["vocab_size"]) if row.first_position is None else row.first_position
    positions = values.integer("max_position_embeddings") - first
    if positions < 1:
        raise bad_config(f"max_position_embeddings leaves no position from {first} on.")
    types = _count(raw, "type_vocab_size", 2) if "types" in row.modules else 0
    tasks = _count(raw, "task_type_vocab_size", 3) if "tasks" in row.modules and raw.get("use_task_id") else 0
    return EncoderConfig(
        model_type=str(raw["model_type"]),
        **sizes,
        positions=positions,
        first_position=first,
        type_vocab_size=types,
        task_type_vocab_size=tasks,
        layer_norm_eps=Values(raw, {"layer_norm_eps": 1e-12}).number("layer_norm_eps", 0.0, 1.0),
        activation=_ACTIVATIONS[activation],
    )


def _row(raw: Mapping[str, Any]) -> EncoderArchitecture:
    """The row of a config.

    Raises:
        UnsupportedModelError: there is none, or a key that the row does not read would change the arithmetic.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in ENCODERS:
        reason = REFUSED_ENCODERS.get(model_type) if isinstance(model_type, str) else None
        raise UnsupportedModelError(
            f"The architecture {shown(model_type)} is not an encoder that is supported.",
            f"{f'It has {reason}. ' if reason else ''}Supported: {', '.join(sorted(ENCODERS))}.",
            "Choose another model.",
        )
    row = ENCODERS[model_type]
    for key, neutral in (*_NEUTRAL.items(), *row.neutral.items()):
        if not neutral(raw.get(key)):
            raise _refused(key, raw[key])
    return row


def _refused(key: str, value: Any) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"config.json sets {key} to {shown(value)}, which is not supported.",
        "It changes the arithmetic, so ignoring it would give wrong vectors.",
        "Choose another model.",
    )


def _count(raw: Mapping[str, Any], key: str, default: int) -> int:
    """The size of a small table of embeddings, which may be 0."""
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_TYPES:
        raise bad_config(f"{key} is {shown(value)}; it must be a whole number from 0 to {_MOST_TYPES:,}.")
    return value


def _first_position(raw: Mapping[str, Any], vocab: int) -> int:
    """The index of the first token's position, which follows that of padding."""
    padding = Values(raw, {"pad_token_id": 1}).token_id("pad_token_id", vocab)
    return (1 if padding is None else padding) + 1


def _check_heads(sizes: Mapping[str, int]) -> None:
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if hidden % heads:
        raise bad_config(f"hidden_size {hidden} does not divide into {heads} heads.")
    if hidden // heads % 4 or hidden // heads > 256:
        raise bad_config(f"heads have {hidden // heads} elements; the number must be a multiple of 4 up to 256.")
