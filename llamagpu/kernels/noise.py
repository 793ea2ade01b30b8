"""Random weights made on the GPU, for benchmarks of shapes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Part, Program, Tensor, widen_bf16
from llamagpu.kernels.arguments import owner
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel

_KINDS = {"u32": 0, "affine": 0, "f32": 1, "f16": 2, "bf16": 3}


def noise(tensor: Tensor, seed: int = 0, amplitude: float = 0.03) -> Tensor:
    """Fill a tensor, padding included: floats are uniform from -amplitude to amplitude, packed values random bits.

    Scales and biases of a quantized tensor do not change.
    """
    owner("noise", tensor=tensor)
    for number, part in enumerate(tensor.parts):
        _fill(tensor, part, seed + number, amplitude)
    return tensor


def _fill(tensor: Tensor, part: Part, seed: int, amplitude: float) -> None:
    words = (part.size - part.tail) // 4
    tensor.device.dispatch(
        Program("noise", overrides=(("KIND", _KINDS[tensor.dtype]),)),
        -(-words // 64),
        {"words": words, "seed": seed, "amplitude": amplitude},
        {"out": part},
    )


def hash_words(count: int, seed: int) -> npt.NDArray[np.uint32]:
    """The hash of the words 0 … count - 1, as the shader makes it (PCG, O'Neill 2014)."""
    n = np.arange(count, dtype=np.uint32) ^ np.uint32(seed)
    state = n * np.uint32(747796405) + np.uint32(2891336453)
    word = ((state >> ((state >> np.uint32(28)) + np.uint32(4))) ^ state) * np.uint32(277803737)
    out: npt.NDArray[np.uint32] = (word >> np.uint32(22)) ^ word
    return out


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    return noise(bench.out((d["rows"], d["columns"]), d["dtype"]), d["seed"], 0.5)


def reference(a: Arrays, d: Dims) -> Expected:
    """The noise in float64, on a scale of one unit in the last place of the dtype."""
    per = {"u32": 1, "f32": 1}.get(d["dtype"], 2)
    bits = hash_words(d["rows"] * d["columns"] // per, d["seed"])
    if d["dtype"] == "u32":
        return Expected(bits.astype(np.float64).reshape(d["rows"], -1), np.zeros((d["rows"], d["columns"])))
    halves = np.stack([bits & 0xFFFF, bits >> 16], axis=-1)[:, :per].reshape(-1)
    value = ((halves / 32768 - 1) * 0.5).astype(np.float32)
    if d["dtype"] == "bf16":
        value = widen_bf16((value.view(np.uint32) >> 16).astype(np.uint16))
    ulp = {"f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}[d["dtype"]]
    wide = value.astype(np.float64).reshape(d["rows"], -1)
    return Expected(wide, np.abs(wide) * ulp)


KERNEL = Kernel(
    "noise",
    lambda rng, d: {},
    _run,
    reference,
    cases=tuple(
        {"rows": rows, "columns": columns, "dtype": dtype, "seed": 7}
        for dtype, rows, columns in (
            ("u32", 1, 4),
            ("f32", 3, 100),
            ("f16", 40, 1000),
            ("bf16", 9, 64),
            ("u32", 1050, 4000),
        )
    ),
    random=lambda rng: {
        "rows": int(rng.integers(1, 40)),
        "columns": 8 * int(rng.integers(1, 90)),
        "dtype": ("u32", "f32", "f16", "bf16")[rng.integers(4)],
        "seed": int(rng.integers(1000)),
    },
    tolerance=1.0,
)
