"""Every program, linked for browsers, compiles by Tint, Chromium's compiler, within WebGPU's default limits.

Tint comes with Dawn for Node, whose null backend makes every check and runs nothing. Programs are collected from the
registry of kernels and from the forward passes of models; nothing is compiled for this machine's GPU.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import random_models
from test_kernels import FULL, is_small

from llamagpu import gpu, kernels
from llamagpu.browser.profiles import site_profiles
from llamagpu.gpu import Program, Tuning, link
from llamagpu.kernels.dequantize import FORMATS
from llamagpu.kernels.entry import Bench
from llamagpu.model import load_model, prepare
from llamagpu.model.forward import BATCHES, ROW_BUCKETS
from llamagpu.model.layout import DTYPES
from llamagpu.model.sizes import KV_DTYPES

BROWSER = Path(__file__).resolve().parent / "browser"
# Features by the lines of a text that ask for them; browsers and wgpu have different names for subgroups.
FEATURES = {"enable f16;": "shader-f16", "enable subgroups;": "subgroups"}
# The defaults of software adapters and of GPUs, the variants that cover every implementation of an interface, and the
# profiles of exported sites.
BROWSERS = FULL - {"shader-int64"}
SOFTWARE, GPU = gpu.default_tuning("software", BROWSERS, 8), gpu.default_tuning("discrete", BROWSERS, 32)
PROFILES = [p.tuning for quantized in (False, True) for p in site_profiles(quantized)]
TUNINGS = list(dict.fromkeys([SOFTWARE, GPU, *gpu.variants(BROWSERS, 8), *PROFILES]))
CONTEXT = 640

Compile = Callable[[list[dict[str, Any]], str], list[list[str]]]


@pytest.fixture(scope="session")
def tint() -> Compile:
    """Compiles texts by a version of Dawn (an npm package), and gives the objections to each."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node (node) is not installed")

    def run(texts: list[dict[str, Any]], package: str = "webgpu") -> list[list[str]]:
        if not (BROWSER / "node_modules" / package).is_dir():
            pytest.skip(f"the npm package {package} is not installed (npm ci, in tests/browser)")
        command = [node, "compile.mjs", package]
        done = subprocess.run(
            command, input=json.dumps(texts), capture_output=True, text=True, cwd=BROWSER, timeout=300
        )
        assert done.returncode == 0, done.stderr
        found: list[list[str]] = json.loads(done.stdout)
        assert len(found) == len(texts)
        return found

    return run


# --- programs ------------------------------------------------------------------------------


@contextmanager
def noted(device: gpu.Device) -> Iterator[set[Program]]:
    """The programs that are dispatched or recorded inside the block. They do not run."""
    found: set[Program] = set()

    def record(forward: Callable[[], object], tuning: Tuning | None = None) -> SimpleNamespace:
        with device.using(tuning or device.tuning):
            forward()
        return SimpleNamespace(free=lambda: None)

    with pytest.MonkeyPatch.context() as patch, device.ledger.tracking() as buffers:
        patch.setattr(device, "dispatch", lambda program, *_, **__: found.add(program))
        patch.setattr(device, "record", record)
        yield found
    for buffer in buffers:
        device.free(buffer)


def registry_programs(device: gpu.Device) -> set[Program]:
    """The programs of the registry's small cases and of random shapes, in every tuning."""
    with noted(device) as found:
        for kernel in kernels.REGISTRY.values():
            cases = [c for c in kernel.cases if is_small(kernel, c)] + kernels.random_dims(kernel, 5)
            if kernel.name in ("matvec", "matmul"):
                cases += [
                    {"n": 37, "k": 45, "format": f, "bias": m == 8, "m": m} for f in FORMATS for m in (1, 8, 9, 70)
                ]
            for dims in cases:
                arrays = kernel.inputs(np.random.default_rng(0), dims)
                for tuning in TUNINGS:
                    bench = Bench(device)
                    with device.using(tuning):
                        kernel.run(bench, arrays, dims)
                    bench.free()
        return found | {Program("subgroup_size")}


def model_programs(
    device: gpu.Device, folder: Path, dtype: str, kv_dtype: str, tunings: Sequence[Tuning], fused: bool = True
) -> set[Program]:
    """The programs of the plans that a model can record, in several tunings."""
    found: set[Program] = set()
    prepared = prepare(folder, dtype)
    for tuning in tunings:
        with noted(device) as programs:
            plans = load_model(prepared, device, tuning, CONTEXT, kv_dtype, fused=fused).forward
            for rows in (r for r in ROW_BUCKETS if r <= plans.state.rows.rows):
                plans.prefill(rows)
            plans.prefill_ids(1)
            plans.last_norm(1)
            for plain in (True, False):
                plans.first(1, plain)
                for batch in BATCHES:
                    plans.head(batch)
                    plans.decode(batch, 1, plain)
                    plans.decode(batch, CONTEXT, plain)
        found |= programs
    return found


def model(folder: Path, config: dict[str, Any]) -> Path:
    """The directory of a random model."""
    return random_models.write_model(folder, config, random_models.tensors(config, 1), tokenizer=False)


def text(program: Program, uniformity: str = "off") -> dict[str, Any]:
    """What compile.mjs reads. ``uniformity`` "error" has subgroups checked, too: the linker turns this off for older
    browsers."""
    linked = link(program, "browser")
    code = linked.code.replace("diagnostic(off, subgroup_uniformity)", f"diagnostic({uniformity}, subgroup_uniformity)")
    return {
        "code": code,
        "entry": program.entry,
        "constants": dict(program.overrides),
        "features": [feature for line, feature in FEATURES.items() if line in code.splitlines()],
        "bindings": [(b.group, b.index, b.kind) for b in linked.bindings],
    }


