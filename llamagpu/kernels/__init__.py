"""Kernels: one module each, with a wrapper, a float64 reference, cases and a tolerance; and their registry.

The functions here work on tensors of ``llamagpu.gpu`` and are named as in numpy and torch. A call is queued and returns
at once; ``tensor.numpy()`` waits. Inside ``Device.record`` a call becomes a step of the plan. The kernels of the
decoder that work on its paged cache and step state are in the submodules.
"""

from llamagpu.kernels.add import add
from llamagpu.kernels.check import Report, check, random_dims
from llamagpu.kernels.dequantize import dequantize
from llamagpu.kernels.gelu import gelu
from llamagpu.kernels.layer_norm import layer_norm
from llamagpu.kernels.matmul import linear
from llamagpu.kernels.quantization import quantize
from llamagpu.kernels.registry import REGISTRY
from llamagpu.kernels.rms_norm import rms_norm
from llamagpu.kernels.softmax import softmax

__all__ = [
    "REGISTRY",
    "Report",
    "add",
    "check",
    "dequantize",
    "gelu",
    "layer_norm",
    "linear",
    "quantize",
    "random_dims",
    "rms_norm",
    "softmax",
]
