"""Random walks through grammars: a model whose logits are random, and which likes to end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llamagpu.text import TextStream, Tokenizer
from llamagpu.text.guide import Guide

Mask = npt.NDArray[np.uint32]


@dataclass
class Walk:
    """The ids of a text, the text that they add to the prompt, and whether its grammar ended it."""

    ids: list[int]
    text: str
    ended: bool


def allowed(mask: Mask) -> npt.NDArray[np.intp]:
    """The ids in a mask."""
    return np.nonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))[0]


def empty_masks(rows: int, vocab_size: int) -> Mask:
    """Masks to be filled."""
    return np.zeros((rows, -(-vocab_size // 32)), np.uint32)


def liked(tokenizer: Tokenizer) -> npt.NDArray[np.float64]:
    """A bias towards tokens that end parts of JSON."""
    size = max(tokenizer.vocab.values()) + 1
    return np.array([8.0 * tokenizer.token_bytes(i).startswith((b'"', b"}", b"]")) for i in range(size)])


def walk(
    guide: Guide,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    *,
    vocab_size: int,
    most: int = 200,
    prompt: tuple[int, ...] = (),
    guesses: int = 3,
    bias: npt.NDArray[np.float64] | None = None,
) -> Walk:
    """A text of random tokens that a guide allows, with forced tokens as guesses, as an engine has it."""
    stream, ids, text = TextStream(tokenizer, prompt), [], ""
    stops = guide.outline.stop_ids
    while len(ids) < most and not guide.ended:
        ahead = guide.forced(guesses)
        masks = empty_masks(1 + len(ahead), vocab_size)
        assert guide.masks(masks, ahead) == len(ahead)
        for i, mask in enumerate(masks):
            ids_now = allowed(mask)
            assert len(ids_now)
            assert i == len(ahead) or list(ids_now) == [ahead[i]]
            ends = [t for t in ids_now if t in stops]
            logits = rng.gumbel(size=len(ids_now)) + (0 if bias is None else 4 * bias[ids_now.clip(max=len(bias) - 1)])
            token = int(ends[0] if ends else ids_now[logits.argmax()])
            guide.take(token)
            if guide.ended and token in stops:
                break
            ids.append(token)
            text += stream.push(token)
            if guide.ended:
                break
    return Walk(ids, text + stream.flush(), guide.ended)
