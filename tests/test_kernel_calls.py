"""Kernels as users call them: their results, compared with numpy, and the arguments they refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from llamagpu import gpu, kernels
from llamagpu.errors import KernelError
from llamagpu.kernels.embedding import embedding
from llamagpu.kernels.matmul import matmul_nt

Call = Callable[..., object]


@pytest.fixture(scope="module")
def other() -> Iterator[gpu.Device]:
    """A second device."""
    with gpu.open() as opened:
        yield opened


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# --- results -------------------------------------------------------------------------------


def test_public_names_are_functions() -> None:
    """Importing a kernel's module does not hide the function of the same name."""
    functions = [name for name in kernels.__all__ if name.islower()]
    assert len(functions) >= 15
    assert all(callable(getattr(kernels, name)) for name in functions)


def test_matmul_matches_numpy(device: gpu.Device) -> None:
    for m, k, n in ((1, 1, 1), (3, 97, 33), (70, 5, 130)):
        a, b = floats(m, k), floats(k, n, seed=1)
        got = kernels.matmul(device.tensor(a), device.tensor(b)).numpy()
        exact, scale = a.astype("f8") @ b, np.abs(a).astype("f8") @ np.abs(b)
        assert (np.abs(got - exact) <= 2e-6 * scale).all()


def test_quantized_weights(device: gpu.Device) -> None:
    w, x = floats(37, 128), floats(9, 128, seed=1)
    for bits, steps in ((4, 15), (8, 255)):
        q = kernels.quantize(device.tensor(w), bits, 64)
        near = kernels.dequantize(q)
        spread = np.ptp(w.reshape(37, 2, 64), axis=-1).max()
        assert near.shape == (37, 128)
        assert np.abs(near.numpy() - w).max() <= 1.01 * spread / steps
        for rows in (1, 9):
            got = kernels.linear(device.tensor(x[:rows]), q).numpy()
            exact = x[:rows].astype("f8") @ near.numpy().T
            assert (np.abs(got - exact) <= 2e-6 * (np.abs(x[:rows]) @ np.abs(w).T) * 2).all()


def test_causal_masks_end_at_the_last_position(device: gpu.Device) -> None:
    """The last query attends to all positions. The last two values change no bit of the first query's result."""
    q, k, v = floats(3, 8), floats(7, 8, seed=1), floats(7, 8, seed=2)
    tensors = [device.tensor(t) for t in (q, k, v)]
    masked, open_ = kernels.attention(*tensors).numpy(), kernels.attention(*tensors, causal=False).numpy()
    assert np.array_equal(masked[2], open_[2])
    assert not np.allclose(masked[0], open_[0])
    v[5:] = 1e6
    assert np.array_equal(kernels.attention(*tensors[:2], device.tensor(v)).numpy()[0], masked[0])


def test_grouped_heads_match_repeated_keys(device: gpu.Device) -> None:
    """Grouped-query attention is attention with every head of k and v repeated."""
    q, k, v = floats(5, 6 * 4), floats(9, 2 * 4, seed=1), floats(9, 2 * 4, seed=2)
    repeated = [t.reshape(9, 2, 4).repeat(3, axis=1).reshape(9, 24) for t in (k, v)]
    grouped = kernels.attention(*(device.tensor(t) for t in (q, k, v)), heads=6).numpy()
    assert np.array_equal(grouped, kernels.attention(*(device.tensor(t) for t in (q, *repeated)), heads=6).numpy())


@pytest.mark.parametrize("dtype", ["f32", "u32", "f16", "bf16"])
def test_slice_rows_copies_any_rows(device: gpu.Device, dtype: str) -> None:
    x = device.tensor(np.arange(70).reshape(2, 7, 5), dtype)
    copied = kernels.slice_rows(x, 3, 9)
    assert copied.shape == (6, 5)
    assert copied.dtype == dtype
    assert np.array_equal(copied.numpy(), np.arange(70).reshape(14, 5)[3:9])
    assert copied.part.buffer is not x.part.buffer
    with pytest.raises(KernelError, match=r"kernels\.slice_rows\(x, 3, 9\)"):
        x[3:9]
    for begin, end in ((-1, 2), (3, 3), (5, 2), (0, 15)):
        with pytest.raises(KernelError, match="are not in"):
            kernels.slice_rows(x, begin, end)


