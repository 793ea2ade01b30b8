"""The words that host and kernels exchange in a step: state of its rows, draws, settings, cuts, and results.

Only this module and the shaders know these layouts. The shaders name the fields in the comments of their bindings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
ROW_WORDS = 4  # token, position, slot, place in the cache
PROMPT_BIT = np.uint32(1 << 31)  # set in a token's count if the prompt holds the token
LIKELY = 20  # most likeliest tokens of a row
STOPS = 12  # stop ids that a row is checked for on the GPU; a multiple of four
NO_END = 0xFFFFFFFF
_NO_CUT = (0, 0xFFFFFFFF, 0, 0)
DRAW_WORDS, SETTING_WORDS, CUT_WORDS, RESULT_WORDS, LIKELY_WORDS = 4 + STOPS, 8, len(_NO_CUT), 4, 2 * LIKELY


def step_rows(tokens: npt.ArrayLike, positions: npt.ArrayLike, slots: npt.ArrayLike | int = 0) -> Words:
    """The state of a step's rows: uint32 [rows, 4] of (token, position, slot, place). ``begin_step`` fills the
    place."""
    tokens = np.atleast_1d(np.asarray(tokens, np.uint32))
    out = np.zeros((len(tokens), ROW_WORDS), np.uint32)
    out[:, 0], out[:, 1], out[:, 2] = tokens, positions, slots
    return out


def no_cuts(rows: int) -> Words:
    """Cuts that keep every token: uint32 [rows, 4]."""
    return np.tile(np.array(_NO_CUT, np.uint32), (rows, 1))


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
        floats = np.array(
            [
                1 / self.temperature if drawn else 1.0,
                self.repetition_penalty,
                self.presence_penalty,
                self.frequency_penalty,
                0,
                self.top_p if drawn else 1.0,
                self.min_p if drawn else 0.0,
                0,
            ],
            np.float32,
        ).view(np.uint32)
        floats[4], floats[7] = (self.top_k if drawn else 0), self.logprobs
        return floats

    def draw(self, plain: bool, last: int = NO_END, stops: Sequence[int] = ()) -> Words:
        """uint32 [16]: the seed, the bits of the factor of the scores (0: no noise), the last position, the stop ids.

        Args:
            plain: whether ``sample`` reads the raw logits, which were not divided by the temperature.
            last: the position of the row's last token.
            stops: ids that end the row; the host checks those beyond ``STOPS``.
        """
        factor = 0.0 if not self.temperature else (1 / self.temperature if plain else 1.0)
        out = np.zeros(DRAW_WORDS, np.uint32)
        ids = list(stops)[:STOPS]
        out[:4] = self.seed, np.float32(factor).view(np.uint32), last, len(ids)
        out[4 : 4 + len(ids)] = ids
        return out


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
    words, count = np.frombuffer(raw, np.uint32), len(wanted)
    results = words[: RESULT_WORDS * count].reshape(count, RESULT_WORDS)
    likely = words[RESULT_WORDS * count :].reshape(-1, LIKELY, 2)
    out = []
    for row, n in enumerate(wanted):
        ids, logprobs = (likely[row, :n, 0], likely[row, :n, 1].view(np.float32)) if n else ((), ())
        pairs = tuple((int(i), float(p)) for i, p in zip(ids, logprobs, strict=True))
        out.append(
            Sampled(int(results[row, 0]), not results[row, 1], float(results[row, 2:3].view(np.float32)[0]), pairs)
        )
    return out
