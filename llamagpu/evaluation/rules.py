"""The rules of the harness's requests, as its model for transformers has them (lm_eval/models/huggingface.py):
special tokens, truncation and generation arguments. Nothing here needs the harness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import UsageError, shown

MAX_TOKENS = 256  # new tokens if a request does not say
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given counts
_FILTERS = ("top_k", "top_p", "min_p")
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


# --- tokens --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoder:
    """Text to token ids.

    Attributes:
        tokenize: (text, special tokens or not) -> ids, with special tokens as the tokenizer adds them.
        bos: the id of BOS, if the model has one.
        prefix: the text of the token that stands before everything; text that begins with it gets no special tokens.
        add_bos: whether ids begin with BOS; None leaves that to the tokenizer.
    """

    tokenize: Callable[[str, bool], list[int]]
    bos: int | None
    prefix: str
    add_bos: bool | None = None

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """Ids of a text; ``special`` overrides the rules."""
        if special is None:
            starts = bool(self.prefix) and text.startswith(self.prefix)
            special = False if starts else self.add_bos is not False
        ids = self.tokenize(text, special)
        if special and self.add_bos and self.bos is not None and ids[:1] != [self.bos]:
            ids = [self.bos, *ids]
        return ids


@dataclass
class Pass:
    """One run of the model, and what it scores: (number of the request, its continuation's tokens).

    ``ids`` are a context and a continuation without its last token, so requests whose continuations differ in that
    token alone share a run.
    """

    ids: tuple[int, ...]
    continuations: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    @property
    def longest(self) -> int:
        """Tokens of the longest continuation."""
        return max(len(tokens) for _, tokens in self.continuations)


def plan_passes(pairs: Iterable[tuple[Sequence[int], Sequence[int]]], most: int) -> tuple[list[Pass], int]:
    """The runs for (context, continuation) pairs of ids, and the number of pairs cut from the left to ``most`` + 1.

    Their order puts equal beginnings side by side, for the cache.

    Raises:
        UsageError: a continuation is longer than ``most``, or a pair has no context or no continuation.
    """
    found: dict[tuple[int, ...], Pass] = {}
    cut = 0
    for number, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise UsageError("A request has no tokens in its context or continuation.", "There is nothing to score.")
        if len(continuation) > most:
            raise UsageError(
                f"A continuation has {len(continuation)} tokens; the context holds {most}.",
                "A continuation is never cut.",
                "Give a larger max_length, if the model has one.",
            )
        cut += len(context) + len(continuation) > most + 1
        ids = (*context, *continuation)[-(most + 1) : -1]
        found.setdefault(ids, Pass(ids)).continuations.append((number, tuple(continuation)))
    return [found[ids] for ids in sorted(found)], cut


def sum_scores(
    blocks: Iterable[npt.NDArray[np.float64]], continuations: Sequence[Sequence[int]]
) -> list[tuple[float, bool]]:
    """For every continuation, the sum of its tokens' log-probabilities, and whether each is the likeliest token.

    Args:
        blocks: log-probabilities [rows, vocab_size] of the last positions, as many as the longest continuation has
            tokens. A continuation of n tokens is predicted by the last n.
    """
    sums, greedy = [0.0] * len(continuations), [True] * len(continuations)
    at = -max(map(len, continuations))  # the block's first row, counted from the end
    for block in blocks:
        best = block.argmax(axis=1)
        for i, tokens in enumerate(continuations):
            rows = np.arange(max(0, -len(tokens) - at), len(block))
            right = np.array(tokens, np.int64)[rows + at + len(tokens)]
            sums[i] += float(block[rows, right].sum())
            greedy[i] = greedy[i] and bool((best[rows] == right).all())
        at += len(block)
    return list(zip(sums, greedy, strict=True))


# --- generation ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Generation:
    """Stop strings, the most new tokens, and the options of ``LLM.generate`` for a request."""

    until: tuple[str, ...]
    max_tokens: int
    options: Mapping[str, Any]

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        return bool(self.options["temperature"])


def generation(arguments: Mapping[str, Any], default: int = MAX_TOKENS) -> Generation:
    """A task's ``generation_kwargs``. Without ``do_sample``, a temperature above 0 samples; with it, 1 is the default.

    Raises:
        UsageError: an argument is unknown.
    """
    given = {k: v for k, v in arguments.items() if v is not None}
    until = given.pop("until", [])
    limits = [v for v in [given.pop(name, None) for name in _LIMITS] if v is not None]
    samples, temperature = given.pop("do_sample", None), given.pop("temperature", None)
    if samples is None:
        samples = bool(temperature)
    temperature = 1.0 if temperature is None else float(temperature)
    if given.pop("num_beams", 1) != 1:
        raise UsageError("num_beams is not 1.", "Beam search is not implemented.")
    unknown = sorted(given.keys() - {*_FILTERS, *_PENALTIES})
    if unknown:
        known = ", ".join(("until", _LIMITS[0], "do_sample", "temperature", *_FILTERS, *_PENALTIES))
        raise UsageError(
            f"{shown(unknown[0])} is not a generation argument of llamagpu.", f"It takes {known}.", "Check the task."
        )
    options = {k: v for k, v in given.items() if samples or k in _PENALTIES}
    return Generation(
        tuple(s for s in ([until] if isinstance(until, str) else until) if s),
        int(limits[0]) if limits else default,
        options | {"temperature": temperature if samples else 0.0},
    )


def cut_at(text: str, stops: Iterable[str]) -> str:
    """The text before the first stop string."""
    for stop in stops:
        text = text.split(stop)[0]
    return text
