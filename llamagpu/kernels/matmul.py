"""Products of matrices: a weight matrix with many vectors, as in a prefill, and numpy's matmul."""

from __future__ import annotations

from llamagpu.gpu import Tensor
from llamagpu.kernels.arguments import owner, require, require_floats, require_matrices, require_vectors
from llamagpu.kernels.entry import Kernel
from llamagpu.kernels.matvec import matvec, product_inputs, product_put, product_random, product_reference
from llamagpu.kernels.product import MAX_VECTORS, plain, product, store
from llamagpu.kernels.transpose import transpose


def matmul_nt(x: Tensor, w: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """``out = x Wᵀ + bias`` (BLAS: no transpose, transpose); a row of the result does not depend on the number of
    rows.

    Args:
        x: f32 [m, k].
        w: [n, k], f32, f16, bf16 or affine; may have several parts.
        bias: f32 [n], or [m, n].
        out: f32 [m, n].
    """
    device = owner("matmul_nt", x=x, w=w, bias=bias, out=out)
    out = out or device.empty((x.rows, w.rows))
    product(plain(x), w, bias, store(out), many=True)
    return out


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """``out = x Wᵀ + bias``, as torch's linear: ``matvec`` for up to 8 rows of x, ``matmul_nt`` for more.

    Args:
        x: f32 [m, k].
        w: [n, k], f32, f16, bf16 or affine (``quantize``).
        bias: f32 [n].
        out: f32 [m, n], not the memory of x.
    """
    owner("linear", x=x, w=w, bias=bias, out=out)
    require_vectors("linear", w.rows, bias=bias)
    return (matvec if x.rows <= MAX_VECTORS else matmul_nt)(x, w, bias, out)


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """``out = a @ b``, as numpy's matmul of matrices: ``linear(a, transpose(b))``. If b stays the same, transpose it
    once and call ``linear``.

    Args:
        a: f32 [m, k].
        b: f32 [k, n].
        out: f32 [m, n], not the memory of a.
    """
    require_floats("matmul", a=a, b=b, out=out)
    require_matrices("matmul", a=a, b=b)
    require(a.columns == b.rows, f"matmul: the columns of {a!r} and the rows of {b!r} must be equal in number")
    return linear(a, transpose(b), out=out)


KERNEL = Kernel(
    "matmul",
    product_inputs,
    lambda bench, a, d: matmul_nt(*product_put(bench, a, d)),
    product_reference,
    cases=(
        {"m": 1, "n": 1, "k": 1, "format": "f32", "bias": False},
        {"m": 9, "n": 97, "k": 333, "format": "f16", "bias": True},
        {"m": 31, "n": 105, "k": 97, "format": "bf16", "bias": False},
        {"m": 64, "n": 960, "k": 576, "format": "f16", "bias": False},
        {"m": 65, "n": 576, "k": 1536, "format": "bf16", "bias": True},
        {"m": 130, "n": 129, "k": 17, "format": "f32", "bias": True},
        {"m": 64, "n": 960, "k": 576, "format": "int4-g64-f16", "bias": True},
        {"m": 33, "n": 333, "k": 2048, "format": "int8-g64-bf16", "bias": False},
        {"m": 19, "n": 133, "k": 97, "format": "f16", "bias": True, "cut": True},
        {"m": 524290, "n": 3, "k": 3, "format": "f32", "bias": False},
    ),
    random=lambda rng: product_random(rng, 8, 140),
)
