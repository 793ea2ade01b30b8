"""Choosing tokens on the GPU: penalties, bias, temperature, top-k, top-p, min-p, and a seeded draw by Gumbel noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Device, Program, Tensor
from llamagpu.kernels.base import Arrays, Bench, Dims, Expected, Kernel, parts, require
from llamagpu.kernels.base import step_rows as make_rows

CHUNK = 4096
MOST_LOGPROBS = 20
PROMPT_BIT = np.uint32(1 << 31)  # of a token's count: it is in the prompt
NO_CUT = (0, 0xFFFFFFFF, 0, 0)


@dataclass(frozen=True)
class Settings:
    """How one row's token is chosen; the defaults leave the logits alone and take the arg max."""

    temperature: float = 0.0
    seed: int = 0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int = 0
    biased: bool = False

    @property
    def plain(self) -> bool:
        """Whether ``sample`` alone does it; otherwise ``logits_process`` and ``logits_select`` come first."""
        penalties = self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty
        filters = self.temperature and (self.top_k or self.top_p < 1 or self.min_p)
        return not (penalties or filters or self.biased or self.logprobs)

    @property
    def counted(self) -> bool:
        """Whether the tokens of prompt and output must be counted."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)

    def pack(self) -> npt.NDArray[np.uint32]:
        """u32 [8], ``lib/settings.wgsl``."""
        floats = np.array(
            [
                1 / self.temperature if self.temperature else 1.0,
                self.repetition_penalty,
                self.presence_penalty,
                self.frequency_penalty,
                0,
                self.top_p,
                self.min_p,
                0,
            ],
            np.float32,
        ).view(np.uint32)
        floats[4], floats[7] = (self.top_k if self.temperature else 0), self.logprobs
        if not self.temperature:  # filters cannot change an arg max
            floats[5], floats[6] = np.float32(1).view(np.uint32), 0
        return floats

    def draw(self, plain: bool) -> npt.NDArray[np.uint32]:
        """u32 [4]: the seed, and the bits of what ``sample`` multiplies scores with (0: no noise)."""
        factor = 0.0 if not self.temperature else (1 / self.temperature if plain else 1.0)
        return np.array([self.seed, np.float32(factor).view(np.uint32), 0, 0], np.uint32)


@dataclass(frozen=True)
class Sampler:
    """The buffers of sampling. Rows are those of a step; slots those of sequences, and one more for padding rows."""

    scores: Tensor  # f32 [rows, vocab]
    settings: Tensor  # u32 [rows, 8]
    draws: Tensor  # u32 [rows, 4]
    cuts: Tensor  # u32 [rows, 4]
    best: Tensor  # u32 [rows, …]
    result: Tensor  # u32 [rows, 4] token, not finite, bits of its log-probability, 0
    likely: Tensor  # u32 [rows, 2 · MOST_LOGPROBS] the likeliest tokens: id, bits of log-probability
    counts: Tensor  # u32 [slots, vocab]
    bias: Tensor  # f32 [slots, vocab]

    def head(self, rows: int) -> Sampler:
        """The first rows."""
        shared = {"counts": self.counts, "bias": self.bias}
        cut = {k: t.head(rows) for k, t in vars(self).items() if k not in shared}
        return Sampler(**cut, **shared)


def sampler_columns(vocab: int) -> dict[str, int]:
    """Columns of the buffers that have a row for each row of a step."""
    chunks = -(-vocab // CHUNK)
    fixed = {"settings": 8, "draws": 4, "cuts": 4, "best": 4 * chunks, "result": 4, "likely": 2 * MOST_LOGPROBS}
    return {"scores": vocab} | fixed


def make_sampler(device: Device, rows: int, slots: int, vocab: int) -> Sampler:
    """Allocate the buffers, for at most ``rows`` rows and ``slots`` sequences."""

    def words(n: int, columns: int, dtype: str = "u32") -> Tensor:
        return device.empty((n, columns), dtype, purpose="activations")

    columns = sampler_columns(vocab)
    scores = words(rows, columns.pop("scores"), "f32")
    return Sampler(
        scores=scores,
        counts=words(slots, vocab),
        bias=words(slots, vocab, "f32"),
        **{name: words(rows, n) for name, n in columns.items()},
    )


def logits_process(logits: Tensor, rows: Tensor, sampler: Sampler) -> Tensor:
    """Penalties, bias and temperature: scores f32 [rows, vocab] from logits f32 [rows, vocab]."""
    count, vocab = logits.shape
    logits.device.dispatch(
        Program("logits_process"),
        count * -(-vocab // 256),
        {"rows": count, "vocab": vocab, "stride": logits.stride},
        parts(
            logits=logits,
            step_rows=rows,
            settings=sampler.settings,
            counts=sampler.counts,
            bias=sampler.bias,
            scores=sampler.scores,
        ),
    )
    return sampler.scores


def logits_select(logits: Tensor, sampler: Sampler) -> Tensor:
    """Top-k, top-p and min-p as a cut of each row's scores; log Σ e^logit and the likeliest tokens, by raw logits."""
    count, vocab = logits.shape
    params = {"rows": count, "vocab": vocab, "stride": logits.stride}
    s = sampler
    windows = parts(logits=logits, scores=s.scores, settings=s.settings, cuts=s.cuts, likely=s.likely)
    logits.device.dispatch(Program("logits_select"), count, params, windows)
    return s.cuts


