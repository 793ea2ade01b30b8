"""Choosing tokens on the GPU: penalties, bias, temperature, top-k, top-p, min-p, and a seeded draw by Gumbel noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Device, Program, Tensor
from llamagpu.kernels.base import parts, require

CHUNK = 1024
MOST_LOGPROBS = 20
PROMPT_BIT = np.uint32(1 << 31)  # of a token's count: it is in the prompt
NO_CUT = (0, 0xFFFFFFFF, 0, 0)
MOST_STOPS = 12  # stop ids that a row is checked for on the GPU
_DRAW_WORDS = 4 + MOST_STOPS


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

    def draw(self, plain: bool, last: int = 0xFFFFFFFF, stops: Sequence[int] = ()) -> npt.NDArray[np.uint32]:
        """u32 [16]: the seed, the bits of what ``sample`` multiplies scores with (0: no noise), and what ends the row.

        Args:
            last: the position whose token is the last one.
            stops: ids after which nothing follows; those beyond ``MOST_STOPS`` are left to the host.
        """
        factor = 0.0 if not self.temperature else (1 / self.temperature if plain else 1.0)
        out = np.zeros(_DRAW_WORDS, np.uint32)
        ids = list(stops)[:MOST_STOPS]
        out[:4] = self.seed, np.float32(factor).view(np.uint32), last, len(ids)
        out[4 : 4 + len(ids)] = ids
        return out


@dataclass(frozen=True)
class Sampler:
    """The buffers of sampling. Rows are those of a step; slots those of sequences, and one more for padding rows."""

    scores: Tensor  # f32 [rows, vocab]
    settings: Tensor  # u32 [rows, 8]
    draws: Tensor  # u32 [rows, 16]
    cuts: Tensor  # u32 [rows, 4]
    best: Tensor  # u32 [rows, …]
    result: Tensor  # u32 [rows, 4] token, not finite, bits of its log-probability, ended
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
    fixed = {
        "settings": 8,
        "draws": _DRAW_WORDS,
        "cuts": 4,
        "best": 4 * chunks,
        "result": 4,
        "likely": 2 * MOST_LOGPROBS,
    }
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

    A row that ends (see ``Settings.draw``) becomes a padding row of the last slot, at position 0.

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
    params["idle"] = sampler.counts.rows - 1
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