def test_calls_in_a_plan(device: gpu.Device) -> None:
    """Functions for users can be recorded, and run again on new values."""
    a, b = device.tensor(floats(12, 12)), device.tensor(floats(12, 12, seed=1))
    results: list[gpu.Tensor] = []

    def forward() -> None:
        y = kernels.silu(kernels.scale(kernels.multiply(a, b), 0.5))
        results.append(kernels.slice_rows(kernels.attention(kernels.matmul(a, y), kernels.transpose(b), y), 1, 12))

    plan = device.record(forward)
    device.call(plan.run)
    first = results[-1].numpy()
    a.write(floats(12, 12, seed=2))
    device.call(plan.run)
    again = results[-1].numpy()
    forward()
    assert np.array_equal(again, results[-1].numpy())
    assert not np.array_equal(again, first)
    plan.free()


@pytest.mark.parametrize("function", ["softmax", "gelu", "silu", "scale", "add", "rms_norm", "layer_norm"])
def test_functions_of_rows_take_any_shape(device: gpu.Device, function: str) -> None:
    x, vector = floats(2, 3, 5), floats(5, seed=1)
    more = {
        "scale": (2.0,),
        "add": (device.tensor(x),),
        "rms_norm": (device.tensor(vector), 1e-5),
        "layer_norm": (device.tensor(vector), device.tensor(vector), 1e-5),
    }.get(function, ())
    call = getattr(kernels, function)
    got = call(device.tensor(x), *more)
    assert got.shape == (2, 3, 5)
    flat = [device.tensor(x.reshape(6, 5)) if function == "add" else m for m in more]
    assert np.array_equal(got.numpy().reshape(6, 5), call(device.tensor(x.reshape(6, 5)), *flat).numpy())


def test_tensors_convert_to_arrays(device: gpu.Device) -> None:
    values = floats(3, 5)
    x = device.tensor(values)
    assert np.array_equal(np.asarray(x), values)
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    assert np.allclose(np.stack([x, x]).sum(axis=0), 2 * values)
    assert repr(x) == f"<Tensor [3, 5] f32 on {device.adapter.name}>"
    assert "int4-g64-f16" in repr(kernels.quantize(device.tensor(floats(1, 64)), 4))


@pytest.mark.parametrize("dtype", ["f16", "float16", "half", np.float16, np.dtype("float16")])
def test_dtype_names(device: gpu.Device, dtype: object) -> None:
    assert device.tensor([1.0], dtype).dtype == device.empty((1,), dtype).dtype == "f16"


# --- refused arguments ---------------------------------------------------------------------

CALLS: dict[str, Call] = {
    "add a": lambda x, y: kernels.add(x, y),
    "add b": lambda x, y: kernels.add(y, x),
    "add out": lambda x, y: kernels.add(y, y, x),
    "multiply b": lambda x, y: kernels.multiply(y, x),
    "scale out": lambda x, y: kernels.scale(y, 2.0, x),
    "silu out": lambda x, y: kernels.silu(y, x),
    "gelu out": lambda x, y: kernels.gelu(y, x),
    "softmax out": lambda x, y: kernels.softmax(y, x),
    "rms_norm weight": lambda x, y: kernels.rms_norm(y, x, 1e-5),
    "layer_norm bias": lambda x, y: kernels.layer_norm(y, y, x, 1e-5),
    "transpose out": lambda x, y: kernels.transpose(y, x),
    "slice_rows out": lambda x, y: kernels.slice_rows(y, 0, 4, x),
    "matmul b": lambda x, y: kernels.matmul(y, x),
    "linear w": lambda x, y: kernels.linear(y, x),
    "linear bias": lambda x, y: kernels.linear(y, y, x),
    "linear out": lambda x, y: kernels.linear(y, y, None, x),
    "attention v": lambda x, y: kernels.attention(y, y, x),
    "cross_entropy targets": lambda x, y: kernels.cross_entropy(y, x),
    "cross_entropy out": lambda x, y: kernels.cross_entropy(y, y.device.empty((1, 4), "u32"), x[:1]),
    "dequantize out": lambda x, y: kernels.dequantize(y, x),
}
EACH = pytest.mark.parametrize("name", CALLS)


