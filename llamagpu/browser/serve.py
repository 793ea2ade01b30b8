"""A local web server for an exported site, to try it."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from llamagpu import page
from llamagpu.errors import LlamaGPUError, UsageError


class _Handler(SimpleHTTPRequestHandler):
    """Serves files with the types that browsers want, whatever the machine's own table says."""

    extensions_map = {  # noqa: RUF012 - as the base class declares it
        **page.MEDIA_TYPES,
        ".wgsl": "text/plain; charset=utf-8",
        "": "application/octet-stream",
    }

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # a new export must show at once
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: standard error is for people."""


def site_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of a site on this machine alone; 0 takes any free port. ``serve_forever`` runs it.

    Raises:
        UsageError: the folder is no site.
        LlamaGPUError: the port is taken.
    """
    if not (folder / "plan.json").is_file():
        raise UsageError(f"{folder} is not an exported site.", "It has no plan.json.", "Export a model to it.")
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(folder)))
    except OSError as e:
        raise LlamaGPUError(
            f"The port {port} cannot be used.", e.strerror or str(e), "Choose another --port; 0 takes any free one."
        ) from e
