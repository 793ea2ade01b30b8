"""The next token of every row: arg max, or a seeded draw from the softmax by Gumbel noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.base import Arrays, Bench, Dims, Expected, Kernel, parts, require
from llamagpu.kernels.base import step_rows as make_rows

CHUNK = 4096


def chunks_for(vocab: int) -> int:
    """Partial results a row needs."""
    return -(-vocab // CHUNK)


def draws(seeds: npt.ArrayLike, temperatures: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """Sampling settings as the kernel reads them: u32 [rows, 4] of (seed, bits of 1 / temperature, 0, 0), where a
    temperature of 0 (greedy) leaves 0."""
    t = np.atleast_1d(np.asarray(temperatures, np.float32))
    inverse = np.divide(np.float32(1), t, out=np.zeros_like(t), where=t > 0)
    out = np.zeros((len(t), 4), np.uint32)
    out[:, 0], out[:, 1] = seeds, inverse.view(np.uint32)
    return out


def sample(logits: Tensor, settings: Tensor, best: Tensor, rows: Tensor, result: Tensor) -> Tensor:
    """Choose a token for every row; the row's state takes it and its position advances.

    Greedy is the arg max; with a temperature it is the arg max of logit / temperature + Gumbel noise keyed by
    (seed, position, token), a draw from the softmax (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030). Ties keep the
    lower id.

    Args:
        logits: f32 [rows, vocab].
        settings: u32 [rows, 4], see ``draws``.
        best: u32 [rows, 4 · chunks_for(vocab)], scratch.
        rows: u32 [rows, 4], the step's state, updated.
        result: u32 [rows, 4]: the token, and 1 where a logit is NaN or infinite.
    """
    device, count, vocab = logits.device, logits.rows, logits.columns
    chunks = chunks_for(vocab)
    require(best.shape == (count, 4 * chunks), f"sample: best must be [{count}, {4 * chunks}]")
    require(result.shape == settings.shape == (count, 4), "sample: four values a row")
    params = {"rows": count, "vocab": vocab, "stride": logits.stride, "chunks": chunks}
    windows = parts(logits=logits, draws=settings, best=best, step_rows=rows, result=result)
    device.dispatch(Program("sample", entry="partial"), count * chunks, params, windows)
    device.dispatch(Program("sample", entry="final_"), count, params, windows)
    return result


def gumbel(seed: int, position: npt.ArrayLike, token: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The kernel's noise in float64: pcg3d (Jarzynski and Olano 2020) of the three, then -log(-log u)."""
    with np.errstate(over="ignore"):
        x, y, z = (
            np.asarray(v, np.uint32) * np.uint32(1664525) + np.uint32(1013904223)
            for v in np.broadcast_arrays(seed, position, token)
        )
        for _ in range(2):
            x = x + y * z
            y = y + z * x
            z = z + x * y
            if _ == 0:
                x, y, z = (v ^ (v >> np.uint32(16)) for v in (x, y, z))
    u = ((x >> np.uint32(9)).astype(np.float64) + 0.5) * 2.0**-23
    return -np.log(-np.log(u))


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    logits = (rng.standard_normal((d["rows"], d["vocab"])) * 3).astype(np.float32)
    if d["temperature"] == 0 and d["vocab"] > 2:
        logits[:, -1] = logits[:, rng.integers(d["vocab"])] = logits.max() + 1  # a tie: the lower id wins
    if d.get("nan"):
        logits[0, 0] = np.nan
    return {"logits": logits, "rows": make_rows([0] * d["rows"], rng.integers(0, 500, d["rows"]))}


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    settings = bench.put(draws([7] * d["rows"], [d["temperature"]] * d["rows"]), "u32")
    best, result = bench.out((d["rows"], 4 * chunks_for(d["vocab"])), "u32"), bench.out((d["rows"], 4), "u32")
    return sample(bench.put(a["logits"]), settings, best, bench.put(a["rows"], "u32"), result)


def reference(a: Arrays, d: Dims) -> Expected:
    """The token that the noise of the kernel draws, in float64, and whether a logit is not finite."""
    score = a["logits"].astype(np.float64)
    if d["temperature"]:
        at = a["rows"][:, 1:2].astype(np.int64) + 1
        score = score / np.float32(d["temperature"]) + gumbel(7, at, np.arange(d["vocab"])[None])
    flag = ~np.isfinite(a["logits"]).all(axis=1)
    token = np.argmax(np.where(np.isnan(score), -np.inf, score), axis=1)
    value = np.stack([token, flag, 0 * token, 0 * token], axis=1).astype(np.float64)
    return Expected(value, np.zeros_like(value))


def _random(rng: np.random.Generator) -> Dims:
    temperature = (0.0, 0.7, 1.0)[rng.integers(3)]
    return {"rows": int(rng.integers(1, 9)), "vocab": int(rng.integers(1, 20000)), "temperature": temperature}


KERNEL = Kernel(
    "sample",
    _inputs,
    _run,
    reference,
    cases=(
        {"rows": 1, "vocab": 1, "temperature": 0.0},
        {"rows": 8, "vocab": 105, "temperature": 1.0},
        {"rows": 3, "vocab": 50257, "temperature": 0.0},
        {"rows": 2, "vocab": 128256, "temperature": 0.8},
        {"rows": 2, "vocab": 300, "temperature": 0.0, "nan": True},
        {"rows": 65540, "vocab": 3, "temperature": 0.0},
    ),
    random=_random,
    tolerance=0.0,
)
