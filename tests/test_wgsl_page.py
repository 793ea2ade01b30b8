"""The page about WGSL: its files against the linker and the kernels' wrappers, and the page itself in a browser."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llamagpu.gpu import Device
from llamagpu.kernels.attention_dense import attention
from llamagpu.kernels.elementwise import scale
from llamagpu.kernels.gelu import gelu
from llamagpu.kernels.layer_norm import layer_norm
from llamagpu.kernels.matmul import matmul_nt

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "wgsl"
CHROMIUM = Path("/usr/bin/chromium")
HERE = {
    "compile": "refused",
    "wrong": "wrong",
    "right": "right",
}  # what a lesson's word for a version means in a browser
NAGA = {  # what the article says of naga and wgpu-py where they differ from Tint and the browser
    "scale-pointer": "refused",
    "layernorm-divergent": "right",
    "matmul-return": "wrong",
    "matmul-memory": "right",
}
LESSONS: dict[str, Any] = json.loads((PAGE / "lessons.json").read_text(encoding="utf-8"))
OUTCOMES = {name: HERE[word] for lesson in LESSONS.values() for name, word in lesson["versions"].items()} | {
    f"ours/{name}": "right" for lesson in LESSONS.values() for name in lesson["ours"]
}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look the module up
    spec.loader.exec_module(module)
    return module


def test_the_projects_kernels_are_the_linkers_output() -> None:
    made = script("make_wgsl_page").files()
    found = {f"ours/{path.name}" for path in (PAGE / "ours").iterdir()} | {"ours.json"}
    assert found == set(made)
    for name, text in made.items():
        assert (PAGE / name).read_text(encoding="utf-8") == text, f"{name}: run python scripts/make_wgsl_page.py"


def test_page_files_fit_together() -> None:
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    assert sorted(re.findall(r'data-kernel="([^"]+)"', html)) == sorted(OUTCOMES)
    assert sorted(re.findall(r'data-sizes="([^"]+)"', html)) == sorted(LESSONS)
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(re.findall(r'id="([^"]+)"', html))
    assert {path.stem for path in PAGE.glob("*.wgsl")} == {name for name in OUTCOMES if "/" not in name}
    for path in (*PAGE.glob("*.js"), *PAGE.glob("*.css")):
        text = path.read_text(encoding="utf-8")
        assert "://" not in text, f"{path.name} must load nothing from elsewhere"
        assert len(text.splitlines()) <= 400
    assert not re.findall(r'(?:src|<link[^>]* href)="(?:http|//)', html)


def test_measured_outcomes_are_those_of_the_article() -> None:
    measured = json.loads((PAGE / "measured.json").read_text(encoding="utf-8"))
    browser, native = (place["name"] for place in measured["places"])
    assert {key: found[browser]["outcome"] for key, found in measured["kernels"].items()} == OUTCOMES
    assert {key: found[native]["outcome"] for key, found in measured["kernels"].items()} == OUTCOMES | NAGA


@pytest.mark.slow
def test_naga_takes_and_refuses_what_the_article_says() -> None:
    measuring = script("measure_wgsl_page")
    device = measuring.wgpu.gpu.request_adapter_sync().request_device_sync()
    found = {}
    for key in OUTCOMES:
        try:
            measuring.pipeline(device, measuring.kernel(key))
            found[key] = False
        except measuring.wgpu.GPUError:
            found[key] = True
    refused = {key: word == "refused" for key, word in (OUTCOMES | NAGA).items()}
    adapters_own = {"matmul-memory"}  # some adapters have no more than the guaranteed workgroup memory
    assert {k: v for k, v in found.items() if k not in adapters_own} == {
        k: v for k, v in refused.items() if k not in adapters_own
    }


# --- the rules of ours.json ----------------------------------------------------------------


def _product(kind: str) -> Callable[[Device, dict[str, float]], None]:
    def call(device: Device, s: dict[str, float]) -> None:
        with device.using(replace(device.tuning, matmul=kind, share="none", words="u32")):
            matmul_nt(device.empty((s["m"], s["k"])), device.empty((s["n"], s["k"])))

    return call


def _layer_norm(device: Device, s: dict[str, float]) -> None:
    vectors = [device.empty((s["columns"],)) for _ in range(2)]
    layer_norm(device.empty((s["rows"], s["columns"])), *vectors, s["eps"])


def _attention(device: Device, s: dict[str, float]) -> None:
    kv = [device.empty((s["positions"], 64)) for _ in range(2)]
    attention(device.empty((s["rows"], 64)), *kv, scale=s["scale"])


CALLS: dict[str, Callable[[Device, dict[str, Any]], object]] = {
    "scale": lambda device, s: scale(device.empty((s["count"],)), s["factor"]),
    "gelu": lambda device, s: gelu(device.empty((s["count"],))),
    "layer_norm": _layer_norm,
    "product_rows": _product("rows"),
    "product_tiled": _product("tiled"),
    "attention": _attention,
}
ODD = {"count": 1001, "rows": 37, "columns": 97, "m": 77, "n": 131, "k": 67, "positions": 205}


@pytest.mark.parametrize("name", CALLS)
def test_rules_are_those_of_the_wrappers(name: str, baseline: Device) -> None:
    """Program, workgroups and uniforms that the page computes, against the call that the kernel's wrapper makes."""
    made, measuring = script("make_wgsl_page"), script("measure_wgsl_page")
    shown = made.SHOWN[name]
    (lesson,) = (lesson for lesson in LESSONS.values() if name in lesson["ours"])
    for sizes in (lesson["sizes"], lesson["sizes"] | {k: v for k, v in ODD.items() if k in lesson["sizes"]}):
        baseline._kernels.recorded = calls = []
        try:
            CALLS[name](baseline, sizes)
        finally:
            baseline._kernels.recorded = None
        (call,) = calls
        assert call.program.label == shown.program.label
        assert call.groups == measuring.evaluate(shown.grid, sizes)
        fields = made.described(shown)["params"]
        values = [measuring.evaluate(formula, sizes) for _, _, formula in fields]
        kinds = {"u32": "I", "f32": "f"}
        packed = b"".join(
            struct.pack(f"<{kinds[kind]}", v if kind == "f32" else int(v))
            for (_, kind, _), v in zip(fields, values, strict=True)
        )
        assert call.params[: len(packed)] == packed, (name, sizes)


