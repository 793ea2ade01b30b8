"""A mutation test of the kernels' cases: edits of the shaders, one at a time, that the registry's checks must notice.

    python scripts/mutate.py --count 300 --seed 0     draws, runs and judges mutants; writes docs/mutation.json and .md

A mutant is one edit of one shader file: another operator, a constant or an index one off, a barrier or a statement left
out, a clamp dropped, a guard widened. It runs in a copy of the shaders, on every case of every kernel that links the
file, in every variant with programs of its own, the cheapest cases first, with bounds checks. Cases with folded grids
run for edits of lines that read the grid's size or compare with a size.

caught      a case fails: an error above the tolerance, a write outside an output, a crash or a hang
survived    all cases pass, and a bit of some output differs from the unedited shader's
equivalent  all cases pass, and no output of any case or of further random shapes changes

Edits that do not compile do not count.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from llamagpu import gpu, kernels
from llamagpu.errors import KernelError, LlamaGPUError
from llamagpu.gpu import linker
from llamagpu.kernels.check import host_outputs
from llamagpu.kernels.entry import Bench, Dims, Kernel

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
TIMEOUT_S = 90.0  # a mutant that takes longer hangs
RANDOM = 20  # random shapes of a kernel, as in tests/test_kernels.py
UNSEEN = 6  # further random shapes, which only tell survivors from equivalents
FOLDED = 65535  # cases with more workgroups have folded grids, and run last
FOLDS = (0, 2)  # tunings of the folded cases: the current one, and that of the other family of shaders
SWAPS = {
    " + ": " - ",
    " - ": " + ",
    " * ": " / ",
    " / ": " * ",
    " % ": " / ",
    " & ": " | ",
    " | ": " & ",
    " ^ ": " | ",
    " << ": " >> ",
    " >> ": " << ",
    " && ": " || ",
    " || ": " && ",
    " < ": " <= ",
    " <= ": " < ",
    " > ": " >= ",
    " >= ": " > ",
    " == ": " != ",
    " != ": " == ",
    " += ": " = ",
    " |= ": " = ",
    "min(": "max(",
    "max(": "min(",
}
_SWAP = re.compile("|".join(re.escape(s) if s[0] == " " else rf"\b{re.escape(s)}" for s in SWAPS))
_WHOLE = re.compile(r"(?<![\w.])(\d+)(u?)\b(?![.\w])")
_HEX = re.compile(r"\b0x([0-9a-f]+)u\b")
_REAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\de])")
_INDEX = re.compile(r"(?<=[\w\]])\[(\w+)\]")
_FIELD = re.compile(r"(?<=[\w\]])\.([xyzw])\b")
_TERM = re.compile(r"\bparams\.\w+ \+ ")
_STATEMENT = re.compile(
    r"^(\s+)(?!let |var |return|for |if |\}|case )[\w.\[\]]+(?:\[.*\])?[\w.]* [-+*|&]?= .*;$|^(\s+)\w+\(.*\);$"
)
_SIZED = re.compile(r"\bgrid\b|[<>]=? params\.|params\.\w+ [<>]")
_NO_SITES = re.compile(r"^\s*//|@group|@builtin|@compute|^\s*\w+: [\w<>]+,|^alias|^struct|^override")


@dataclass(frozen=True)
class Mutant:
    """One edit: the text from ``begin`` to ``end`` of a line becomes ``new``."""

    file: str  # without .wgsl
    line: int  # from 1
    begin: int
    end: int
    new: str
    kind: str

    def apply(self, text: str) -> str:
        """The edited text of the file."""
        lines = text.split("\n")
        line = lines[self.line - 1]
        lines[self.line - 1] = line[: self.begin] + self.new + line[self.end :]
        return "\n".join(lines)

    def label(self, text: str) -> str:
        """The line before and after the edit."""
        before, after = (t.split("\n")[self.line - 1].split("//")[0].strip() for t in (text, self.apply(text)))
        return f"{self.file}:{self.line} `{before}` → `{after}`"


def sites(file: str, text: str) -> list[Mutant]:
    """Every edit of a file, in the order of its lines."""
    out: list[Mutant] = []
    for number, whole in enumerate(text.split("\n"), 1):
        line = whole.split("//")[0].rstrip()
        if line and not _NO_SITES.search(line):
            out += [Mutant(file, number, b, e, new, kind) for b, e, new, kind in _edits(line)]
    return out


def _edits(line: str) -> Iterator[tuple[int, int, str, str]]:
    for m in _SWAP.finditer(line):
        yield m.start(), m.end(), SWAPS[m[0]], "operator"
    for m in _WHOLE.finditer(line):
        for value in {int(m[1]) + 1, max(0, int(m[1]) - 1)} - {int(m[1])}:
            yield m.start(), m.end(), f"{value}{m[2]}", "constant"
    for m in _HEX.finditer(line):
        yield m.start(), m.end(), f"0x{(int(m[1], 16) + 1) % 2**32:x}u", "constant"
    for m in _REAL.finditer(line):
        yield m.start(), m.end(), f"{float(m[0]) + 1}", "constant"
    for m in _INDEX.finditer(line):
        yield m.start(), m.end(), f"[{m[1]} + 1u]", "index"
    for m in _FIELD.finditer(line):
        yield m.start(), m.end(), "." + "yzwx"["xyzw".index(m[1])], "index"
    for m in _TERM.finditer(line):
        yield m.start(), m.end(), "", "term dropped"
    if _STATEMENT.match(line):
        kind = "barrier dropped" if "Barrier" in line else "statement dropped"
        yield len(line) - len(line.lstrip()), len(line), "", kind


def all_sites(files: Sequence[str]) -> list[Mutant]:
    """Every edit of the given files."""
    return [m for name in sorted(files) for m in sites(name, (gpu.shader_root() / f"{name}.wgsl").read_text())]


# --- cases -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A case in a tuning, and the shader files that it links."""

    kernel: str
    dims: Dims
    seed: int
    tuning: gpu.Tuning
    files: frozenset[str]
    size: int  # elements of the inputs
    folded: bool
    checked: bool = True  # whether the tests run it, too

    @property
    def cost(self) -> tuple[bool, bool, int]:
        return not self.checked, self.folded, self.size


