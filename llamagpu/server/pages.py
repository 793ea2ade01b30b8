"""The chat page, where the package has one: its files, and the module through which it talks to this server."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

SITE = Path(__file__).resolve().parent / "site"
# The system's table of types is not asked: on some machines it has others for scripts.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def add_pages(router: APIRouter, title: str) -> list[str]:
    """Serve the page. Each file has a route of its own, so no request names a path.

    Returns:
        the routes; none if the package has no page.
    """
    if importlib.util.find_spec("llamagpu.page") is None:
        return []
    page: Any = importlib.import_module("llamagpu.page")
    configuration = Response(page.configuration(title, local=False), media_type=_TYPES[".json"], headers=_HEADERS)
    files = {**page.files(), **{path.name: path for path in SITE.iterdir()}}
    routes = {f"/{name}": _sender(path) for name, path in files.items() if path.suffix in _TYPES}
    routes |= {"/": routes["/index.html"], "/page.json": lambda: configuration}
    for url, send in routes.items():
        router.add_api_route(url, send, methods=["GET", "HEAD"], response_model=None, include_in_schema=False)
    return list(routes)


def _sender(path: Path) -> Callable[[], Response]:
    return lambda: FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)