def sample(logits: Tensor, scores: Tensor, rows: Tensor, sampler: Sampler) -> Tensor:
    """Choose a token for every row; the row's state takes it, its position advances, and it is counted.

    It is the arg max of the scores inside the row's cut; with a factor, of score · factor + Gumbel noise keyed by
    (seed, position, token), which is a draw from the softmax (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030). Ties
    keep the lower id.

    Args:
        logits: f32 [rows, vocab], raw.
        scores: f32 [rows, vocab]: the logits, or ``logits_process`` of them.
        rows: u32 [rows, 4], the step's state, updated.
        sampler: draws and cuts are read; ``result`` gets the token, 1 where a score is NaN or infinite, and the bits
            of the token's log-probability.
    """
    device, (count, vocab) = logits.device, logits.shape
    chunks = -(-vocab // CHUNK)
    require(scores.shape == logits.shape, "sample: scores must have the shape of the logits")
    require(sampler.best.shape == (count, 4 * chunks), f"sample: best must be [{count}, {4 * chunks}]")
    params = {"rows": count, "vocab": vocab, "stride": logits.stride, "chunks": chunks}
    s = sampler
    windows = parts(
        logits=logits,
        scores=scores,
        draws=s.draws,
        cuts=s.cuts,
        best=s.best,
        step_rows=rows,
        counts=s.counts,
        result=s.result,
    )
    device.dispatch(Program("sample", entry="partial"), count * chunks, params, windows)
    device.dispatch(Program("sample", entry="final_"), count, params, windows)
    return sampler.result


def choose(logits: Tensor, rows: Tensor, sampler: Sampler, plain: bool) -> Tensor:
    """The whole chain: two dispatches where settings are plain, otherwise four."""
    if plain:
        return sample(logits, logits, rows, sampler)
    scores = logits_process(logits, rows, sampler)
    logits_select(logits, sampler)
    return sample(logits, scores, rows, sampler)


# --- the numpy twin --------------------------------------------------------------------------


def gumbel(seed: int, position: npt.ArrayLike, token: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The kernel's noise in float64: pcg3d (Jarzynski and Olano 2020) of the three, then -log(-log(1 - w))."""
    with np.errstate(over="ignore"):
        x, y, z = (
            np.asarray(v, np.uint32) * np.uint32(1664525) + np.uint32(1013904223)
            for v in np.broadcast_arrays(seed, position, token)
        )
        for sweep in range(2):
            x = x + y * z
            y = y + z * x
            z = z + x * y
            if sweep == 0:
                x, y, z = (v ^ (v >> np.uint32(16)) for v in (x, y, z))
    w = ((x >> np.uint32(9)).astype(np.float64) + 0.5) * 2.0**-23
    return -np.log(-np.log1p(-w))


def process_row(
    logits: npt.NDArray[Any], s: Settings, counts: npt.NDArray[Any], bias: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """One row's scores: penalties, bias, temperature."""
    x = logits.astype(np.float64)
    made = (counts & np.uint32(0x7FFFFFFF)).astype(np.float64)
    x = np.where(counts != 0, np.where(x > 0, x / s.repetition_penalty, x * s.repetition_penalty), x)
    x = x - (made > 0).astype(np.float64) * (s.presence_penalty + s.frequency_penalty * made) + bias
    scores: npt.NDArray[np.float64] = x / np.float64(np.float32(s.temperature)) if s.temperature else x
    return scores


def allowed_tokens(scores: npt.NDArray[np.float64], s: Settings, slack: float = 0.0) -> npt.NDArray[np.int64]:
    """Ids that top-k, top-p and min-p leave, best first; ``slack`` moves the thresholds of the last two."""
    order = np.lexsort((np.arange(len(scores)), -scores))
    if not s.temperature:
        return order
    if s.top_k:
        order = order[: s.top_k]
    if s.top_p < 1:
        p = np.exp(scores[order] - scores[order[0]])
        reached = np.cumsum(p / p.sum()) >= np.float32(s.top_p) + slack
        order = order[: int(np.argmax(reached)) + 1] if reached.any() else order
    if s.min_p:
        order = order[scores[order] >= scores[order[0]] + np.log(np.float32(s.min_p)) + slack]
    return order


def choose_row(scores: npt.NDArray[np.float64], s: Settings, position: int, slack: float = 0.0) -> tuple[int, float]:
    """The token that the kernels choose for a row, and its margin over the next one."""
    ids = allowed_tokens(scores, s, slack)
    value = scores[ids] + (gumbel(s.seed, position, ids) if s.temperature else 0)
    best = np.lexsort((ids, -value))[:2]
    margin = value[best[0]] - value[best[1]] if len(best) > 1 else np.inf
    return int(ids[best[0]]), float(margin)


# --- registry --------------------------------------------------------------------------------

SETTINGS: Mapping[str, Settings] = {
    "greedy": Settings(),
    "temperature": Settings(temperature=0.8),
    "top_k": Settings(temperature=1.0, top_k=40),
    "top_p": Settings(temperature=1.0, top_p=0.9),
    "min_p": Settings(temperature=1.2, min_p=0.05),
    "repetition": Settings(repetition_penalty=1.3),
    "frequency": Settings(temperature=0.7, presence_penalty=0.5, frequency_penalty=0.2),
    "bias": Settings(temperature=1.0, biased=True),
    "all": Settings(
        temperature=0.9,
        top_k=50,
        top_p=0.95,
        min_p=0.02,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        biased=True,
    ),
}


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    rows, vocab = d["rows"], d["vocab"]
    logits = (rng.standard_normal((rows, vocab)) * 3).astype(np.float32)
    if d["settings"] == "greedy" and vocab > 2:
        logits[:, -1] = logits[:, rng.integers(vocab)] = logits.max() + 1  # a tie: the lower id wins
    if d.get("nan"):
        logits[0, 0] = np.nan
    counts = rng.integers(0, 3, (rows, vocab)).astype(np.uint32)
    counts[rng.random((rows, vocab)) < 0.2] |= PROMPT_BIT
    bias = np.where(rng.random((rows, vocab)) < 0.3, rng.standard_normal((rows, vocab)) * 2, 0).astype(np.float32)
    if not SETTINGS[d["settings"]].biased:
        bias[:] = 0
    state = make_rows([0] * rows, rng.integers(0, 500, rows), np.arange(rows))
    return {"logits": logits, "rows": state, "counts": counts, "bias": bias}


def _row_settings(d: Dims, row: int) -> Settings:
    s = SETTINGS[d["settings"]]
    return Settings(**{**vars(s), "seed": 7 + row})


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    rows, vocab = d["rows"], d["vocab"]
    settings = [_row_settings(d, r) for r in range(rows)]
    plain = settings[0].plain
    columns = sampler_columns(vocab)
    sampler = Sampler(
        scores=bench.out((rows, columns["scores"])),
        settings=bench.put(np.stack([s.pack() for s in settings]), "u32"),
        draws=bench.put(np.stack([s.draw(plain) for s in settings]), "u32"),
        cuts=bench.put(np.tile(np.array(NO_CUT, np.uint32), (rows, 1)), "u32"),
        best=bench.out((rows, columns["best"]), "u32"),
        result=bench.out((rows, columns["result"]), "u32"),
        likely=bench.out((rows, columns["likely"]), "u32"),
        counts=bench.put(a["counts"], "u32"),
        bias=bench.put(a["bias"]),
    )
    result = choose(bench.put(a["logits"]), bench.put(a["rows"], "u32"), sampler, plain)
    chosen = bench.out((rows, 2), "u32")
    chosen.write(result.numpy()[:, :2])
    return chosen


def reference(a: Arrays, d: Dims) -> Expected:
    """The token that is chosen in float64, and whether a logit is not finite. A row whose choice hangs on 1e-5 (of a
    margin, or of a threshold) is left out: its scale is unbounded."""
    value, scale = np.zeros((d["rows"], 2)), np.zeros((d["rows"], 2))
    for r in range(d["rows"]):
        s, position = _row_settings(d, r), int(a["rows"][r, 1]) + 1
        finite = np.isfinite(a["logits"][r]).all()
        logits = np.where(np.isnan(a["logits"][r]), np.float32(-1e30), a["logits"][r])
        scores = process_row(logits, s, a["counts"][r], a["bias"][r])
        token, margin = choose_row(scores, s, position)
        near = {choose_row(scores, s, position, slack)[0] for slack in (-1e-5, 1e-5)}
        value[r] = token, not finite
        if (margin < 1e-5 and margin > 0) or near != {token}:
            scale[r, 0] = np.inf
    return Expected(value, scale)


def _random(rng: np.random.Generator) -> Dims:
    sizes = {"rows": int(rng.integers(1, 9)), "vocab": int(rng.integers(1, 20000))}
    return sizes | {"settings": list(SETTINGS)[rng.integers(len(SETTINGS))]}


KERNEL = Kernel(
    "sample",
    _inputs,
    _run,
    reference,
    cases=(
        {"rows": 1, "vocab": 1, "settings": "greedy"},
        {"rows": 1, "vocab": 1, "settings": "all"},
        {"rows": 3, "vocab": 50257, "settings": "greedy"},
        {"rows": 2, "vocab": 128256, "settings": "temperature"},
        {"rows": 2, "vocab": 128256, "settings": "all"},
        {"rows": 2, "vocab": 300, "settings": "greedy", "nan": True},
        {"rows": 65540, "vocab": 3, "settings": "greedy"},
        *({"rows": 8, "vocab": 105, "settings": name} for name in SETTINGS),
    ),
    random=_random,
    tolerance=0.0,
)
