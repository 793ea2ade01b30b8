"""Choosing tokens on the GPU: penalties, bias, temperature, top-k, top-p, min-p, and a seeded draw by Gumbel noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llamagpu.gpu import Program, Recorder, Tensor
from llamagpu.kernels.arguments import owner, parts, require
from llamagpu.kernels.step import CUT_WORDS, DRAW_WORDS, LIKELY, LIKELY_WORDS, RESULT_WORDS, SETTING_WORDS, STOPS

_LEAST_CHUNK = 1024  # scores of the shortest chunk that a workgroup of sample reduces


@dataclass(frozen=True)
class Sampler:
    """The buffers of sampling, with a row for each row of a step or for each slot. Padding rows share the last slot."""

    scores: Tensor  # f32 [rows, vocab]
    settings: Tensor  # u32 [rows, 8]
    draws: Tensor  # u32 [rows, 16]
    cuts: Tensor  # u32 [rows, 4]
    best: Tensor  # u32 [rows, …]
    result: Tensor  # u32 [rows, 4] token, not finite, bits of its log-probability, ended
    likely: Tensor  # u32 [rows, 2 · LIKELY] the likeliest tokens: id, bits of log-probability
    masks: Tensor  # u32 [rows, ⌈vocab / 32⌉] the allowed tokens: bit t % 32 of word t // 32
    counts: Tensor  # u32 [slots, vocab]
    bias: Tensor  # f32 [slots, vocab]

    def head(self, rows: int) -> Sampler:
        """The first rows."""
        shared = {"counts": self.counts, "bias": self.bias}
        cut = {k: t.head(rows) for k, t in vars(self).items() if k not in shared}
        return Sampler(**cut, **shared)


def mask_words(vocab: int) -> int:
    """Words of a row of masks."""
    return -(-vocab // 32)


def sampler_columns(vocab: int) -> dict[str, int]:
    """Columns of the buffers that have a row for each row of a step."""
    chunks = -(-vocab // _LEAST_CHUNK)
    fixed = {
        "settings": SETTING_WORDS,
        "draws": DRAW_WORDS,
        "cuts": CUT_WORDS,
        "best": 4 * chunks,
        "result": RESULT_WORDS,
        "likely": LIKELY_WORDS,
        "masks": mask_words(vocab),
    }
    return {"scores": vocab} | fixed


def make_sampler(device: Recorder[Any], rows: int, slots: int, vocab: int) -> Sampler:
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


def logits_process(logits: Tensor, rows: Tensor, sampler: Sampler, masked: bool = False) -> Tensor:
    """Penalties, bias, temperature and masks: scores f32 [rows, vocab] from logits f32 [rows, vocab].

    Args:
        masked: whether tokens outside the rows' masks get a score below all others.
    """
    count, vocab = logits.shape
    s = sampler
    windows = parts(
        logits=logits, step_rows=rows, settings=s.settings, counts=s.counts, bias=s.bias, scores=s.scores
    ) | (parts(masks=s.masks) if masked else {})
    logits.device.dispatch(
        Program("logits_process", (("allow", "bits" if masked else "all"),)),
        count * -(-vocab // 256),
        {"rows": count, "vocab": vocab, "stride": logits.stride, "mask_words": s.masks.stride if masked else 0},
        windows,
    )
    return s.scores


def logits_select(logits: Tensor, sampler: Sampler) -> Tensor:
    """Top-k, top-p and min-p as a cut of each row's scores; log Σ e^logit and the likeliest tokens, by raw logits."""
    count, vocab = logits.shape
    params = {"rows": count, "vocab": vocab, "stride": logits.stride}
    s = sampler
    windows = parts(logits=logits, scores=s.scores, settings=s.settings, cuts=s.cuts, likely=s.likely)
    logits.device.dispatch(Program("logits_select", consts=(("LIKELY", LIKELY),)), count, params, windows)
    return s.cuts


def sample(logits: Tensor, scores: Tensor, rows: Tensor, sampler: Sampler) -> Tensor:
    """Choose a token for every row, write it to the row's state, advance the position, and count the token.

    The token is the arg max of the scores inside the row's cut. With a factor, it is the arg max of score · factor +
    Gumbel noise keyed by (seed, position, token), which is a draw from the softmax (Gumbel 1954; Maddison et al. 2014,
    arXiv:1411.0030). Ties keep the lower id.

    A row that ends (see ``Settings.draw``) becomes a padding row of the last slot, at position 0.

    Args:
        logits: f32 [rows, vocab], raw.
        scores: f32 [rows, vocab]: the logits, or ``logits_process`` of them.
        rows: u32 [rows, 4], the step's state, updated.
        sampler: draws and cuts are read; ``result`` gets the token, 1 if a score is NaN or infinite, and the bits of
            the token's log-probability.
    """
    device, (count, vocab) = owner("sample", logits=logits, scores=scores, rows=rows), logits.shape
    tuning = device.tuning
    chunks = -(-vocab // tuning.chunk)
    require(scores.shape == logits.shape, "sample: scores must have the shape of the logits")
    require(sampler.best.rows == count and sampler.best.columns >= 4 * chunks, "sample: best is too small")
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
    consts = ("CHUNK", tuning.chunk), ("STOPS", STOPS), ("WIDTH", tuning.pickers)
    device.dispatch(Program("sample", consts=consts, entry="partial"), count * chunks, params, windows)
    if chunks > 1:
        device.dispatch(Program("sample", consts=consts, entry="final_"), count, params, windows)
    return sampler.result


def choose(logits: Tensor, rows: Tensor, sampler: Sampler, plain: bool, masked: bool = False) -> Tensor:
    """The whole chain: two dispatches if the settings are plain, and one more with masks; otherwise four."""
    if plain and not masked:
        return sample(logits, logits, rows, sampler)
    scores = logits_process(logits, rows, sampler, masked)
    if not plain:
        logits_select(logits, sampler)
    return sample(logits, scores, rows, sampler)
