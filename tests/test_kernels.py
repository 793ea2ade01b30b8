"""Every kernel in the registry, in every variant, against its float64 reference. A new kernel needs no new test."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from llamagpu import gpu, kernels
from llamagpu.gpu import Program
from llamagpu.gpu.plan import fold
from llamagpu.kernels.dequantize import FLOATS, FORMATS
from llamagpu.kernels.embedding import embedding
from llamagpu.kernels.entry import Dims, Kernel
from llamagpu.kernels.matmul import matmul_nt
from llamagpu.kernels.matvec import matvec
from llamagpu.kernels.sampling import make_sampler, sample
from llamagpu.kernels.sampling_reference import gumbel
from llamagpu.kernels.step import Settings, no_cuts, step_rows

REGISTRY = pytest.mark.parametrize("kernel", kernels.REGISTRY.values(), ids=lambda k: k.name)
FULL = frozenset({"shader-f16", "shader-int64", "subgroup"})
MOST_GROUPS = 65535  # limit of one dimension of a grid
# Other kernels fold the grids of the same shaders (elementwise, product_rows). A folded copy would exceed a binding.
# A workgroup of logits_select takes a row of a step, and has far more work than can be repeated so often.
FOLD_ELSEWHERE = {"multiply", "scale", "silu", "activate", "qkv", "store", "residual", "glu", "copy", "logits_select"}
SMALL = 2_000_000  # limit of elements in the inputs of a small case
RANDOM = 20  # random shapes of a kernel


@contextmanager
def recorded(device: gpu.Device) -> Iterator[list[tuple[Program, int]]]:
    """Record the programs and workgroup counts dispatched inside the block."""
    calls: list[tuple[Program, int]] = []
    dispatch = device.dispatch

    def note(program: Program, groups: int, *more: object, **named: object) -> None:
        calls.append((program, groups))
        dispatch(program, groups, *more, **named)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "dispatch", note)
        yield calls


def check_all(kernel: Kernel, device: gpu.Device, tuning: gpu.Tuning, cases: list[Dims]) -> list[str]:
    """Reports of the cases that fail."""
    reports = [kernels.check(kernel, device, dims, seed, tuning) for seed, dims in enumerate(cases)]
    return [str(r) for r in reports if not r.ok]


@REGISTRY
def test_reference(kernel: Kernel, device: gpu.Device) -> None:
    """The kernel's cases and random shapes pass in the current tuning.

    One case has more workgroups than one dimension of a grid holds, and folding adds surplus ones.
    """
    with recorded(device) as calls:
        bad = check_all(kernel, device, device.tuning, [*kernel.cases, *kernels.random_dims(kernel, RANDOM)])
    assert not bad, "\n".join(bad)
    folded = [groups for _, groups in calls if groups > MOST_GROUPS]
    assert any(math.prod(fold(n, MOST_GROUPS)) > n for n in folded) or kernel.name in FOLD_ELSEWHERE, folded


# --- variants ------------------------------------------------------------------------------


def is_small(kernel: Kernel, dims: Dims) -> bool:
    """Whether a case has neither a folded grid nor the tables of a real model."""
    folded = any(type(v) is int and v > MOST_GROUPS for v in dims.values())
    return not folded and sum(a.size for a in kernel.inputs(np.random.default_rng(0), dims).values()) < SMALL


def formats(kernel: Kernel, number: int, variant: gpu.Tuning) -> list[Dims]:
    """Cases of the weight formats, with and without a bias, for one, several and many vectors.

    Both families of shaders test all formats. The variants of a family split the quantized ones between them.
    """
    if kernel.name not in ("matvec", "matmul") or variant.order != "plain":
        return []
    chosen = FORMATS if number < 2 else (*FLOATS, *FORMATS[len(FLOATS) :][number % 3 :: 3])
    counts = (1, 8) if kernel.name == "matvec" else (9,)
    return [{"n": 37, "k": 45, "format": f, "bias": m == 8, "m": m} for f in chosen for m in counts]


@pytest.mark.slow
@REGISTRY
def test_every_variant(kernel: Kernel, device: gpu.Device, baseline: gpu.Device) -> None:
    """Every linked combination compiles, runs and matches the reference.

    Variants that need no feature run within WebGPU's default limits. Bounds checks are on if the default tuning has
    them off, and the reverse. A case runs again if a variant links other programs for it. Random shapes run only for
    new programs.
    """
    cases = [c for c in kernel.cases if is_small(kernel, c)]
    random = kernels.random_dims(kernel, 2, seed=2)
    seen: set[object] = set()
    bad = []
    for number, variant in enumerate(gpu.variants(device.features, device.subgroup_size)):
        tuning = replace(variant, trusted=not device.tuning.trusted)
        where = baseline if variant in gpu.variants(baseline.features, 0) else device
        for dims in [*cases, *random, *formats(kernel, number, variant)]:
            linked = kernels.programs(kernel, where, dims, tuning)
            new = (str(dims), linked) if dims in cases else linked
            if new not in seen:
                seen |= {new, linked}
                bad += [f"{variant}: {text}" for text in check_all(kernel, where, tuning, [dims])]
    assert not bad, "\n".join(bad)


def test_the_adapter_runs_every_variant(device: gpu.Device, baseline: gpu.Device) -> None:
    """Skipped where ``test_every_variant`` cannot run every variant on the adapter."""
    assert not baseline.features
    assert len(gpu.variants(baseline.features, 0)) == 9
    if gpu.variants(device.features, device.subgroup_size) != gpu.variants(FULL, 8):
        pytest.skip(f"this adapter has {set(device.features)} and subgroups of {device.subgroup_size}")


@pytest.mark.slow
def test_folded_grids_of_the_other_family(device: gpu.Device) -> None:
    """``test_reference`` runs the case with the most workgroups in one family of shaders, this test in the other."""
    tiny = {"format": "f32", "bias": False}
    lanes = gpu.variants(frozenset(), 0)[1]
    for tuning, name, dims in (
        (lanes, "matvec", kernels.REGISTRY["matvec"].cases[-1]),
        (lanes, "attention_decode", kernels.REGISTRY["attention_decode"].cases[-1]),
        (replace(lanes, tiles=10**9), "matmul", {"m": 4194310, "n": 3, "k": 1} | tiny),  # the smallest tiles
        (gpu.Tuning(), "matvec", kernels.REGISTRY["matvec"].cases[-1]),
    ):
        if (tuning.matvec, tuning.matmul) == (device.tuning.matvec, device.tuning.matmul):
            continue
        with recorded(device) as calls:
            bad = check_all(kernels.REGISTRY[name], device, tuning, [dims])
        assert not bad, "\n".join(bad)
        assert max(groups for _, groups in calls) > MOST_GROUPS, name


@pytest.mark.slow
def test_a_batch_changes_no_bit_of_a_product(device: gpu.Device) -> None:
    """A vector's product has the same bits alone and in a batch, in every variant."""
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((70, 333)).astype("f4"), rng.standard_normal((129, 333)).astype("f4")
    for tuning in gpu.variants(device.features, device.subgroup_size):
        with device.using(tuning):
            for dtype in ("f32", "f16", "bf16"):
                weights = device.tensor(w, dtype)
                company = matvec(device.tensor(x[:19]), weights).numpy()
                for i in (0, 1, 8, 18):
                    alone = matvec(device.tensor(x[i : i + 1]), weights).numpy()
                    assert np.array_equal(alone[0], company[i])
                nine, many = (matmul_nt(device.tensor(x[:n]), weights).numpy() for n in (9, 70))
                assert np.array_equal(nine, many[:9])


