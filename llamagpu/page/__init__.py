"""The chat page: static files for a browser, the same in an exported site and at the root of the server.

The page expects two more files beside its own: ``page.json`` (`configuration`) and ``llamagpu.js``, the module that
runs the model. That module exports ``load(base, options)``.
"""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}


def files() -> dict[str, Path]:
    """The page's own files by name, all for one folder of a site."""
    return {path.name: path for path in sorted(FOLDER.iterdir()) if path.suffix in MEDIA_TYPES}


def configuration(title: str, *, download_bytes: int | None = None, local: bool = True) -> str:
    """The text of ``page.json``.

    Args:
        title: the model's name, shown until the module knows a better one.
        download_bytes: size of the model's files, shown before they are downloaded.
        local: whether the model runs in the browser. Then the page asks before it downloads the model, and says that
            no text leaves the device. A server's page loads at once.
    """
    return json.dumps({"title": title, "downloadBytes": download_bytes, "local": local}, ensure_ascii=False) + "\n"
