"""docs/wgsl/measured.json: every kernel of the page about WGSL, in Chromium (Tint) and through wgpu-py (naga).

python scripts/measure_wgsl_page.py                 both; needs Playwright and a Chromium: --chromium PATH
python scripts/measure_wgsl_page.py --one KERNEL    one kernel through wgpu-py, as JSON
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import threading
import time
from functools import partial, reduce
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from llamagpu.gpu.linker import _BINDING  # noqa: E402
from llamagpu.gpu.native import wgpu  # noqa: E402
from llamagpu.kernels.attention_dense import reference as attention_reference  # noqa: E402
from llamagpu.kernels.gelu import reference as gelu_reference  # noqa: E402
from llamagpu.kernels.layer_norm import reference as layer_norm_reference  # noqa: E402

PAGE = ROOT / "docs" / "wgsl"
ROUNDS = 3
GUARD, UNWRITTEN = 1024, np.float32(-12345.5)
FLAGS = (
    "--no-sandbox --enable-unsafe-webgpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
TYPES = {"uniform": "uniform", "storage,read_write": "storage"}
Sizes = dict[str, float]
Arrays = dict[str, np.ndarray]


def read(name: str) -> Any:
    """A JSON file of the page."""
    return json.loads((PAGE / name).read_text(encoding="utf-8"))


def evaluate(formula: str, sizes: Sizes) -> float:
    """The value of a formula, as kernel.js computes it: products of quotients, rounded up, and differences of them."""

    def value(word: str) -> float:
        return sizes[word] if word in sizes else float(word)

    def product(text: str) -> float:
        return math.prod(reduce(lambda a, b: math.ceil(a / b), map(value, q.split("/"))) for q in text.split("*"))

    return reduce(lambda a, b: a - b, map(product, formula.split("-")))


# --- lessons ---------------------------------------------------------------------------------


def inputs(lesson: dict[str, Any]) -> Arrays:
    """Random tensors by the lesson's rules."""
    rng, sizes, out = np.random.default_rng(0), lesson["sizes"], {}
    for name, rule in lesson["inputs"].items():
        a = rng.standard_normal([sizes.get(n, n) for n in rule["shape"]]) * rule.get("deviation", 1)
        a.flat[::41] *= rule.get("spike", 1)
        a += sizes.get(rule.get("mean"), 0)
        if "first" in rule:
            a[..., 0] = rule["first"]
        out[name] = a.astype(np.float32)
    return out


def expected(name: str, a: Arrays, sizes: Sizes) -> np.ndarray:
    """The lesson's result in float64."""
    if name == "scale":
        return a["x"].astype(np.float64) * np.float32(sizes["factor"])
    if name == "gelu":
        return gelu_reference(a, {"tanh": False}).value
    if name == "layernorm":
        return layer_norm_reference(a, {}).value
    if name == "matmul":
        return a["x"].astype(np.float64) @ a["w"].astype(np.float64).T
    return attention_reference(a, {"head": 64, "heads": 1, "kv_heads": 1, "causal": True}).value


def kernel(key: str) -> dict[str, Any]:
    """Text, grid, params, bindings and overrides of a kernel of the page."""
    code = (PAGE / f"{key}.wgsl").read_text(encoding="utf-8")
    if key.startswith("ours/"):
        return read("ours.json")[key.removeprefix("ours/")] | {"code": code, "padded": True}
    fields = re.search(r"struct Params\s*\{([^}]*)\}", code)
    grid = re.search(r"^//! grid (.+)$", code, re.M)
    assert fields is not None
    assert grid is not None
    params = [(name, kind, name) for name, kind in re.findall(r"(\w+)\s*:\s*(u32|f32)", fields[1])]
    bindings = [
        {"group": int(g), "binding": int(b), "type": TYPES.get(re.sub(r"\s", "", t), "read-only-storage"), "name": n}
        for g, b, t, n in _BINDING.findall(code)
    ]
    return {"code": code, "grid": grid[1], "params": params, "bindings": bindings, "overrides": {}, "padded": False}


