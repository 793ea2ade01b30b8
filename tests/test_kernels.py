"""Every kernel in the registry, in every variant, against its float64 reference. A new kernel needs no new test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from llamagpu.kernels.affine import FORMATS
from llamagpu.kernels.base import Kernel
from llamagpu.kernels.sampling_twin import gumbel

from llamagpu import gpu, kernels
from llamagpu.errors import KernelError
from llamagpu.gpu import native
from llamagpu.kernels.sampling import NO_CUT

REGISTRY = pytest.mark.parametrize("kernel", kernels.REGISTRY.values(), ids=lambda k: k.name)
FULL = frozenset({"shader-f16", "subgroup"})
RANDOM = 20


def check_all(kernel: Kernel, device: gpu.Device, tuning: gpu.Tuning, cases: list) -> None:
    before, device.tuning = device.tuning, tuning
    try:
        reports = [kernels.check(kernel, device, dims, seed) for seed, dims in enumerate(cases)]
    finally:
        device.tuning = before
    bad = [str(r) for r in reports if not r.ok]
    assert not bad, "\n".join(bad)


@REGISTRY
def test_reference(kernel: Kernel, device: gpu.Device) -> None:
    """The cases, and random shapes from the kernel's domain, in the tuning that is in use."""
    check_all(kernel, device, device.tuning, [*kernel.cases, *kernels.random_dims(kernel, RANDOM)])


@pytest.mark.slow
@REGISTRY
def test_baseline_limits(kernel: Kernel, baseline: gpu.Device) -> None:
    """Within WebGPU's default limits and without features, in both families of variants and both orders of rows."""
    families = [t for t in gpu.variants(baseline.features, 0) if not t.lanes]
    assert len(families) == 3
    assert not baseline.features
    for tuning in families:
        small = [c for c in kernel.cases if np.prod([v for v in c.values() if isinstance(v, int)]) < 5e6]
        check_all(kernel, baseline, tuning, [*small, *kernels.random_dims(kernel, 2, seed=1)])


def name_of(tuning: gpu.Tuning) -> str:
    cut = "".join(f"-{v}" for _, c in tuning.lanes for v in vars(c).values())
    return f"{tuning.matvec}-{tuning.matmul}-{tuning.reduce}-{tuning.share}-{tuning.order}-{tuning.f16}{cut}"


def changed(tuning: gpu.Tuning) -> set[str]:
    """The fields that make a variant; of one that reads f16 natively or is cut otherwise only that, as the others are
    variants too."""
    fields = {k for k, v in vars(tuning).items() if v != vars(gpu.Tuning())[k]}
    return {"f16"} if "f16" in fields else {"lanes", "tiles"} & fields or fields