def test_bf16_and_f16_are_read_exactly(device: gpu.Device) -> None:
    """Look up every finite 16-bit pattern that is not subnormal in float32."""
    bits = np.arange(65536, dtype=np.uint16)
    for dtype, wide in (("bf16", gpu.widen_bf16(bits)), ("f16", bits.view(np.float16).astype(np.float32))):
        normal = np.isfinite(wide) & ((wide == 0) | (np.abs(wide) >= np.finfo(np.float32).tiny))
        table = np.where(normal, bits, 0).reshape(64, 1024)
        tensor = device.empty((64, 1024), dtype)
        tensor.write_rows(0, table.view(np.uint8).reshape(64, -1))
        rows = device.tensor(step_rows(np.arange(64), 0), "u32")
        for native_f16 in ("unpack", "native") if "shader-f16" in device.features else ("unpack",):
            with device.using(replace(device.tuning, f16=native_f16)):
                got = embedding(tensor, rows).numpy()
            assert np.array_equal(got, np.where(normal, wide, 0).reshape(64, 1024))


def test_the_check_detects_one_wrong_element_and_stray_writes(device: gpu.Device) -> None:
    """The check is elementwise: one wrong element fails, and so does a write past the output."""
    kernel = kernels.REGISTRY["add"]
    dims = {"rows": 2, "columns": 501}  # rows padded to 504

    def one_wrong(bench, arrays, dims):
        out = kernel.run(bench, arrays, dims)
        values = out.numpy()
        values[-1, -1] += 1e-5
        out.write(values)
        return out

    def outside(bench, arrays, dims):
        out = kernel.run(bench, arrays, dims)
        part = out.part
        device.memory.write(part.buffer, part.size - part.tail, np.zeros(1, np.uint32))
        return out

    def padding(bench, arrays, dims):
        out = kernel.run(bench, arrays, dims)
        device.memory.write(out.part.buffer, 4 * dims["columns"], np.ones(1, np.float32))
        return out

    assert kernels.check(kernel, device, dims).ok
    assert not kernels.check(replace(kernel, run=one_wrong), device, dims).ok
    assert not kernels.check(replace(kernel, run=outside), device, dims).guards
    assert not kernels.check(replace(kernel, run=padding), device, dims).guards


