"""The kernels: a module each, with its wrapper, its float64 reference, its cases and its tolerance; and their registry.

A wrapper called by itself runs at once; called inside ``Device.record`` it becomes a step of the plan.
"""

from llamagpu.kernels import add as _add
from llamagpu.kernels import attention as _attention
from llamagpu.kernels import embedding as _embedding
from llamagpu.kernels import kv_write as _kv_write
from llamagpu.kernels import matmul as _matmul
from llamagpu.kernels import matvec as _matvec
from llamagpu.kernels import rms_norm as _rms_norm
from llamagpu.kernels import rope as _rope
from llamagpu.kernels import sample as _sample
from llamagpu.kernels import silu_mul as _silu_mul

REGISTRY = {
    kernel.name: kernel
    for kernel in (
        _embedding.KERNEL,
        _rms_norm.KERNEL,
        _rope.KERNEL,
        _matvec.KERNEL,
        _matmul.KERNEL,
        _kv_write.KERNEL,
        _attention.PREFILL,
        _attention.DECODE,
        _silu_mul.KERNEL,
        _add.KERNEL,
        _sample.KERNEL,
    )
}

from llamagpu.kernels.add import add  # noqa: E402
from llamagpu.kernels.attention import (  # noqa: E402
    attention_decode,
    attention_merge,
    attention_prefill,
    partial_shape,
    splits_for,
)
from llamagpu.kernels.base import step_rows  # noqa: E402
from llamagpu.kernels.check import Report, check, random_dims  # noqa: E402
from llamagpu.kernels.embedding import embedding  # noqa: E402
from llamagpu.kernels.kv_write import PAGE, Cache, cache_columns, kv_write  # noqa: E402
from llamagpu.kernels.matmul import linear, matmul  # noqa: E402
from llamagpu.kernels.matvec import matvec  # noqa: E402
from llamagpu.kernels.rms_norm import rms_norm  # noqa: E402
from llamagpu.kernels.rope import rope  # noqa: E402
from llamagpu.kernels.sample import chunks_for, draws, sample  # noqa: E402
from llamagpu.kernels.silu_mul import silu_mul  # noqa: E402

__all__ = [
    "PAGE",
    "REGISTRY",
    "Cache",
    "Report",
    "add",
    "attention_decode",
    "attention_merge",
    "attention_prefill",
    "cache_columns",
    "check",
    "chunks_for",
    "draws",
    "embedding",
    "kv_write",
    "linear",
    "matmul",
    "matvec",
    "partial_shape",
    "random_dims",
    "rms_norm",
    "rope",
    "sample",
    "silu_mul",
    "splits_for",
    "step_rows",
]
