"""JavaScript libraries of exported sites: fetched once, checked against their hashes, and what goes wrong."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llamagpu.browser.libraries import JINJA, LIBRARIES, REGISTRY, Library, fetched, write_libraries
from llamagpu.errors import LlamaGPUError, UsageError

MODULE, LICENSE = b"export const x = 1;\n", b"Do as you like.\n"


def packed(files: dict[str, bytes]) -> bytes:
    """A tarball as registries have them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


TARBALL = packed({"dist/index.js": MODULE, "LICENSE": LICENSE, "package.json": b"{}"})
TINY = Library(
    "@some/tiny",
    "1.2.3",
    base64.b64encode(hashlib.sha512(TARBALL).digest()).decode(),
    "package/dist/index.js",
    "tiny.js",
    "MIT",
)


class Registry:
    """A registry on this machine, with a log of the paths that were asked for."""

    def __init__(self) -> None:
        self.files = {"/npm/@some/tiny/-/tiny-1.2.3.tgz": TARBALL}
        self.asked: list[str] = []
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.asked.append(self.path)
                data = registry.files.get(self.path)
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/npm"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    made = Registry()
    monkeypatch.setenv(REGISTRY, made.address + "/")
    monkeypatch.setenv("LLAMAGPU_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.close()


def test_the_second_export_needs_no_network(registry: Registry, tmp_path: Path) -> None:
    first = write_libraries(tmp_path / "a", (TINY,))
    registry.close()
    second = write_libraries(tmp_path / "b", (TINY,))
    assert [p.name for p in first] == [p.name for p in second] == ["tiny.js", "tiny.LICENSE.txt"]
    assert second[0].read_bytes() == b"// @some/tiny 1.2.3, MIT: tiny.LICENSE.txt\n" + MODULE
    assert second[1].read_bytes() == LICENSE
    assert registry.asked == ["/npm/@some/tiny/-/tiny-1.2.3.tgz"]
    assert [p.name for p in TINY.cached.parent.iterdir()] == ["some-tiny-1.2.3.tgz"]


def test_a_damaged_file_in_the_cache_is_fetched_again(registry: Registry) -> None:
    fetched(TINY)
    TINY.cached.write_bytes(TARBALL[:-1])
    assert fetched(TINY) == TARBALL == TINY.cached.read_bytes()
    assert len(registry.asked) == 2


def test_another_hash_is_refused(registry: Registry, tmp_path: Path) -> None:
    registry.files = dict.fromkeys(registry.files, packed({"dist/index.js": b"steal()", "LICENSE": LICENSE}))
    with pytest.raises(LlamaGPUError, match="not the expected file") as caught:
        write_libraries(tmp_path / "site", (TINY,))
    assert "another SHA-512" in caught.value.why
    assert not TINY.cached.exists()
    assert not (tmp_path / "site").exists()


def test_a_registry_without_the_package(registry: Registry) -> None:
    with pytest.raises(LlamaGPUError, match="tiny 9 could not be fetched") as caught:
        fetched(replace(TINY, version="9"))
    assert f"{registry.address} answered 404 Not Found" in caught.value.why
    assert REGISTRY in caught.value.hint


def test_no_network(registry: Registry) -> None:
    registry.close()
    with pytest.raises(LlamaGPUError, match="could not be fetched") as caught:
        fetched(TINY)
    assert f"{registry.address} cannot be reached" in caught.value.why
    assert "Export once with a network" in caught.value.hint


@pytest.mark.parametrize("address", ["file:///etc", "registry", "https://", "https://me:secret@example.org/npm"])
def test_wrong_registries(registry: Registry, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv(REGISTRY, address)
    with pytest.raises(UsageError, match="not the address of a registry") as caught:
        fetched(TINY)
    assert "secret" not in str(caught.value)


def test_a_cache_that_cannot_be_written(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMAGPU_CACHE", str(tmp_path / "file"))
    with pytest.raises(LlamaGPUError, match="could not be written") as caught:
        fetched(TINY)
    assert "LLAMAGPU_CACHE" in caught.value.hint


def test_what_is_pinned() -> None:
    for library in LIBRARIES:
        assert len(base64.b64decode(library.integrity)) == 64
        assert library.version.count(".") == 2
    assert JINJA.tarball == f"@huggingface/jinja/-/jinja-{JINJA.version}.tgz"