def collect(device: gpu.Device, names: Sequence[str], quick: bool = False) -> list[Case]:
    """The cases that ``tests/test_kernels.py`` runs, the cheapest first; ``quick`` takes the kernels' own cases without
    folded grids in the current tuning."""
    out: list[Case] = []
    for kernel in (kernels.REGISTRY[name] for name in names):
        if quick:
            tuning = replace(device.tuning, trusted=False)
            own = [_case(device, kernel, dims, seed, tuning, True)[0] for seed, dims in enumerate(kernel.cases)]
            out += [case for case in own if not case.folded]
            continue
        seen: set[object] = set()
        for number, tuning in enumerate([device.tuning, *gpu.variants(device.features, device.subgroup_size)]):
            cases = [*kernel.cases, *kernels.random_dims(kernel, 2 if number else RANDOM, seed=2 if number else 0)]
            unseen = [] if number else kernels.random_dims(kernel, UNSEEN, seed=99)
            for seed, dims in enumerate([*cases, *unseen]):
                case = _case(device, kernel, dims, seed, replace(tuning, trusted=False), seed < len(cases))
                key = case[1] if number and not case[0].folded else (str(dims), case[1])
                if key not in seen and (number in FOLDS or not case[0].folded):
                    seen |= {key, case[1]}
                    out.append(case[0])
    return sorted(out, key=lambda c: c.cost)


def _case(
    device: gpu.Device, kernel: Kernel, dims: Dims, seed: int, tuning: gpu.Tuning, checked: bool
) -> tuple[Case, object]:
    arrays = kernel.inputs(np.random.default_rng(seed), dims)
    bench = Bench(device)
    programs: list[gpu.Program] = []
    groups: list[int] = []

    def note(program: gpu.Program, count: int, *_: Any, **__: Any) -> None:
        programs.append(program)
        groups.append(count)

    dispatch, device.dispatch = device.dispatch, note  # type: ignore[method-assign]
    try:
        with device.using(tuning):
            kernel.run(bench, arrays, dims)
    finally:
        device.dispatch = dispatch  # type: ignore[method-assign]
        bench.free()
    files = frozenset(file for program in programs for file in linker._files(program))
    size, folded = sum(a.size for a in arrays.values()), max(groups) > FOLDED
    return Case(kernel.name, dims, seed, tuning, files, size, folded, checked), tuple(programs)


