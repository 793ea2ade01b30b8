"""This project in Python, beside its export in Dawn: a runner with the tests of browser_dawn.mjs.

python browser_python.py JOB     JSON: model, dtype, context, short, long, decode
"""

from __future__ import annotations

import json
import sys
import time
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from llamagpu import LLM, gpu
from llamagpu.version import __version__

LEAST_SECONDS = 1.0  # a test is repeated for so long, as in browser_measure.mjs
FIRST = 300  # ids from here on are ordinary tokens


def main() -> None:
    """Load the model and serve the tests."""
    job = json.loads(sys.argv[1])
    short, long, decode = job["short"]["ids"], job["long"]["ids"], job["decode"]
    with LLM(job["model"], dtype=job["dtype"], context=job["context"]) as llm:
        firsts = cycle(range(FIRST, llm.config.vocab_size))

        def generate(ids: list[int], tokens: int) -> tuple[float, list[int]]:
            start = time.perf_counter()
            found = llm.generate(ids, max_tokens=tokens, temperature=0, ignore_eos=True)
            return time.perf_counter() - start, found.token_ids

        def decode_speed() -> float:
            first, every, tokens = 0.0, 0.0, 0
            while every < LEAST_SECONDS:
                first += generate(short, 1)[0]
                every += generate(short, decode)[0]
                tokens += decode - 1
            return tokens / (every - first)

        def prompt_speed() -> float:
            every, tokens = 0.0, 0
            while every < LEAST_SECONDS:  # with another first token each time, so that no cached prefix is found
                every += generate([next(firsts), *long[1:]], 1)[0]
                tokens += len(long)
            return tokens / every

        tests = {"decode": decode_speed, "prompt": prompt_speed}
        tokens = generate(short, decode)[1]
        prompt_speed()  # warms up
        device = f"{llm.device.adapter}, {llm.device.adapter.driver}"
        version = f"llamagpu {__version__}, {gpu.version()}"
        print(json.dumps({"device": device, "version": version, "tokens": list(tokens)}), flush=True)
        for line in sys.stdin:
            print(json.dumps({"tokens_per_s": tests[line.strip()]()}), flush=True)


if __name__ == "__main__":
    main()
