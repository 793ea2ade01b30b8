"""Pages of Chromium that are measured in turns, and the local server of their files; part of bench_browser.py."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turns import Entry

FLAGS = (
    "--no-sandbox",
    "--enable-unsafe-webgpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves folders by the first name in the path. Pages are isolated, so that engines may use threads."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def __init__(self, folders: dict[str, Path], *args: Any, **kwargs: Any):
        self.folders = folders
        super().__init__(*args, **kwargs)

    def translate_path(self, path: str) -> str:
        """The file of an address; one that does not exist, if the address leads out of its folder."""
        first, _, rest = urllib.parse.unquote(path.split("?")[0]).lstrip("/").partition("/")
        root = self.folders.get(first, Path("/nowhere"))
        file = (root / rest).resolve()
        return str(file if file.is_relative_to(root) else root / "nothing")

    def end_headers(self) -> None:
        """Add the headers of every answer."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "max-age=86400")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextlib.contextmanager
def serve_folders(folders: dict[str, Path]) -> Iterator[str]:
    """Serve folders by name on this machine; gives the address."""
    handler = functools.partial(Handler, {name: folder.resolve() for name, folder in folders.items()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@dataclass
class Page(Entry):
    """An engine in a page of its own, in a browser that is started for every turn and keeps its caches.

    Attributes:
        address: of the server.
        profile: the folder of the browser's caches.
        job: what the page does (browser_page.mjs).
        executable: the browser.
        cold: seconds from the page's opening to the first token, in the first turn, whose caches are empty.
        varied: whether a turn gave other greedy tokens than the first one.
    """

    address: str = ""
    profile: Path = Path()
    job: dict[str, Any] = field(default_factory=dict)
    executable: str = ""
    cold: float = 0.0
    varied: bool = False

    def start(self) -> None:
        """Run a turn that fills the caches and is not counted."""
        if found := self._turn():
            self.cold, self.tokens = found["speeds"]["load"], found["tokens"]
            self.version, self.device = found["about"], found["adapter"]

    def take(self, test: str) -> None:
        """Run a turn with all tests. The name of the test is that of the page."""
        if self.failure or not (found := self._turn()):
            return
        self.varied |= found["tokens"] != self.tokens
        for name, value in found["speeds"].items():
            self.samples.setdefault(name, []).append(value)

    def _turn(self) -> dict[str, Any]:
        """What a page found; empty, with ``failure`` set, if it failed."""
        from playwright.sync_api import Error, sync_playwright

        url = f"{self.address}/bench/browser_page.html#{urllib.parse.quote(json.dumps(self.job))}"
        with sync_playwright() as playwright:
            options: dict[str, Any] = {"executable_path": self.executable, "args": FLAGS, "headless": True}
            context = playwright.chromium.launch_persistent_context(self.profile, **options)
            try:
                page = context.new_page()
                page.goto(url)
                page.wait_for_function("window.outcome !== undefined", timeout=self.limit * 1e3)
                found: dict[str, Any] = page.evaluate("window.outcome")
                found["adapter"] = page.evaluate(ADAPTER) if self.backend == "WebGPU" else "CPU"
            except Error as error:
                found = {"failure": str(error)}
            finally:
                context.close()
        self.failure = found.get("failure", "").split("\n")[0][:200]
        return {} if self.failure else found


ADAPTER = """async () => {
  const { info, features } = await navigator.gpu.requestAdapter();
  const f16 = features.has("shader-f16") ? "with" : "without";
  return `${info.vendor} ${info.architecture}, ${f16} shader-f16`;
}"""
