"""The registry: every kernel, in the order of a forward pass. The tests and ``llamagpu doctor`` walk it."""

from llamagpu.kernels.attention_cases import DECODE, PREFILL
from llamagpu.kernels.attention_dense import KERNEL as ATTENTION
from llamagpu.kernels.attention_spans import KERNEL as SPANS
from llamagpu.kernels.begin_step import KERNEL as BEGIN_STEP
from llamagpu.kernels.cross_entropy import KERNEL as CROSS_ENTROPY
from llamagpu.kernels.dequantize import KERNEL as DEQUANTIZE
from llamagpu.kernels.elementwise import ACTIVATE, ADD, MULTIPLY, SCALE, SILU
from llamagpu.kernels.embedding import KERNEL as EMBEDDING
from llamagpu.kernels.gate import KERNEL as GATE
from llamagpu.kernels.gelu import KERNEL as GELU
from llamagpu.kernels.glu import KERNEL as GLU
from llamagpu.kernels.kv_write import KERNEL as KV_WRITE
from llamagpu.kernels.layer_norm import KERNEL as LAYER_NORM
from llamagpu.kernels.logits_cases import PROCESS, SELECT
from llamagpu.kernels.lora_cases import LORA_DOWN, LORA_UP
from llamagpu.kernels.matmul import KERNEL as MATMUL
from llamagpu.kernels.matvec import KERNEL as MATVEC
from llamagpu.kernels.noise import KERNEL as NOISE
from llamagpu.kernels.pool import KERNEL as POOL
from llamagpu.kernels.post_norm import KERNEL as POST_NORM
from llamagpu.kernels.qk_norm import KERNEL as QK_NORM
from llamagpu.kernels.qkv import KERNEL as QKV
from llamagpu.kernels.residual import KERNEL as RESIDUAL
from llamagpu.kernels.rms_norm import KERNEL as RMS_NORM
from llamagpu.kernels.rope import KERNEL as ROPE
from llamagpu.kernels.sampling_cases import SAMPLE
from llamagpu.kernels.slice_rows import KERNEL as SLICE_ROWS
from llamagpu.kernels.softmax import KERNEL as SOFTMAX
from llamagpu.kernels.step_ids import STEP_IDS, VOID_ROWS
from llamagpu.kernels.store import KERNEL as STORE
from llamagpu.kernels.transpose import KERNEL as TRANSPOSE
from llamagpu.kernels.yardsticks import COPY, MULTIPLY_ADD

REGISTRY = {
    kernel.name: kernel
    for kernel in (
        STEP_IDS,
        DEQUANTIZE,
        EMBEDDING,
        BEGIN_STEP,
        RMS_NORM,
        LAYER_NORM,
        ROPE,
        MATVEC,
        MATMUL,
        STORE,
        QKV,
        RESIDUAL,
        GLU,
        LORA_DOWN,
        LORA_UP,
        QK_NORM,
        POST_NORM,
        POOL,
        KV_WRITE,
        PREFILL,
        SPANS,
        DECODE,
        GATE,
        GELU,
        SOFTMAX,
        CROSS_ENTROPY,
        ADD,
        MULTIPLY,
        SCALE,
        SILU,
        ACTIVATE,
        TRANSPOSE,
        SLICE_ROWS,
        ATTENTION,
        PROCESS,
        SELECT,
        SAMPLE,
        NOISE,
        VOID_ROWS,
        COPY,
        MULTIPLY_ADD,
    )
}