# --- wgpu-py ---------------------------------------------------------------------------------


def padded(a: np.ndarray, kernel: dict[str, Any], filler: float) -> np.ndarray:
    """The tensor in memory: rows at multiples of 16 bytes for the project's kernels, and guards behind it."""
    rows = a.reshape(-1, a.shape[-1])
    columns = -(-rows.shape[1] // 4) * 4 if kernel["padded"] else rows.shape[1]
    wide = np.zeros((len(rows), columns), np.float32)
    wide[:, : rows.shape[1]] = rows
    return np.concatenate([wide.ravel(), np.full(GUARD, filler, np.float32)])


def pipeline(device: Any, kernel: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The compiled kernel, and the layouts of its bind groups."""
    module = device.create_shader_module(code=kernel["code"])
    layouts = []
    for group in range(max(b["group"] for b in kernel["bindings"]) + 1):
        entries = [
            {"binding": b["binding"], "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": b["type"]}}
            for b in kernel["bindings"]
            if b["group"] == group
        ]
        layouts.append(device.create_bind_group_layout(entries=entries))
    layout = device.create_pipeline_layout(bind_group_layouts=layouts)
    compute = {"module": module, "entry_point": "main", "constants": kernel["overrides"]}
    return device.create_compute_pipeline(layout=layout, compute=compute), layouts


def run(device: Any, kernel: dict[str, Any], sizes: Sizes, a: Arrays, shape: tuple[int, ...]) -> dict[str, Any]:
    """The kernel's result, what it wrote behind it, and seconds of a dispatch by the wall clock."""
    compiled, layouts = pipeline(device, kernel)
    usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC
    memory = {name: padded(t, kernel, math.nan) for name, t in a.items()}
    memory["out"] = padded(np.full(shape, UNWRITTEN), kernel, UNWRITTEN)
    buffers = {name: device.create_buffer_with_data(data=t, usage=usage) for name, t in memory.items()}
    kinds = {"f32": np.float32, "u32": np.uint32}
    params = b"".join(kinds[kind](evaluate(formula, sizes)).tobytes() for _, kind, formula in kernel["params"])
    buffers["params"] = device.create_buffer_with_data(
        data=params.ljust(-(-len(params) // 16) * 16, b"\0"), usage=wgpu.BufferUsage.UNIFORM
    )
    groups = [
        device.create_bind_group(
            layout=layout,
            entries=[
                {"binding": b["binding"], "resource": {"buffer": buffers[b["name"]]}}
                for b in kernel["bindings"]
                if b["group"] == i
            ],
        )
        for i, layout in enumerate(layouts)
    ]
    counts = [int(evaluate(formula, sizes)) for formula in kernel["grid"].split()]
    seconds = timed(device, compiled, groups, counts, buffers["out"])
    data = np.frombuffer(device.queue.read_buffer(buffers["out"]), np.float32)
    columns = memory["out"][:-GUARD].size // math.prod(shape[:-1])
    values = data[:-GUARD].reshape(-1, columns)[:, : shape[-1]].reshape(shape)
    return {"values": values, "spoilt": int((data[-GUARD:] != UNWRITTEN).sum()), "seconds": seconds}


def timed(device: Any, compiled: Any, groups: list[Any], counts: list[int], out: Any) -> float:
    """Seconds of a dispatch: wall time over enough dispatches in one pass for 50 ms, after a first one."""
    for turn, count in enumerate((1, 1, 4, 16, 64, 256, 1024)):  # drivers generate code at the first dispatch
        encoder = device.create_command_encoder()
        compute = encoder.begin_compute_pass()
        compute.set_pipeline(compiled)
        for i, group in enumerate(groups):
            compute.set_bind_group(i, group)
        for _ in range(count):
            compute.dispatch_workgroups(*counts)
        compute.end()
        start = time.perf_counter()
        device.queue.submit([encoder.finish()])
        device.queue.read_buffer(out, 0, 4)
        seconds = time.perf_counter() - start
        if turn and seconds > 0.05:
            break
    return seconds / count


def one(key: str) -> dict[str, Any]:
    """What became of a kernel through wgpu-py, in this process."""
    (name,) = [n for n, lesson in read("lessons.json").items() if key.removeprefix("ours/") in keys(lesson, bare=True)]
    lesson = read("lessons.json")[name]
    device = wgpu.gpu.request_adapter_sync().request_device_sync()
    sizes, unit = lesson["sizes"], lesson["speed"]["unit"]
    a = inputs(lesson)
    try:
        got = run(device, kernel(key), sizes, a, tuple(sizes.get(n, n) for n in lesson["out"]))
    except wgpu.GPUError as e:
        return {"outcome": "refused", "message": str(e).strip()}
    want = expected(name, a, sizes)
    off = np.abs(got["values"] - want).max() / np.abs(want).max()
    error = float(off) if np.isfinite(off) else None
    right = error is not None and error <= lesson["bound"] and not got["spoilt"]
    rate = evaluate(lesson["speed"]["work"], sizes) / got["seconds"] / 1e9
    return {
        "outcome": "right" if right else "wrong",
        "error": error,
        "spoilt": got["spoilt"],
        "rate": rate,
        "unit": unit,
    }


def through_wgpu(key: str) -> dict[str, Any]:
    """``one`` in a process of its own: a kernel whose barriers diverge may hang it or end it."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--one", key], capture_output=True, text=True, timeout=60, check=True
        )
    except subprocess.TimeoutExpired:
        return {"outcome": "hung: no result after 60 s"}
    except subprocess.CalledProcessError as e:
        return {"outcome": f"ended the process (exit {e.returncode})"}
    return json.loads(done.stdout)


# --- Chromium ----------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    """Files without a log."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def in_browser(chromium: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The browser's version and adapter, and what became of every kernel on the page."""
    from playwright.sync_api import sync_playwright

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=PAGE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=chromium, args=FLAGS.split())
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            page.wait_for_function("window.lessonPage")
            found = page.evaluate("lessonPage.runAll()")
            adapter = page.inner_text("#adapter")
            version = browser.version.split(".")[0]
            browser.close()
    finally:
        server.shutdown()
        server.server_close()
    return {"name": f"Chromium {version}", "what": f"Tint, adapter {adapter}"}, found


def keys(lesson: dict[str, Any], bare: bool = False) -> list[str]:
    """The kernels of a lesson; ``bare`` leaves out the folder of the project's."""
    return [*lesson["versions"], *(name if bare else f"ours/{name}" for name in lesson["ours"])]


def keep_best(kernel: dict[str, Any], place: str, found: dict[str, Any]) -> None:
    """Add what was found at a place; of several rounds the fastest stays."""
    seen = {k: found.get(k) for k in ("outcome", "message", "error", "spoilt", "rate", "unit")}
    if place not in kernel or (seen["rate"] or 0) > (kernel[place]["rate"] or 0):
        kernel[place] = seen


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one)))
        return
    info = wgpu.gpu.request_adapter_sync().info
    native = {"name": f"wgpu-py {wgpu.__version__}", "what": f"naga, adapter {info['device']}, {info['description']}"}
    kernels: dict[str, Any] = {}
    for turn in range(ROUNDS):
        browser, found = in_browser(args.chromium)
        for key in (key for lesson in read("lessons.json").values() for key in keys(lesson)):
            keep_best(kernels.setdefault(key, {}), browser["name"], found[key])
            keep_best(kernels[key], native["name"], through_wgpu(key))
        print(f"round {turn + 1} of {ROUNDS}", file=sys.stderr, flush=True)
    text = json.dumps({"places": [browser, native], "kernels": kernels}, indent=1, ensure_ascii=False)
    (PAGE / "measured.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
