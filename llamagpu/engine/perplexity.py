"""Perplexity of a model on a text, and how far another model's predictions are from it.

Errors (±) and comparisons are those of llama.cpp's perplexity tool (tools/perplexity/perplexity.cpp, options
``--perplexity`` and ``--kl-divergence``). They take tokens as independent, so they are a little too small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llamagpu.engine.llm import LLM
from llamagpu.engine.scoring import log_probabilities, logit_blocks
from llamagpu.errors import UsageError
from llamagpu.model import Prepared
from llamagpu.text import Tokenizer

WINDOW = 512
Floats = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Perplexity:
    """``perplexity`` is e^``nats_per_token``, the mean negative log-likelihood of ``tokens`` predicted tokens.

    ``error`` is the perplexity times the standard error of that mean (None for a single token). ``window`` and
    ``stride`` are those that were used.
    """

    perplexity: float
    error: float | None
    nats_per_token: float
    tokens: int
    window: int
    stride: int


@dataclass(frozen=True)
class Comparison:
    """A model beside the one it is compared with (``base``), on the same text. Errors are None for a single token.

    Attributes:
        perplexity_ratio: perplexity over the base's; its error comes from the differences token by token.
        mean_kl: Kullback-Leibler divergence of the base's distribution from the model's, Σ p_base · ln(p_base / p), in
            nats: the mean over all predictions. ``kl_99``, ``kl_999`` and ``max_kl`` are its percentiles and maximum.
        same_top: share of predictions whose most likely token is the same.
        rms_change: root mean square of the difference in the right token's probability.
    """

    model: Perplexity
    base: Perplexity
    perplexity_ratio: float
    perplexity_ratio_error: float | None
    mean_kl: float
    mean_kl_error: float | None
    kl_99: float
    kl_999: float
    max_kl: float
    same_top: float
    same_top_error: float | None
    rms_change: float
    rms_change_error: float | None


def perplexity(
    llm: LLM,
    ids: Sequence[int],
    *,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity over a text in overlapping windows (the sliding window of transformers' guide).

    Every token but the first is predicted once: in the first window all of them, in a later one those that no window
    has had, which have at least ``window - stride`` tokens before them. A window begins with the text's own tokens:
    BOS is there only if ``ids`` begin with it. (llama.cpp puts BOS into the first position of every chunk.)

    Args:
        ids: the text's tokens, at least 2.
        window: tokens that the model sees at a time, up to its context and the text's length. The default is 512, or
            the context; then the text may be shorter.
        stride: tokens from a window's start to the next; half a window by default.
        progress: called with (tokens done, tokens in total).

    Raises:
        UsageError: the window exceeds the context or the text, the stride the window, or there is nothing to predict.
        NotFinite: the model computed NaN or infinity.
    """
    found = [np.empty(0)]
    sizes = _checked(ids, llm.context, window, stride)
    for part, first in _windows(ids, sizes, progress):
        targets = iter(part[first:])
        for block in logit_blocks(llm, part[:-1], first - 1):
            right = [next(targets) for _ in block]
            found.append(-log_probabilities(block, len(part))[np.arange(len(block)), right])
    return _perplexity(np.concatenate(found), sizes)