@EACH
def test_arrays_are_refused(device: gpu.Device, name: str) -> None:
    with pytest.raises(KernelError, match=rf"{name.split()[1]} is a ndarray, not a tensor"):
        CALLS[name](np.ones((4, 4), "f4"), device.tensor(np.ones((4, 4))))


@EACH
def test_tensors_of_another_device_are_refused(device: gpu.Device, other: gpu.Device, name: str) -> None:
    x, y = other.tensor(np.ones((4, 4))), device.tensor(np.ones((4, 4)))
    with pytest.raises(KernelError, match="is on another device"):
        CALLS[name](x, y)


@pytest.mark.parametrize("name", [n for n in CALLS if n.endswith("out")])
def test_outputs_that_share_memory_are_refused(device: gpu.Device, name: str) -> None:
    """The error comes before anything is queued, also while recording a plan. The device keeps working."""
    x = device.tensor(np.ones((4, 4)))
    for attempt in (lambda: CALLS[name](x, x), lambda: device.record(lambda: CALLS[name](x, x))):
        with pytest.raises(KernelError, match=r"out lies in the buffer of (a|x|weights_data)\."):
            attempt()
    assert np.array_equal(x.numpy(), np.ones((4, 4)))


def test_windows_of_one_buffer_share_it(device: gpu.Device) -> None:
    """WebGPU refuses a dispatch that reads and writes one buffer, even in windows that do not overlap."""
    x = device.tensor(np.ones((8, 64)))
    assert x[:4].part.offset + x[:4].part.size == x[4:].part.offset
    with pytest.raises(KernelError, match="out lies in the buffer of x"):
        kernels.silu(x[:4], x[4:])
    assert np.array_equal(kernels.add(x[:4], x[4:]).numpy(), np.full((4, 64), 2))


def test_matrices_are_required(device: gpu.Device) -> None:
    cube, square = device.tensor(np.ones((2, 4, 4))), device.tensor(np.ones((4, 4)))
    calls: list[Callable[[], object]] = [
        lambda: kernels.linear(cube, square),
        lambda: kernels.linear(square, cube),
        lambda: kernels.linear(device.tensor(np.ones((8, 4))), square, None, cube),
        lambda: kernels.matmul(cube, square),
        lambda: kernels.matmul(square, cube),
        lambda: kernels.matmul(square, device.tensor(np.ones(4))),
        lambda: kernels.transpose(cube),
        lambda: kernels.transpose(device.tensor(np.ones(4))),
        lambda: kernels.attention(cube, square, square),
        lambda: kernels.attention(square, cube, cube),
        lambda: kernels.quantize(device.tensor(np.ones((2, 2, 64))), 4),
    ]
    for call in calls:
        with pytest.raises(KernelError, match=r"matri(x|ces)"):
            call()


def test_vectors_are_required(device: gpu.Device) -> None:
    """A kernel would silently read only the first row of a matrix."""
    x = device.tensor(np.ones((3, 4)))
    vector, matrix, longer = device.tensor(np.ones(4)), device.tensor(np.ones((3, 4))), device.tensor(np.ones(5))
    for wrong in (matrix, longer):
        for call in (
            lambda w=wrong: kernels.rms_norm(x, w, 1e-5),
            lambda w=wrong: kernels.layer_norm(x, w, vector, 1e-5),
            lambda w=wrong: kernels.layer_norm(x, vector, w, 1e-5),
            lambda w=wrong: kernels.linear(x, device.tensor(np.ones((4, 4))), w),
        ):
            with pytest.raises(KernelError, match="must be a vector of 4 elements"):
                call()