# --- in a browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The page, served on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=PAGE))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium with WebGPU; skips where Playwright or Chromium is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as p:
        launched = p.chromium.launch(executable_path=str(CHROMIUM), args=script("measure_wgsl_page").FLAGS.split())
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, as it opens."""
    opened = browser.new_page()
    opened.goto(address)
    opened.wait_for_function("window.lessonPage")
    yield opened
    opened.close()


@pytest.mark.slow
def test_lessons_do_in_a_browser_what_the_article_says(page: Any) -> None:
    found = page.evaluate("lessonPage.runAll()")
    assert {key: got["outcome"] for key, got in found.items()} == OUTCOMES, json.dumps(found, indent=1)
    assert all(got["expected"] == OUTCOMES[key] for key, got in found.items())
    for key, text in {
        "scale-access": "read-only",
        "scale-reserved": "reserved",
        "gelu-erf": "erf",
        "layernorm-divergent": "uniform control flow",
        "matmul-return": "uniform control flow",
        "matmul-memory": "16384 bytes",
    }.items():
        assert text in found[key]["message"]
    assert found["scale-unchecked"]["error"] == 0
    assert found["scale-unchecked"]["spoilt"] == 61
    for name, lesson in LESSONS.items():
        for key in (name, *(f"ours/{ours}" for ours in lesson["ours"])):
            assert found[key]["error"] <= lesson["bound"]
            assert found[key]["rate"] > 0


@pytest.mark.slow
def test_a_reader_edits_a_kernel_and_a_size(page: Any) -> None:
    card = page.locator("#scale")
    card.locator("summary", has_text="The whole text").click()
    area = card.get_by_label("Text of scale.wgsl")
    text = area.input_value()
    area.fill(text.replace("params.factor", "params.farctor"))
    card.get_by_role("button", name="Run").click()
    page.wait_for_selector('#scale[data-outcome="refused"]')
    line = next(i for i, row in enumerate(text.splitlines(), 1) if "params.factor" in row)
    assert card.locator(".numbers .bad").inner_text().strip() == str(line)
    assert "farctor" in card.locator("output").inner_text()
    card.get_by_role("button", name="Undo edits").click()
    page.get_by_label("Sizes of the lesson scale").get_by_label("count").fill("1024")
    page.keyboard.press("Tab")
    for name, outcome in (("scale", "right"), ("scale-unchecked", "right")):  # 1024 is a multiple of 64
        page.locator(f"#{name}").get_by_role("button", name="Run").click()
        page.wait_for_selector(f'#{name}[data-outcome="{outcome}"]')
    area.fill(text.replace("//! grid count/64", "//! grid cuont/64"))
    card.get_by_role("button", name="Run").click()
    page.wait_for_selector('#scale[data-outcome="refused"]')
    assert "cuont" in card.locator("output").inner_text()


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_never_scrolls_sideways(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(
        "[...document.querySelectorAll('input, textarea')].every((e) => e.labels.length || e.ariaLabel)"
    )


@pytest.mark.slow
def test_references_are_those_of_the_kernels(page: Any) -> None:
    """The page's float64 references, against numpy's of the kernels."""
    measuring = script("measure_wgsl_page")
    small = {"count": 500, "rows": 7, "columns": 33, "m": 9, "n": 11, "k": 13, "positions": 70}
    for name, lesson in LESSONS.items():
        sizes = lesson["sizes"] | {k: v for k, v in small.items() if k in lesson["sizes"]}
        a = measuring.inputs(lesson | {"sizes": sizes})
        tensors = {key: {"shape": list(t.shape), "values": t.ravel().tolist()} for key, t in a.items()}
        got = page.evaluate(
            """async ([name, tensors, sizes]) => {
                const { references } = await import("/reference.js");
                for (const t of Object.values(tensors)) t.values = Float32Array.from(t.values);
                return Array.from(references[name](tensors, sizes));
            }""",
            [name, tensors, sizes],
        )
        want = measuring.expected(name, a, sizes).ravel()
        assert np.allclose(got, want, rtol=1e-12, atol=1e-12 * np.abs(want).max()), name
