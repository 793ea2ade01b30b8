"""Divisions of products for GPUs: which ones the tuner chooses, and that no choice among them changes a bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_kernels import recorded

from llamagpu import gpu, kernels
from llamagpu.gpu import Lanes, Tuning
from llamagpu.kernels.prenorm import prenorm_columns
from llamagpu.kernels.product import normed, plain, product, store
from llamagpu.kernels.quantization import quantize
from llamagpu.model.candidates import cuts_for, passes_for
from llamagpu.model.layout import Matrix
from llamagpu.model.tuner import _Tuner
from llamagpu.model.tuner_products import Shape

GPU = Tuning(matvec="lanes", matmul="tiled", attention="whole", trusted=True)
ROWS = 97  # of weights; the last workgroup has fewer than its passes take


def test_passes_keep_the_order_of_additions() -> None:
    """They are tried where the lanes hold a vector."""
    cut = Lanes(32, True, 4, 4, 128)
    found = passes_for(cut, 2048)
    assert {(c.passes, c.rows) for c in found} == {(n, rows) for n in (2, 4, 8) for rows in (1, 2, 4)}
    assert {c.order for c in found} == {cut.order}
    assert passes_for(cut, 2052) == []
    assert {c.rows for c in passes_for(replace(cut, lanes=128, workgroup=256), 8192)} == {2, 4}


@pytest.mark.slow
def test_passes_and_blocks_are_chosen_only_where_they_are_faster(
    device: gpu.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The divisions keep their order of additions. What is slower, or does not run, is not chosen."""
    shape = Shape(Matrix.bare(96, 64, "f16"), 1, True)
    base = replace(GPU, lanes=(shape.tuned(Lanes(32, True)),))
    tuner = _Tuner(device, [shape], print)
    tuner._start = 0.0
    for choose, field, least in ((tuner._blocks, "block", 4), (tuner._passes, "passes", 1)):
        (measured,) = choose(base)
        assert measured.cut.order == base.lanes[0].cut.order
        for seconds, expected in (({least: 1.0, 8: 0.9}, 8), ({least: 1.0, 8: 1.1}, least), ({least: 1.0}, least)):
            with monkeypatch.context() as patch:

                def given(
                    _: object,
                    options: list[Tuning],
                    *__: object,
                    took: dict = seconds,
                    name: str = field,
                    **___: object,
                ) -> dict:
                    numbers = {t: getattr(t.lanes_for("", 0, 0), name) for t in options}
                    return {t: took[n] for t, n in numbers.items() if n in took}

                patch.setattr(tuner, "_measure", given)
                (found,) = choose(base)
            assert found.cut == replace(base.lanes[0].cut, **{field: expected})


def products(
    device: gpu.Device, tuning: Tuning, weights: gpu.Tensor, x: np.ndarray, norm: bool
) -> tuple[np.ndarray, gpu.Program]:
    """The products of prenorm buffers x, scaled by their norms or not, and the program that made them."""
    columns, out = weights.columns, device.empty((len(x), weights.rows))
    source = normed(device.tensor(x), columns, 1e-5) if norm else plain(device.tensor(x[:, :columns]))
    with device.using(tuning), recorded(device) as calls:
        product(source, weights, None, store(out))
    return out.numpy(), calls[-1][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "columns", "lanes", "wide", "reduce"),
    [
        ("f32", 2047, 32, False, "subgroup"),  # 16 pieces a lane
        ("f16", 1533, 32, True, "workgroup"),  # 6 of 8
        ("bf16", 2303, 64, False, "subgroup"),  # 9 of 16; an invocation adds up to two sums of squares
        ("int8", 704, 64, True, "workgroup"),  # 2
        ("int4", 704, 128, True, "workgroup"),  # 1
        ("int4", 2048, 32, True, "subgroup"),  # 4
    ],
)
def test_variants_of_a_division_keep_every_bit(
    format: str, columns: int, lanes: int, wide: bool, reduce: str, device: gpu.Device
) -> None:
    """8 × 8 sums, pieces ahead, passes, joined sums of squares, other ways to add up a team and weights in pairs change
    no bit, alone and in a batch, with and without a norm."""
    rng, dtype, bits = np.random.default_rng(1), *{"int8": ("f32", 8), "int4": ("f32", 4)}.get(format, (format, 0))
    w = device.tensor(rng.standard_normal((ROWS, columns)).astype("f4"), dtype)
    w = quantize(w, bits, 32) if bits else w
    x = rng.random((19, prenorm_columns(columns)), np.float32)
    reduce = reduce if reduce in ("workgroup", *device.features) else "workgroup"
    cut, few = Lanes(lanes, wide, 2, 4, 256 if lanes == 128 else 128), 1 if lanes == 32 else 2
    base = replace(GPU, reduce=reduce, all_lanes=cut)
    other = replace(base, gather="transposed", squares="joined", digits="halves")
    variants = [
        ("product_lanes", replace(other, all_lanes=replace(cut, rows=few, ahead=8, block=8))),
        ("product_passes", replace(base, all_lanes=replace(cut, rows=4, passes=3))),
        ("product_passes", replace(other, all_lanes=replace(cut, rows=few, passes=2))),
    ]
    alone = products(device, base, w, x[:1], True)[0]
    for rows in (*(x[i : i + 1] for i in range(8)), x[:2], x[:3], x[:8], x):
        for norm in (True, False) if len(rows) in (1, 8) else (True,):
            expected, first = products(device, base, w, rows, norm)
            assert np.isfinite(expected).all()
            assert np.abs(expected).min() > 0
            assert np.array_equal(expected[:1], alone) or not norm or len(rows) == 1
            for shader, tuning in variants if len(rows) == 1 else variants[:1]:
                found, program = products(device, tuning, w, rows, norm)
                assert program != first
                assert program.shader == ("product_block" if len(rows) >= 8 else shader)
                assert np.array_equal(found, expected), (tuning, len(rows), norm)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [2048, 8192])
def test_every_candidate_cut_is_right(columns: int, device: gpu.Device) -> None:
    """Single vectors, in the weight formats of models."""
    kernel = kernels.REGISTRY["matvec"]
    cases = [
        {"m": 1, "n": 97, "k": 332, "format": format, "bias": True}
        for format in ("f32", "f16", "bf16", "int8-g64-f16", "int4-g64-f16")
    ]
    for cut in cuts_for(columns):
        tuning = replace(GPU, all_lanes=cut)
        bad = [str(r) for c in cases if not (r := kernels.check(kernel, device, c, tuning=tuning)).ok]
        assert not bad, (cut, bad)