# --- running ---------------------------------------------------------------------------------


class Shaders:
    """A copy of the shaders that can be edited, in place of the originals."""

    def __init__(self, device: gpu.Device, folder: Path):
        self._device, self.root = device, folder / "shaders"
        self._original = linker.shader_root()
        shutil.copytree(self._original, self.root)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Programs are linked from the copy inside the block."""
        before, linker.shader_root = linker.shader_root, lambda: self.root
        try:
            yield
        finally:
            linker.shader_root = before
            self._forget(None)

    @contextmanager
    def edited(self, file: str, text: str) -> Iterator[None]:
        """A file has another text inside the block."""
        path = self.root / f"{file}.wgsl"
        before = path.read_text()
        path.write_text(text)
        self._forget(file)
        try:
            yield
        finally:
            path.write_text(before)
            self._forget(file)

    def _forget(self, file: str | None) -> None:
        """Drop the pipelines of programs that link a file."""
        made = self._device.pipelines._made
        for key in [k for k in made if file is None or file in linker._files(k[0])]:
            del made[key]
        linker._source.cache_clear()
        linker.link.cache_clear()


@dataclass(frozen=True)
class Verdict:
    """``outcome`` is caught, survived, equivalent or "does not compile"; ``by`` is the failing report."""

    outcome: str
    by: str = ""


def judge(device: gpu.Device, shaders: Shaders, cases: Sequence[Case], mutant: Mutant, text: str) -> Verdict:
    """Run a mutant on all cases that link its file."""
    line = text.split("\n")[mutant.line - 1]
    mine = [c for c in cases if mutant.file in c.files and (_SIZED.search(line) or not c.folded)]
    outputs = []
    with shaders.edited(mutant.file, text):
        for case in mine:
            try:
                report, bits = _run(device, case)
            except KernelError as e:
                return Verdict("does not compile", str(e)[:300])
            except LlamaGPUError as e:
                return Verdict("caught", f"{case.kernel}: {e.what}")
            if case.checked and report:
                return Verdict("caught", report)
            outputs.append(bits)
    for case, bits in zip(mine, outputs, strict=True):
        if _run(device, case)[1] != bits:
            return Verdict("survived", f"{case.kernel} {kernels.dims_text(case.dims)}")
    return Verdict("equivalent")


def _run(device: gpu.Device, case: Case) -> tuple[str, bytes]:
    """The report of a case that fails, or "", and the bits of its outputs."""
    kernel, kept = kernels.REGISTRY[case.kernel], []

    def run(bench: Bench, arrays: Any, dims: Dims) -> Any:
        outputs = host_outputs(kernel.run(bench, arrays, dims))
        kept.extend(hash(np.ascontiguousarray(v).tobytes()) for v in outputs.values())
        return outputs

    report = kernels.check(replace(kernel, run=run), device, case.dims, case.seed, case.tuning)
    return "" if report.ok else str(report), repr(kept).encode()


def work(pipe: Connection, cases: list[Case]) -> None:
    """A process that judges mutants: it gets (mutant, text) and answers with verdicts."""
    with tempfile.TemporaryDirectory() as folder, gpu.open() as device:
        shaders = Shaders(device, Path(folder))
        with shaders.used():
            while (job := pipe.recv()) is not None:
                pipe.send(judge(device, shaders, cases, *job))


class Worker:
    """A process that can be ended if a mutant hangs or crashes it."""

    def __init__(self, cases: list[Case]):
        self._cases = cases
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, self._cases), daemon=True)
        self._process.start()
        theirs.close()

    def judge(self, mutant: Mutant, text: str) -> Verdict:
        """As ``judge``; a hang or a crash is caught."""
        try:
            self._pipe.send((mutant, text))
            if self._pipe.poll(TIMEOUT_S):
                verdict: Verdict = self._pipe.recv()
                return verdict
            found = Verdict("caught", "it hangs")
        except (EOFError, OSError):
            found = Verdict("caught", "the process crashed")
        self._process.kill()
        self._process.join()
        self._start()
        return found

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join(10)


# --- report ----------------------------------------------------------------------------------


def page(found: dict[str, Any]) -> str:
    """``docs/mutation.md`` from the results and the explanations beside them."""
    counts = {k: sum(m["outcome"] == k for m in found["mutants"]) for k in ("caught", "survived", "equivalent")}
    changed = counts["caught"] + counts["survived"]
    lines = [
        "# Mutation test",
        "",
        "`scripts/mutate.py` edits the shaders, one edit at a time, and runs the cases of the kernels: a check that",
        "lets a wrong kernel pass shows here. Its first lines say what an edit is and when it counts as caught.",
        "",
        "```console",
        f"$ python scripts/mutate.py --count {found['count']} --seed {found['seed']}",
        "```",
        "",
        f"{found['count']} edits compile ({found['device']}). {counts['caught']} were caught, {counts['survived']} "
        f"survived, and {counts['equivalent']} changed no output. So {counts['caught'] / changed:.1%} of the {changed} "
        "edits that change an output were caught.",
    ]
    for outcome, title in (("survived", "Survivors"), ("equivalent", "Equivalent or unseen")):
        mine = [m for m in found["mutants"] if m["outcome"] == outcome]
        lines += ["", f"## {title}", "", "| edit | why no case fails |", "| --- | --- |"]
        for m in mine:
            why = found["explanations"].get(m["label"], "not explained yet")
            lines.append(f"| {m['label'].replace('|', chr(92) + '|')} | {why} |")
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kernels", help="names, separated by commas; the default is all")
    parser.add_argument("--again", action="store_true", help="judge the edits that were not caught again")
    parser.add_argument("--quick", action="store_true", help="only the kernels' own cases, in the current tuning")
    parser.add_argument("--out", type=Path, default=DOCS / "mutation.json", help="results; the page lies beside it")
    return parser.parse_args()


def _judged(cases: list[Case], drawn: Iterable[Mutant], count: int) -> Iterator[dict[str, Any]]:
    """Judge mutants until ``count`` compile."""
    worker, number = Worker(cases), 0
    for mutant in drawn:
        text = (gpu.shader_root() / f"{mutant.file}.wgsl").read_text()
        verdict = worker.judge(mutant, mutant.apply(text))
        if verdict.outcome == "does not compile":
            continue
        number += 1
        found = {"label": mutant.label(text), "kind": mutant.kind, **asdict(verdict)}
        print(f"{number:4} {found['outcome']:10} {found['label']}   {found['by']}", flush=True)
        yield found
        if number == count:
            break
    worker.close()


def _labels(mutants: Sequence[Mutant]) -> dict[str, Mutant]:
    texts = {file: (gpu.shader_root() / f"{file}.wgsl").read_text() for file in {m.file for m in mutants}}
    return {m.label(texts[m.file]): m for m in mutants}


def main() -> None:
    """Draw mutants until ``count`` compile; print each verdict; write the results."""
    args = _arguments()
    names = args.kernels.split(",") if args.kernels else list(kernels.REGISTRY)
    with gpu.open() as device:
        cases, adapter = collect(device, names, args.quick), str(device.adapter)
    drawn = all_sites(sorted({file for case in cases for file in case.files}))
    print(f"{len(cases)} cases, {len(drawn)} edits", flush=True)
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"explanations": {}}
    if args.again:
        sites_by_label = _labels(drawn)
        open_ = [m["label"] for m in found["mutants"] if m["outcome"] != "caught" and m["label"] in sites_by_label]
        now = {m["label"]: m for m in _judged(cases, [sites_by_label[label] for label in open_], len(open_))}
        found["mutants"] = [now.get(m["label"], m) for m in found["mutants"]]
    else:
        total = len(drawn)
        random.Random(args.seed).shuffle(drawn)
        mutants = list(_judged(cases, reversed(drawn), args.count))
        found |= {"count": len(mutants), "seed": args.seed, "sites": total, "device": adapter, "mutants": mutants}
    args.out.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(page(found))
    caught, survived = (sum(m["outcome"] == k for m in found["mutants"]) for k in ("caught", "survived"))
    print(f"{caught} caught, {survived} survived, {len(found['mutants']) - caught - survived} equivalent or unseen")
    sys.exit(caught < 0.97 * (caught + survived))


if __name__ == "__main__":
    main()