def compare(
    llm: LLM,
    base: LLM,
    ids: Sequence[int],
    *,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare a model's predictions with those of ``base``, which has the same vocabulary, window by window.

    The host holds the logits of some rows of both models at a time, never those of a window. The arguments and errors
    are those of ``perplexity``.

    Raises:
        UsageError: the vocabularies differ, or see ``perplexity``.
    """
    check_same_vocabulary(llm._prepared, base._prepared)
    found = [np.empty((4, 0))]
    sizes = _checked(ids, min(llm.context, base.context), window, stride)
    for part, first in _windows(ids, sizes, progress):
        targets = iter(part[first:])
        both = (logit_blocks(m, part[:-1], first - 1) for m in (llm, base))
        for ours, theirs in zip(*both, strict=True):
            right = [next(targets) for _ in ours]
            found.append(_compared(log_probabilities(ours, len(part)), log_probabilities(theirs, len(part)), right))
    return _comparison(np.concatenate(found, axis=1), sizes)


def check_same_vocabulary(one: Prepared, other: Prepared) -> None:
    """Raises UsageError unless two models have logits of one width and the same tokens. An id that only one tokenizer
    names, such as an unused one, is no difference."""
    names, sizes = f"{one.name} and {other.name}", (one.config.vocab_size, other.config.vocab_size)
    what, hint = f"{names} have different vocabularies.", "Compare versions of one model, or models of one family."
    if sizes[0] != sizes[1]:
        raise UsageError(what, f"They have {sizes[0]:,} and {sizes[1]:,} tokens.", hint)
    if one.source is other.source or one.source.tokenizer_file() == other.source.tokenizer_file():
        return
    ours, theirs = (_tokens(p) for p in (one, other))
    differ = [i for i in sorted(ours.keys() & theirs.keys()) if ours[i] != theirs[i]]
    if differ:
        i = differ[0]
        raise UsageError(what, f"{len(differ):,} ids differ; {i} is {ours[i]!r} and {theirs[i]!r}.", hint)


def _tokens(prepared: Prepared) -> dict[int, str]:
    """Tokens by id."""
    source = prepared.source
    tokenizer = Tokenizer(source.tokenizer_file(), source.tokenizer_config(), prepared.config.vocab_size)
    return {id: token for token, id in tokenizer.vocab.items()}


def _checked(ids: Sequence[int], context: int, window: int | None, stride: int | None) -> tuple[int, int]:
    """Window and stride."""
    if len(ids) < 2:
        text = "The text is empty." if not ids else "The text has fewer than two tokens."
        raise UsageError(text, "There is nothing to predict.", "Give a longer text.")
    given, window = window, min(WINDOW, context) if window is None else window
    if not 2 <= window <= context:
        raise UsageError(f"A window of {window} tokens is not possible.", f"It must be from 2 to {context}.")
    if given is not None and window > len(ids):
        raise UsageError(
            f"A window of {window} tokens is longer than the text.",
            f"The text has {len(ids)} tokens.",
            "Give a longer text or a smaller window. Without the option, a short text is one window.",
        )
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window:
        raise UsageError(f"A stride of {stride} is not possible.", f"It must be from 1 to {window}, the window.")
    return window, stride


def _windows(ids: Sequence[int], sizes: tuple[int, int], progress: Progress | None) -> Iterator[tuple[list[int], int]]:
    """Every window's tokens, and the index of the first that no window has predicted."""
    window, stride = sizes
    done = 1
    for begin in range(0, len(ids), stride):
        part = list(ids[begin : begin + window])
        end = begin + len(part)
        if end > done:
            yield part, done - begin
            done = end
        if progress is not None:
            progress(done, len(ids))
        if done >= len(ids):
            return


def _compared(ours: Floats, theirs: Floats, right: list[int]) -> Floats:
    """For every row of two arrays of log-probabilities [rows, vocab_size]: both negative log-likelihoods of the right
    token, the KL divergence, and whether the most likely token is the same. float64 [4, rows]."""
    rows = np.arange(len(right))
    # Rounding can make it negative by 1e-16.
    kl = np.maximum((np.exp(theirs) * (theirs - ours)).sum(axis=1), 0)
    return np.stack([-ours[rows, right], -theirs[rows, right], kl, ours.argmax(axis=1) == theirs.argmax(axis=1)])


def _mean(values: Floats) -> tuple[float, float | None]:
    """The mean, and its standard error √((E[x²] - E[x]²) / (n - 1)); None for a single value."""
    n = len(values)
    return float(values.mean()), float(np.sqrt(values.var() / (n - 1))) if n > 1 else None


def _times(factor: float, error: float | None) -> float | None:
    return None if error is None else factor * error


def _perplexity(surprise: Floats, sizes: tuple[int, int]) -> Perplexity:
    nats, error = _mean(surprise)
    value = float(np.exp(nats))
    return Perplexity(value, _times(value, error), nats, len(surprise), *sizes)  # d(e^x) = e^x dx


def _comparison(found: Floats, sizes: tuple[int, int]) -> Comparison:
    ours, theirs, kl, same = found  # see _compared
    log_ratio, log_ratio_error = _mean(ours - theirs)
    ratio = float(np.exp(log_ratio))
    mean_kl, mean_kl_error = _mean(kl)
    kl_99, kl_999 = (float(v) for v in np.percentile(kl, (99, 99.9)))
    square, square_error = _mean((np.exp(-ours) - np.exp(-theirs)) ** 2)
    rms = float(np.sqrt(square))
    same_top, same_top_error = _mean(same)  # the formula gives √(p (1 - p) / (n - 1)) here
    return Comparison(
        model=_perplexity(ours, sizes),
        base=_perplexity(theirs, sizes),
        perplexity_ratio=ratio,
        perplexity_ratio_error=_times(ratio, log_ratio_error),
        mean_kl=mean_kl,
        mean_kl_error=mean_kl_error,
        kl_99=kl_99,
        kl_999=kl_999,
        max_kl=float(kl.max()),
        same_top=same_top,
        same_top_error=same_top_error,
        rms_change=rms,
        rms_change_error=_times(0.5 / rms if rms else 0.0, square_error),  # d√x = dx / (2 √x)
    )
