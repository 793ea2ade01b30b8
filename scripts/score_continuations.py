"""Log-probabilities of many continuations of one prompt, computed on the GPU: one number of each is read back.

python scripts/score_continuations.py --count 1000
"""

from __future__ import annotations

import argparse
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from llamagpu import LLM, kernels
from llamagpu.gpu import Readback
from llamagpu.kernels.cross_entropy import IGNORED

PROMPT = "Once upon a time, there was a"
NAMES = ("little", "big", "brave", "sad", "small", "happy", "clever", "old")
THINGS = ("dog", "girl", "boy", "cat", "bird", "tree", "bear", "fish", "frog", "boat")
ENDS = ("who liked to play", "named Tim", "who lived in a forest", "with a red ball", "who was very hungry")
IN_FLIGHT = 8  # numbers that are on their way to the host


def continuations(count: int, seed: int = 0) -> list[str]:
    """Beginnings of stories, which follow ``PROMPT``."""
    rng = random.Random(seed)
    return [f" {rng.choice(NAMES)} {rng.choice(THINGS)} {rng.choice(ENDS)}" for _ in range(count)]


def log_probabilities(llm: LLM, prompt: Sequence[int], added: Sequence[Sequence[int]]) -> Iterator[float]:
    """The log-probability of each continuation after a prompt, in order. Both are token ids, not empty.

    All run in one shape. Padding follows the tokens, so that it changes none of their logits, and counts for nothing.
    """
    device, longest = llm.device, len(prompt) + max(map(len, added))
    ids, targets = device.empty((1, longest), "u32"), device.empty((1, longest), "u32")
    logits, losses = device.empty((longest, llm.config.vocab_size)), device.empty((1, longest))
    minus_ones, total = device.tensor([[-1.0] * longest]), device.empty((1, 1))

    def score() -> None:
        kernels.cross_entropy(logits, targets, losses)
        kernels.linear(losses, minus_ones, None, total)

    plan = device.record(score)
    reading: deque[Readback] = deque()
    with llm.bind(input_ids=ids, logits=logits) as bound:
        for continuation in added:
            tokens = [*prompt, *continuation]
            padding = longest - len(tokens)
            ids.write([tokens + [0] * padding])
            unscored = [IGNORED] * (len(prompt) - 1)  # the logits of a position are those of the next token
            targets.write([[*unscored, *continuation, IGNORED, *[IGNORED] * padding]])
            bound.run()
            device.call(plan.run)
            reading.append(total.numpy_async())
            if len(reading) > IN_FLIGHT:
                yield float(reading.popleft().result()[0, 0])
        for number in reading:
            yield float(number.result()[0, 0])
    plan.free()


def main(arguments: Iterable[str] | None = None) -> None:
    """Score random continuations, and print the likeliest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("-m", "--model", help="as llamagpu's -m; the bundled model by default")
    options = parser.parse_args(None if arguments is None else list(arguments))
    with LLM(options.model) as llm:
        texts = continuations(options.count)
        prompt = llm.tokenize(PROMPT)
        added = [llm.tokenize(text, add_special_tokens=False) for text in texts]
        start = time.perf_counter()
        scores = list(log_probabilities(llm, prompt, added))
        seconds = time.perf_counter() - start
    best = sorted(dict(zip(texts, scores, strict=True)).items(), key=lambda item: -item[1])
    for text, score in best[:5]:
        print(f"{score:8.3f}  {PROMPT}{text}")
    print(f"{len(scores)} continuations in {seconds:.1f} s, 16 bytes of each read back")


if __name__ == "__main__":
    main()
