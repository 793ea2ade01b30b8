"""Kernels: one module each, with a wrapper, a float64 reference, cases and a tolerance; and their registry.

The functions here work on tensors of ``llamagpu.gpu`` and are named as in numpy and torch. A call is queued and returns
at once; ``tensor.numpy()`` waits. Inside ``Device.record`` a call is recorded in the plan. An ``out`` must not share a
buffer with another argument. The kernels of the decoder, which work on its paged cache and step state, are in the
submodules.
"""

from llamagpu.kernels.attention_dense import attention
from llamagpu.kernels.check import Report, check, dims_text, programs, random_dims
from llamagpu.kernels.cross_entropy import cross_entropy
from llamagpu.kernels.dequantize import dequantize
from llamagpu.kernels.elementwise import add, multiply, scale, silu
from llamagpu.kernels.gelu import gelu
from llamagpu.kernels.layer_norm import layer_norm
from llamagpu.kernels.matmul import linear, matmul
from llamagpu.kernels.quantization import quantize
from llamagpu.kernels.registry import REGISTRY
from llamagpu.kernels.rms_norm import rms_norm
from llamagpu.kernels.slice_rows import slice_rows
from llamagpu.kernels.softmax import softmax
from llamagpu.kernels.transpose import transpose

__all__ = [
    "REGISTRY",
    "Report",
    "add",
    "attention",
    "check",
    "cross_entropy",
    "dequantize",
    "dims_text",
    "gelu",
    "layer_norm",
    "linear",
    "matmul",
    "multiply",
    "programs",
    "quantize",
    "random_dims",
    "rms_norm",
    "scale",
    "silu",
    "slice_rows",
    "softmax",
    "transpose",
]