def objections(tint: Compile, programs: set[Program], package: str = "webgpu", uniformity: str = "off") -> list[str]:
    """What Tint objects to: the program, and the source's file and line."""
    ordered = sorted(programs, key=repr)
    found = zip(ordered, tint([text(p, uniformity) for p in ordered], package), strict=True)
    return [f"{p.label}: {link(p, 'browser').locate(m)}" for p, messages in found for m in messages]


# --- what Dawn refuses ---------------------------------------------------------------------

_OUT = "@group(0) @binding(0) var<storage, read_write> out: array<u32>;\n"
_MAIN = "@compute @workgroup_size(64) fn main(@builtin(local_invocation_index) local: u32)"
RIGHT = {
    "code": f"{_OUT} {_MAIN} {{ out[local] = 1u; workgroupBarrier(); }}",
    "entry": "main",
    "constants": {},
    "features": [],
    "bindings": [(0, 0, "storage")],
}
_MANY = "override N = 4; var<workgroup> many: array<u32, N>;"
# Changes of RIGHT that make it wrong, and a pattern of the objection.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"code": f"{_MAIN} {{ let x = ; }}"}, "missing"),
    ({"code": f"{_MAIN} {{ if (local > 3u) {{ workgroupBarrier(); }} }}"}, "'workgroupBarrier' must .* uniform"),
    (
        {"code": f"var<private> p: u32; {_MAIN} {{ p = 1u; if (p > 3u) {{ workgroupBarrier(); }} }}"},
        "'workgroupBarrier' must .* uniform",
    ),
    (
        {
            "code": f"enable subgroups; {_OUT} {_MAIN} {{ if (local > 3u) {{ out[0] = subgroupAdd(1u); }} }}",
            "features": ["subgroups"],
        },
        "'subgroupAdd' must .* uniform",
    ),
    ({"code": f"{_OUT} {_MAIN} {{ out[0] = subgroupAdd(1u); }}", "features": ["subgroups"]}, "subgroupAdd"),
    ({"code": f"enable subgroups; {_MAIN} {{ }}"}, "subgroups"),
    ({"code": f"enable f16; {_MAIN} {{ }}"}, "f16"),
    ({"constants": {"M": 1}}, '"M"'),
    ({"bindings": [(0, 0, "read-only-storage")]}, "binding"),
    # The default limits: 8 storage buffers, 16 KiB of workgroup memory, 256 invocations.
    ({"bindings": [(0, i, "storage") for i in range(9)]}, "storage buffers"),
    ({"code": f"{_MANY} {_MAIN} {{ many[local] = 1u; }}", "constants": {"N": 4097}}, "workgroup storage"),
    ({"code": f"{_MAIN.replace('64', '257')} {{ }}"}, "workgroup_size"),
]


def refuses_what_is_wrong(tint: Compile, package: str) -> None:
    """A check that lets everything pass would show nothing."""
    right, *found = tint([RIGHT, *(RIGHT | changes for changes, _ in WRONG)], package)
    assert right == []
    for (changes, pattern), messages in zip(WRONG, found, strict=True):
        assert re.search(pattern, " ".join(messages)), (changes, messages)


# --- tests ---------------------------------------------------------------------------------


def test_models_compile_with_the_default_tunings(tint: Compile, device: gpu.Device, tmp_path: Path) -> None:
    """The bundled model's kind of model, with the tunings that most browsers will have. What is wrong is refused."""
    refuses_what_is_wrong(tint, "webgpu")
    folder = model(tmp_path, random_models.CONFIGS["gqa"])
    programs = model_programs(device, folder, "int4", "float16", [SOFTWARE, GPU])
    assert objections(tint, programs) == []


@pytest.fixture(scope="module")
def programs(device: gpu.Device, tmp_path_factory: pytest.TempPathFactory) -> set[Program]:
    """All programs: the registry's, those of a model in every format and form, and those of every architecture. The
    device's thread collects them, so that it is not asked for every buffer."""
    return device.call(lambda: all_programs(device, tmp_path_factory.mktemp("models")))


def all_programs(device: gpu.Device, folder: Path) -> set[Program]:
    found = registry_programs(device)
    even = model(folder / "even", random_models.config(intermediate_size=128))
    for dtype, kv_dtype, fused in product(set(DTYPES) - {"auto"}, KV_DTYPES, (True, False)):
        found |= model_programs(device, even, dtype, kv_dtype, TUNINGS, fused)
    for name, config in random_models.CONFIGS.items():
        found |= model_programs(device, model(folder / name, config), "auto", "auto", [SOFTWARE, GPU])
    return found


@pytest.mark.slow
def test_the_programs_link_every_shader(programs: set[Program]) -> None:
    linked = {file for p in programs for file, _ in link(p).lines if file != "(linker)"}
    linked.add("lib/words/u64.wgsl")  # browsers have no such type
    assert linked == {path.relative_to(gpu.shader_root()).as_posix() for path in gpu.shader_root().rglob("*.wgsl")}


@pytest.mark.slow
def test_every_program_compiles(tint: Compile, programs: set[Program]) -> None:
    """The current Tint can prove that control flow is uniform within subgroups."""
    assert objections(tint, programs, uniformity="error") == []


@pytest.mark.slow
def test_every_program_compiles_in_an_older_browser(tint: Compile, programs: set[Program]) -> None:
    refuses_what_is_wrong(tint, "webgpu-old")
    assert objections(tint, programs, "webgpu-old") == []