def test_other_dtypes_are_refused(device: gpu.Device) -> None:
    words, halves = device.tensor(np.ones((4, 64), "u4")), device.tensor(np.ones((4, 64), "f2"))
    x = device.tensor(np.ones((4, 64), "f4"))
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: kernels.add(x, words), "f32 tensor"),
        (lambda: kernels.silu(halves), "f32 tensor"),
        (lambda: kernels.dequantize(x, halves), "f32 tensor"),
        (lambda: kernels.dequantize(words), "does not hold weights"),
        (lambda: kernels.quantize(words, 4), "does not hold floats"),
        (lambda: kernels.quantize(kernels.quantize(x, 4), 4), "does not hold floats"),
        (lambda: kernels.slice_rows(x, 0, 4, halves), "out must be"),
        (lambda: kernels.slice_rows(kernels.quantize(x, 4), 0, 1), "is quantized or woven"),
        (lambda: kernels.slice_rows(device.tensor(np.ones((64, 4)), woven=True), 0, 1), "is quantized or woven"),
        (lambda: device.tensor(np.ones((64, 64)), woven=True)[32:], "woven"),
        (lambda: embedding(words, device.tensor(np.zeros((1, 4), "u4"))), "does not hold weights"),
    ]
    for call, message in calls:
        with pytest.raises(KernelError, match=message):
            call()


def test_invalid_numbers_and_shapes_are_refused(device: gpu.Device) -> None:
    x, k = device.tensor(np.ones((4, 12))), device.tensor(np.ones((2, 12)))
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: kernels.scale(x, float("nan")), "must be a number"),
        (lambda: kernels.scale(x, 1e39), "must be a number"),
        (lambda: kernels.scale(x, np.ones(1)), "must be a number"),  # type: ignore[arg-type]
        (lambda: kernels.attention(x, x, x, heads=5), "do not divide"),
        (lambda: kernels.attention(x, x, x, heads=2), "multiple of 4"),
        (lambda: kernels.attention(x, x, x, scale=float("inf")), "must be a number"),
        (lambda: kernels.attention(x, k, k), "causal mask needs 4 positions"),
        (lambda: kernels.attention(x, k, x, causal=False), "one shape"),
        (lambda: kernels.attention(x, *[device.tensor(np.ones((4, 8)))] * 2, heads=3), "heads of 4 elements"),
        (lambda: kernels.matmul(x, x), "must be equal in number"),
        (lambda: kernels.quantize(x, 3), "affine format .* is not supported"),
        (lambda: kernels.quantize(x, 4, 16), "do not divide"),
        (lambda: kernels.add(x, k), "one shape"),
    ]
    for call, message in calls:
        with pytest.raises(KernelError, match=message):
            call()


def test_wrappers_refuse_invalid_arguments(device: gpu.Device) -> None:
    x, w = device.tensor(np.ones((9, 8), "f4")), device.tensor(np.ones((4, 8), "f4"))
    with pytest.raises(KernelError, match="f32 tensor"):
        matmul_nt(device.tensor(np.ones((9, 8), "i8")), w)
    with pytest.raises(KernelError, match="matrices"):
        matmul_nt(device.tensor(np.ones((2, 3, 8), "f4")), w)
    with pytest.raises(KernelError, match="columns"):
        matmul_nt(x, device.tensor(np.ones((4, 7), "f4")))
    with pytest.raises(KernelError, match="out must be"):
        matmul_nt(x, w, out=device.empty((9, 5)))
    with pytest.raises(KernelError, match="one shape"):
        kernels.add(x, w)
