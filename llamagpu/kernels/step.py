"""The words that host and kernels exchange in a step: state of its rows, draws, settings, cuts, and results.

The layouts are stated here, as numpy dtypes of 32-bit fields. The shaders name the fields in the comments of their
bindings, and exported plans carry the layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
PROMPT_BIT = np.uint32(1 << 31)  # set in a token's count if the prompt holds the token
LIKELY = 20  # most likeliest tokens of a row
STOPS = 12  # stop ids that a row is checked for on the GPU; a multiple of four
NO_END = 0xFFFFFFFF
NO_CUT = (0, 0xFFFFFFFF, 0, 0)
_U32, _F32 = "<u4", "<f4"
ROW = np.dtype([("token", _U32), ("position", _U32), ("slot", _U32), ("place", _U32)])
DRAW = np.dtype([("seed", _U32), ("factor", _F32), ("last", _U32), ("stops", _U32), ("stop_ids", _U32, (STOPS,))])
SETTING = np.dtype(
    [
        ("inverse_temperature", _F32),
        ("repetition", _F32),
        ("presence", _F32),
        ("frequency", _F32),
        ("top_k", _U32),
        ("top_p", _F32),
        ("min_p", _F32),
        ("logprobs", _U32),
    ]
)
RESULT = np.dtype([("token", _U32), ("not_finite", _U32), ("logprob", _F32), ("ended", _U32)])
ROW_WORDS, DRAW_WORDS, SETTING_WORDS, RESULT_WORDS = (d.itemsize // 4 for d in (ROW, DRAW, SETTING, RESULT))
CUT_WORDS, LIKELY_WORDS = len(NO_CUT), 2 * LIKELY


def step_rows(tokens: npt.ArrayLike, positions: npt.ArrayLike, slots: npt.ArrayLike | int = 0) -> Words:
    """The state of a step's rows: uint32 [rows, 4] of (token, position, slot, place). ``begin_step`` fills the
    place."""
    tokens = np.atleast_1d(np.asarray(tokens, np.uint32))
    out = np.zeros(len(tokens), ROW)
    out["token"], out["position"], out["slot"] = tokens, positions, slots
    return _words(out)


def no_cuts(rows: int) -> Words:
    """Cuts that keep every token: uint32 [rows, 4]."""
    return np.tile(np.array(NO_CUT, np.uint32), (rows, 1))


def _words(values: npt.NDArray[np.void]) -> Words:
    """uint32 [rows, words] of structured values [rows]."""
    words: Words = values.view(np.uint32).reshape(len(values), values.dtype.itemsize // 4)
    return words


@dataclass(frozen=True)
class Settings:
    """How the token of one row is chosen; the defaults take the arg max of the logits."""

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
        """Whether ``sample`` suffices; otherwise ``logits_process`` and ``logits_select`` come first."""
        filters = self.temperature and (self.top_k or self.top_p < 1 or self.min_p)
        return not (self.counted or filters or self.biased or self.logprobs)

    @property
    def counted(self) -> bool:
        """Whether the tokens of prompt and output must be counted."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)

    def pack(self) -> Words:
        """uint32 [8], ``lib/settings.wgsl``."""
        drawn = bool(self.temperature)  # filters cannot change an arg max
        out = np.zeros(1, SETTING)
        out["inverse_temperature"] = 1 / self.temperature if drawn else 1.0
        out["repetition"], out["presence"] = self.repetition_penalty, self.presence_penalty
        out["frequency"], out["logprobs"] = self.frequency_penalty, self.logprobs
        out["top_k"] = self.top_k if drawn else 0
        out["top_p"], out["min_p"] = (self.top_p, self.min_p) if drawn else (1.0, 0.0)
        words: Words = _words(out)[0]
        return words

    def draw(self, plain: bool, last: int = NO_END, stops: Sequence[int] = ()) -> Words:
        """uint32 [16]: the seed, the bits of the factor of the scores (0: no noise), the last position, the stop ids.

        Args:
            plain: whether ``sample`` reads the raw logits, which were not divided by the temperature.
            last: the position of the row's last token.
            stops: ids that end the row; the host checks those beyond ``STOPS``.
        """
        ids = list(stops)[:STOPS]
        out = np.zeros(1, DRAW)
        out["factor"] = 0.0 if not self.temperature else (1 / self.temperature if plain else 1.0)
        out["seed"], out["last"], out["stops"] = self.seed, last, len(ids)
        out["stop_ids"][0, : len(ids)] = ids
        words: Words = _words(out)[0]
        return words


@dataclass(frozen=True)
class Sampled:
    """The sampled token of a row. If ``finite`` is False, its logits held NaN or infinity and the token has no meaning.
    ``logprob`` and ``likely`` (id, log-probability) follow the raw logits, and are valid if they were requested."""

    id: int
    finite: bool
    logprob: float
    likely: tuple[tuple[int, float], ...]


def read_sampled(raw: bytes, wanted: Sequence[int]) -> list[Sampled]:
    """The results of ``sample`` from the bytes of staging memory: tokens of all rows, then the likeliest tokens of all
    rows if any row requested some.

    Args:
        wanted: the number of likeliest tokens that each row requested.
    """
    count = len(wanted)
    results = np.frombuffer(raw, RESULT, count)
    likely = np.frombuffer(raw, np.uint32, offset=results.nbytes).reshape(-1, LIKELY, 2)
    out = []
    for row, n in enumerate(wanted):
        ids, logprobs = (likely[row, :n, 0], likely[row, :n, 1].view(np.float32)) if n else ((), ())
        pairs = tuple((int(i), float(p)) for i, p in zip(ids, logprobs, strict=True))
        result = results[row]
        out.append(Sampled(int(result["token"]), not result["not_finite"], float(result["logprob"]), pairs))
    return out
