"""Profiles of a step: its kernels by their share of the time, and a trace for Chrome's viewer or Perfetto."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from llamagpu.bench.measure import Subject, check_fits
from llamagpu.bench.parts import attention_macs, held_pages, kv_read_bytes
from llamagpu.bench.yardsticks import Yardsticks
from llamagpu.errors import UsageError
from llamagpu.gpu import Plan, Program
from llamagpu.gpu.encode import Dispatch
from llamagpu.gpu.timeline import Timeline, profile
from llamagpu.gpu.timing import time_plans
from llamagpu.model.forward import BATCHES, bucket
from llamagpu.model.step import Row


@dataclass(frozen=True)
class Line:
    """A row of the table: one kernel, with figures per run."""

    kernel: str
    calls: int
    seconds: float
    share: float
    read_bytes: float
    macs: float


@dataclass(frozen=True)
class Profile:
    """A profiled step. ``what`` describes it; ``runs`` is the number of runs."""

    what: str
    runs: int
    timeline: Timeline
    lines: list[Line]

    @property
    def gpu_seconds(self) -> float:
        """Seconds of all kernels of one run."""
        return sum(line.seconds for line in self.lines)


@contextmanager
def _step(subject: Subject, depth: int, batch: int) -> Iterator[tuple[Plan, Callable[[], object]]]:
    """The plan of a decode step of ``batch`` sequences with ``depth`` positions each, and a function that sets their
    state. The contents of their caches are arbitrary."""
    check_fits(subject, depth + 1, batch)
    model, rows = subject.model, bucket(batch, BATCHES)
    with held_pages(model, [depth + 1] * batch) as slots:
        state = [Row(1, depth, slot) for slot in slots]
        before = partial(subject.device.call, lambda: model.forward.state.write_rows(state, rows))
        yield subject.device.call(lambda: model.forward.decode(rows, depth + 1, True)), before


def step_seconds(subject: Subject, depth: int, batch: int, repeat: int = 5) -> float:
    """Seconds of a decode step of ``batch`` sequences of ``depth`` positions each, by the GPU's clock if it has one."""
    with _step(subject, depth, batch) as (plan, before):
        return time_plans(subject.device, {"": plan}, repeat, before)[""]


def profile_step(subject: Subject, depth: int, batch: int, runs: int) -> Profile:
    """Profile decode steps of ``batch`` sequences of ``depth`` positions each."""
    with _step(subject, depth, batch) as (plan, before):
        line = profile(subject.device, plan, runs, before)
    what = f"decode of {batch} sequence{'s' if batch > 1 else ''} after {depth} tokens"
    return Profile(what, runs, line, _lines(subject, line, runs, [depth + 1] * batch))


def profile_prompt(subject: Subject, tokens: int, runs: int) -> Profile:
    """Profile the layers over a prompt; ``tokens`` is rounded up to the rows of a plan.

    Raises:
        UsageError: the prompt is longer than one plan, or than the context.
    """
    most = subject.model.sizes.rows
    if tokens > most:
        raise UsageError(
            f"A prompt of {tokens} tokens cannot be profiled.",
            f"Longer prompts run in chunks of {most} tokens, and one chunk is profiled.",
            f"Use -p {most} or less.",
        )
    rows = bucket(tokens)
    check_fits(subject, rows, 1)
    model = subject.model
    plan = subject.device.call(lambda: model.forward.prefill(rows))
    with held_pages(model, [rows]) as (slot,):
        before = partial(subject.device.call, lambda: model.forward.state.write_prompt([1] * rows, 0, slot, rows))
        line = profile(subject.device, plan, runs, before)
    return Profile(f"prompt of {rows} tokens", runs, line, _lines(subject, line, runs, list(range(1, rows + 1))))


def _lines(subject: Subject, line: Timeline, runs: int, positions: list[int]) -> list[Line]:
    """A line for each kernel and amount of work, the longest first. ``positions``: how many each row attends to."""
    c, model = subject.model.config, subject.model
    layers = c.num_hidden_layers
    groups: dict[tuple[Program, int], list[tuple[float, Dispatch]]] = defaultdict(list)
    for span, dispatch in line.kernels:
        groups[dispatch.program, dispatch.work].append((span.end - span.begin, dispatch))
    total = sum(span.end - span.begin for span, _ in line.kernels)
    out = []
    for (program, work), calls in groups.items():
        seconds, count = sum(s for s, _ in calls), len(calls) / runs
        reads, macs = sum(d.reads for _, d in calls) / runs, work * count
        if program.shader.startswith("attention_") and program.shader != "attention_merge":
            # The plan knows the capacity of its sequences, not their lengths.
            seen = positions[-1:] if program.shader == "attention_prefill" else positions
            macs = count / layers * sum(attention_macs(c, p) for p in positions)
            reads = count / layers * sum(kv_read_bytes(c, p, model.sizes.kv_dtype) for p in seen)
        share = seconds / total if total else 0.0
        out.append(Line(line_name(calls[0][1]), int(count), seconds / runs, share, reads, macs))
    return sorted(out, key=lambda r: -r.seconds)