def skip_what_is_missing(tuning: gpu.Tuning, device: gpu.Device) -> None:
    needed = {
        "shader-f16": tuning.f16 == "native" and "shader-f16" not in device.features,
        "subgroups": tuning.reduce == "subgroup" and "subgroup" not in device.features,
        "subgroups of eight": tuning.share == "subgroup" and device.subgroup_size != 8,
    }
    if any(needed.values()):
        pytest.skip(f"this adapter lacks {', '.join(k for k, lacks in needed.items() if lacks)}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuning", "kernel"),
    [
        pytest.param(t, k, id=f"{k.name}-{name_of(t)}")
        for t in gpu.variants(FULL, 8)
        for k in kernels.REGISTRY.values()
        if changed(t) & set(k.depends)
    ],
)
def test_every_variant(kernel: Kernel, tuning: gpu.Tuning, device: gpu.Device) -> None:
    """Every linked combination is compiled, dispatched and right."""
    skip_what_is_missing(tuning, device)
    check_all(kernel, device, tuning, [*kernel.cases, *kernels.random_dims(kernel, RANDOM // 4, seed=2)])


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [t for t in gpu.variants(FULL, 8) if t.order == "plain"], ids=name_of)
def test_every_linked_product(tuning: gpu.Tuning, device: gpu.Device) -> None:
    """Every weight format, with and without a bias, for one, several and many columns."""
    skip_what_is_missing(tuning, device)
    formats = FORMATS if tuning.f16 == "unpack" else ("f16",)
    shape = {"n": 37, "k": 45}
    few = [shape | {"format": f, "bias": m > 1, "m": m} for f in formats for m in (1, 8)]
    check_all(kernels.REGISTRY["matvec"], device, tuning, few)
    check_all(kernels.REGISTRY["matmul"], device, tuning, [d | {"m": 9} for d in few[::2]])


@pytest.mark.slow
@REGISTRY
def test_checked_and_trusted(kernel: Kernel, device: gpu.Device) -> None:
    """Shaders with bounds checks and those without, whichever is the default here, are both right."""
    if not native.has_trusted:
        pytest.skip("this wgpu has no trusted shader modules")
    other = replace(device.tuning, trusted=not device.tuning.trusted)
    check_all(kernel, device, other, kernels.random_dims(kernel, 3, seed=3))


def test_rows_do_not_depend_on_company(device: gpu.Device) -> None:
    """A vector's product is the same bits alone and among others, in every variant."""
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((70, 333)).astype("f4"), rng.standard_normal((129, 333)).astype("f4")
    before = device.tuning
    try:
        for tuning in gpu.variants(device.features, device.subgroup_size):
            device.tuning = tuning
            for dtype in ("f32", "f16", "bf16"):
                weights = device.tensor(w, dtype)
                company = kernels.matvec(device.tensor(x[:19]), weights).numpy()
                for i in (0, 1, 8, 18):
                    alone = kernels.matvec(device.tensor(x[i : i + 1]), weights).numpy()
                    assert np.array_equal(alone[0], company[i])
                nine, many = (kernels.matmul(device.tensor(x[:n]), weights).numpy() for n in (9, 70))
                assert np.array_equal(nine, many[:9])
    finally:
        device.tuning = before


def test_bf16_and_f16_are_read_exactly(device: gpu.Device) -> None:
    """Every finite 16-bit pattern, through the look-up."""
    bits = np.arange(65536, dtype=np.uint16)
    for dtype, wide in (("bf16", gpu.widen_bf16(bits)), ("f16", bits.view(np.float16).astype(np.float32))):
        normal = np.isfinite(wide) & ((wide == 0) | (np.abs(wide) >= np.finfo(np.float32).tiny))
        table = np.where(normal, bits, 0).reshape(64, 1024)
        tensor = device.empty((64, 1024), dtype)
        device.upload_rows(tensor.parts, 0, table.view(np.uint8).reshape(64, -1))
        rows = device.tensor(kernels.step_rows(np.arange(64), 0), "u32")
        for native_f16 in ("unpack", "native") if "shader-f16" in device.features else ("unpack",):
            before, device.tuning = device.tuning, replace(device.tuning, f16=native_f16)
            try:
                got = kernels.embedding(tensor, rows).numpy()
            finally:
                device.tuning = before
            assert np.array_equal(got, np.where(normal, wide, 0).reshape(64, 1024))


def test_a_broken_tail_is_seen(device: gpu.Device) -> None:
    """The check is elementwise: one wrong element in a million fails, and so does a write behind the output."""
    kernel = kernels.REGISTRY["add"]
    dims = {"rows": 2, "columns": 500}

    def one_wrong(bench, arrays, dims):
        out = kernel.run(bench, arrays, dims)
        values = out.numpy()
        values[-1, -1] += 1e-5
        out.write(values)
        return out

    def outside(bench, arrays, dims):
        out = kernel.run(bench, arrays, dims)
        part = out.part
        device.write_bytes(part.buffer, part.size - part.tail, np.zeros(1, np.uint32))
        return out

    assert kernels.check(kernel, device, dims).ok
    assert not kernels.check(replace(kernel, run=one_wrong), device, dims).ok
    assert not kernels.check(replace(kernel, run=outside), device, dims).guards


def test_gumbel_draws_follow_the_softmax(device: gpu.Device) -> None:
    """Frequencies over seeds match the probabilities, and the noise is that of the reference."""
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    rows = 4000
    x = device.tensor(np.tile(logits, (rows, 1)))
    sampler = kernels.make_sampler(device, rows, 1, 4)
    sampler.draws.write(np.stack([kernels.Settings(temperature=1.0, seed=r).draw(plain=True) for r in range(rows)]))
    sampler.cuts.write(np.tile(np.array(NO_CUT, np.uint32), (rows, 1)))
    state = device.tensor(kernels.step_rows(np.zeros(rows), 3), "u32")
    tokens = kernels.sample(x, x, state, sampler).numpy()[:, 0]
    assert np.abs(np.bincount(tokens, minlength=4) / rows - np.exp(logits)).max() < 0.03
    noisy = logits + np.stack([gumbel(seed, 4, np.arange(4)) for seed in range(rows)])
    margin = np.diff(np.sort(noisy, axis=1)[:, -2:], axis=1)[:, 0]
    assert np.array_equal(tokens[margin > 1e-5], noisy.argmax(axis=1)[margin > 1e-5])
    state_after = state.numpy()
    assert np.array_equal(state_after[:, 0], tokens)
    assert (state_after[:, 1] == 4).all()


def test_wrappers_refuse_what_does_not_fit(device: gpu.Device) -> None:
    x, w = device.tensor(np.ones((9, 8), "f4")), device.tensor(np.ones((4, 8), "f4"))
    with pytest.raises(KernelError, match="f32 tensor"):
        kernels.matmul(device.tensor(np.ones((9, 8), "i8")), w)
    with pytest.raises(KernelError, match="matrices"):
        kernels.matmul(device.tensor(np.ones((2, 3, 8), "f4")), w)
    with pytest.raises(KernelError, match="columns"):
        kernels.matmul(x, device.tensor(np.ones((4, 7), "f4")))
    with pytest.raises(KernelError, match="out must be"):
        kernels.matmul(x, w, out=device.empty((9, 5)))
    with pytest.raises(KernelError, match="one shape"):
        kernels.add(x, w)