def test_a_report_names_the_tuning_fields_read(device: gpu.Device) -> None:
    """``llamagpu tune`` relies on these fields."""
    fields = {
        name: kernels.check(kernels.REGISTRY[name], device, kernels.REGISTRY[name].cases[1], 0, tuning).tuning_fields
        for name, tuning in (("add", gpu.Tuning()), ("softmax", gpu.Tuning()), ("matvec", gpu.Tuning(matvec="lanes")))
    }
    assert fields["add"] == {"trusted"}
    assert fields["softmax"] == {"reduce", "trusted"}
    assert {"matvec", "lanes", "all_lanes", "reduce", "f16", "order"} <= fields["matvec"]


def test_gumbel_draws_follow_the_softmax(device: gpu.Device) -> None:
    """Frequencies over seeds match the probabilities, and the noise matches the reference."""
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    rows = 4000
    x = device.tensor(np.tile(logits, (rows, 1)))
    sampler = make_sampler(device, rows, 1, 4)
    sampler.draws.write(np.stack([Settings(temperature=1.0, seed=r).draw(plain=True) for r in range(rows)]))
    sampler.cuts.write(no_cuts(rows))
    state = device.tensor(step_rows(np.zeros(rows), 3), "u32")
    tokens = sample(x, x, state, sampler).numpy()[:, 0]
    assert np.abs(np.bincount(tokens, minlength=4) / rows - np.exp(logits)).max() < 0.03
    noisy = logits + np.stack([gumbel(seed, 4, np.arange(4)) for seed in range(rows)])
    margin = np.diff(np.sort(noisy, axis=1)[:, -2:], axis=1)[:, 0]
    assert np.array_equal(tokens[margin > 1e-5], noisy.argmax(axis=1)[margin > 1e-5])
    state_after = state.numpy()
    assert np.array_equal(state_after[:, 0], tokens)
    assert (state_after[:, 1] == 4).all()
