"""The kernels: a module each, with its wrapper, its float64 reference, its cases and its tolerance; and their registry.

A wrapper called by itself runs at once; called inside ``Device.record`` it becomes a step of the plan.
"""

from llamagpu.kernels.add import add
from llamagpu.kernels.affine import dequantize, dequantize_rows, quantize
from llamagpu.kernels.attention import (
    attention_decode,
    attention_merge,
    attention_prefill,
    partial_shape,
    splits_for,
)
from llamagpu.kernels.base import step_rows
from llamagpu.kernels.begin_step import begin_step
from llamagpu.kernels.check import Report, check, random_dims
from llamagpu.kernels.embedding import embedding
from llamagpu.kernels.gelu import gelu
from llamagpu.kernels.kv_write import PAGE, Cache, cache_columns, kv_write
from llamagpu.kernels.layer_norm import layer_norm
from llamagpu.kernels.matmul import linear, matmul
from llamagpu.kernels.matvec import matvec
from llamagpu.kernels.noise import noise
from llamagpu.kernels.product import (
    add_norm,
    add_to,
    merged,
    normed,
    plain,
    product,
    qkv,
    store,
    stream_columns,
    swiglu,
)
from llamagpu.kernels.registry import REGISTRY
from llamagpu.kernels.rms_norm import rms_norm
from llamagpu.kernels.rope import rope
from llamagpu.kernels.sampling import (
    NO_CUT,
    Sampler,
    Settings,
    choose,
    logits_process,
    logits_select,
    make_sampler,
    sample,
    sampler_columns,
)
from llamagpu.kernels.silu_mul import silu_mul
from llamagpu.kernels.softmax import softmax
from llamagpu.kernels.yardsticks import copy, multiply_add

__all__ = [
    "NO_CUT",
    "PAGE",
    "REGISTRY",
    "Cache",
    "Report",
    "Sampler",
    "Settings",
    "add",
    "add_norm",
    "add_to",
    "attention_decode",
    "attention_merge",
    "attention_prefill",
    "begin_step",
    "cache_columns",
    "check",
    "choose",
    "copy",
    "dequantize",
    "dequantize_rows",
    "embedding",
    "gelu",
    "kv_write",
    "layer_norm",
    "linear",
    "logits_process",
    "logits_select",
    "make_sampler",
    "matmul",
    "matvec",
    "merged",
    "multiply_add",
    "noise",
    "normed",
    "partial_shape",
    "plain",
    "product",
    "qkv",
    "quantize",
    "random_dims",
    "rms_norm",
    "rope",
    "sample",
    "sampler_columns",
    "silu_mul",
    "softmax",
    "splits_for",
    "step_rows",
    "store",
    "stream_columns",
    "swiglu",
]
