"""Runs of bound tensors: what they call, move and wait for, counted at the native library, and their times.

python scripts/bench_bound.py --runs 1000 --tokens 32
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable

from llamagpu import LLM
from llamagpu.gpu.census import Census, census


def table(counts: Census, runs: int) -> list[tuple[str, float]]:
    """What a run took, on average, by name."""
    made = counts.objects
    return [
        ("dispatches", counts.dispatches / runs),
        ("submissions", counts.calls["wgpuQueueSubmit"] / runs),
        ("encoders", made.get("wgpuDeviceCreateCommandEncoder", 0) / runs),
        ("passes", made.get("wgpuCommandEncoderBeginComputePass", 0) / runs),
        ("copies on the GPU", counts.calls["wgpuCommandEncoderCopyBufferToBuffer"] / runs),
        ("buffers, bind groups and pipelines made", sum(n for k, n in made.items() if _kept(k)) / runs),
        ("waits", counts.calls["wgpuBufferMapAsync"] / runs),
        ("bytes up", counts.bytes["up"] / runs),
        ("bytes down", counts.bytes["down"] / runs),
    ]


def _kept(call: str) -> bool:
    return call.startswith("wgpuDeviceCreate") and not call.endswith("CommandEncoder")


def times(run: Callable[[], object], runs: int) -> list[float]:
    """Seconds of each run."""
    out = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        out.append(time.perf_counter() - start)
    return out


def main(arguments: Iterable[str] | None = None) -> None:
    """Count and time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("-m", "--model", help="as llamagpu's -m; the bundled model by default")
    options = parser.parse_args(None if arguments is None else list(arguments))
    with LLM(options.model) as llm:
        device, shape = llm.device, (options.tokens, llm.config.vocab_size)
        ids, logits = device.tensor(range(options.tokens), "u32"), device.empty(shape)
        with census() as first:
            llm.bind(input_ids=ids, logits=logits).close()
        with census() as again:
            bound = llm.bind(input_ids=ids, logits=logits)
        for _ in range(20):
            bound.run()
        with census() as counts:
            for _ in range(options.runs):
                bound.run()
        device.synchronize()
        for name, n in table(counts, options.runs):
            print(f"{name:40} {n:10g} per run")
        for name, found in (("the first binding", first), ("a further binding", again)):
            made = {k.removeprefix("wgpuDeviceCreate"): n for k, n in found.objects.items() if _kept(k)}
            print(f"{name}: {found.bytes['up']} bytes up, {found.bytes['down']} down, made {made}")
        print(f"on {device.adapter}, {options.tokens} tokens of {llm.name}:")

        def finished() -> None:
            bound.run()
            device.synchronize()

        for name, call in (("run()", bound.run), ("run() and synchronize()", finished)):
            taken = times(call, options.runs)
            device.synchronize()
            middle, worst = statistics.median(taken), max(taken)
            print(f"{name:24} median {1e3 * middle:.3f} ms, slowest {1e3 * worst:.3f} ms, {worst / middle:.2f} x")
        begin, end = device.event(), device.event()
        begin.record()
        for _ in range(options.runs):
            bound.run()
        end.record()
        print(f"by the GPU's clock       mean   {begin.elapsed_time(end) / options.runs:.3f} ms")


if __name__ == "__main__":
    main()