def line_name(dispatch: Dispatch) -> str:
    """The name of a dispatch in the table; the names of products include their work."""
    name = short_name(dispatch.program)
    return f"{name} {dispatch.work / 1e6:.3g}M" if dispatch.program.shader.startswith("product") else name


def short_name(program: Program) -> str:
    """A program's shader and its choices, without the common ones."""
    dull = {"plain", "none", "woven", "subgroup", "workgroup", "store", "neighbours", "u32", "u64"}
    entry = [] if program.entry == "main" else [program.entry]
    return " ".join([program.shader, *entry, *(choice for _, choice in program.libs if choice not in dull)])


def table(found: Profile, sticks: Yardsticks) -> str:
    """Markdown: kernels by their share."""
    head = ("kernel", "calls", "total ms", "share", "GB/s", "of copy", "G MAC/s", "of peak")
    rows = [head, ("---", *["---:"] * 7)]
    for r in found.lines:
        bandwidth, rate = r.read_bytes / r.seconds, r.macs / r.seconds
        speeds = (f"{bandwidth / 1e9:.2f}", f"{bandwidth / sticks.bandwidth:.0%}") if r.read_bytes else ("", "")
        work = (f"{rate / 1e9:.2f}", f"{rate / sticks.multiply_adds:.0%}") if r.macs else ("", "")
        rows.append((r.kernel, str(r.calls), f"{r.seconds * 1e3:.3f}", f"{r.share:.1%}", *speeds, *work))
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def record(found: Profile, sticks: Yardsticks, adapter: str) -> dict[str, Any]:
    """The profile as JSON's values; times in seconds."""
    return {
        "what": found.what,
        "gpu_info": adapter,
        "gpu_s": found.gpu_seconds,
        "one_pass": found.timeline.inside,
        "uncertainty_s": found.timeline.uncertainty,
        "copy_bytes_per_s": sticks.bandwidth,
        "multiply_adds_per_s": sticks.multiply_adds,
        "kernels": [vars(line) for line in found.lines],
    }


def details(found: Profile, sticks: Yardsticks, adapter: str) -> str:
    """Facts beside the table: how it was measured, on what, and the yardsticks."""
    line = found.timeline
    way = "in one pass" if line.inside else "a pass per dispatch, because the adapter has no timestamps inside passes"
    return (
        f"{found.what}: {found.gpu_seconds * 1e3:.2f} ms of kernels, mean of {found.runs} runs, {way} · {adapter}\n"
        f"copy {sticks.bandwidth / 1e9:.2f} GB/s, multiply-adds {sticks.multiply_adds / 1e9:.2f} G/s · "
        f"GPU and host clocks agree to ±{line.uncertainty * 1e6:.0f} µs"
    )


def trace(found: Profile) -> dict[str, Any]:
    """Trace events (Chrome's JSON format, which Perfetto reads too): the GPU's kernels, and the host beside them."""
    line = found.timeline
    start = min(s.begin for s in line.host)
    shift = f"GPU (±{line.uncertainty * 1e6:.0f} µs against the host)"
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
        for pid, name in ((1, "host"), (2, shift))
    ]
    for span in line.host:
        events.append(_event(1, span.name, span.begin - start, span.end - span.begin, {}))
    for span, d in line.kernels:
        about = {"program": d.program.label, "workgroups": [d.x, d.y], "multiply_adds": d.work, "read_bytes": d.reads}
        events.append(_event(2, short_name(d.program), span.begin - start, span.end - span.begin, about))
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "what": found.what,
            "uncertainty_us": line.uncertainty * 1e6,
            "one_pass": line.inside,
        },
    }


def _event(pid: int, name: str, begin: float, seconds: float, about: dict[str, Any]) -> dict[str, Any]:
    out = {"ph": "X", "pid": pid, "tid": 1, "name": name, "ts": begin * 1e6, "dur": seconds * 1e6}
    return out | ({"args": about} if about else {})
