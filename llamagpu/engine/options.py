"""The keyword arguments of generation, for type checkers; ``sampling_params`` describes and checks them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of ``LLM.generate`` and ``LLM.stream``.

    They work in this order: penalties, bias, temperature, top-k, top-p, min-p, the draw.

    max_tokens: at most so many new tokens, at least 1.
    temperature: 0 is greedy; otherwise logits are divided by it before the draw, up to 100.
    top_k: draw from the k likeliest tokens; 0 is all.
    top_p: draw from the likeliest tokens whose probabilities reach p, above 0 up to 1.
    min_p: draw from the tokens with at least this share of the likeliest one's probability, from 0 to below 1.
    repetition_penalty: divides positive logits of tokens in prompt and text, and multiplies negative ones; above 0
        up to 10.
    presence_penalty: taken from the logits of tokens in the text, -100 to 100.
    frequency_penalty: taken from them as often as they occur in it, -100 to 100.
    logit_bias: added to the logits of these token ids, -10000 to 10000.
    seed: 0 to 2³² - 1; the same seed, prompt, device and tuning give the same text. None draws one.
    stop: a string or strings that end the text; they are not part of it.
    stop_token_ids: ids that end the text besides the model's own.
    ignore_eos: go on when the model ends its text.
    logprobs: return the log-probability (of the raw logits) of every token and of so many likeliest ones, 1 to 20.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Iterable[int] | None
    ignore_eos: bool
    logprobs: int | None
