"""The chat page, where the package has one: its files, and the module through which it talks to this server."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

_PACKAGE = Path(__file__).resolve().parent.parent
_PAGE, _SITE = _PACKAGE / "page", Path(__file__).resolve().parent / "site"
# The system's table of types is not asked: on some machines it has others for scripts.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page_files() -> dict[str, Path]:
    """The files by their paths in URLs; none if the package has no page."""
    index = _PAGE / "index.html"
    if not index.is_file():
        return {}
    files = {f"/{p.relative_to(root).as_posix()}": p for root in (_PAGE, _SITE) for p in root.rglob("*")}
    return {"/": index} | {url: path for url, path in files.items() if path.suffix in _TYPES and path.is_file()}


def add_pages(router: APIRouter, files: dict[str, Path]) -> None:
    """Serve files; each has a route of its own, so no request names a path."""
    for url, path in files.items():
        router.add_api_route(url, _sender(path), methods=["GET", "HEAD"], response_model=None, include_in_schema=False)


def _sender(path: Path):  # type: ignore[no-untyped-def]
    async def send() -> Response:
        return FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)

    return send
