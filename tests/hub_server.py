"""A stand-in for the Hugging Face hub on 127.0.0.1: real HTTP, a log of its requests, and faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


def git_hash(data: bytes) -> str:
    """The SHA-1 of a git blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(name: str) -> bool:
    """Whether the hub keeps a file apart (Git LFS), and announces its SHA-256."""
    return name.endswith((".safetensors", ".gguf", ".bin"))


@dataclass
class Request:
    """A request that the server got, and what it answered."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int = 0
    sent: int = 0


@dataclass
class Faults:
    """What goes wrong. ``cut`` has bytes per file name after which the connection breaks, each time again for every
    element of the list; ``stall`` bytes after which nothing follows."""

    gated: int | None = None
    status: int | None = None
    silent: bool = False
    cut: dict[str, list[int]] = field(default_factory=dict)
    stall: dict[str, int] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
    announces: bool = True
    ranges: bool = True


class Hub:
    """The server: ``repos`` has the commits of each repo's revisions, ``commits`` their files."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, str]] = {}
        self.commits: dict[str, Files] = {}
        self.log: list[Request] = []
        self.faults = Faults()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        """Stop it, and the answers that stall."""
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def add(self, repo: str, files: Files, revision: str = "main") -> str:
        """Add a commit to a repo; returns its hash."""
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[digest] = files
        self.repos.setdefault(repo, {})[revision] = digest
        return digest

    def take_log(self) -> list[Request]:
        """The requests since the last call."""
        taken, self.log = self.log, []
        return taken

    def fetched(self) -> list[str]:
        """The files that were asked for since the last call, in order. Those of the storage server count once."""
        return [r.path.rpartition("/resolve/")[2].partition("/")[2] for r in self.take_log() if "/resolve/" in r.path]


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.1, as the hub's routes behave: errors are named in headers, large files come from another host."""

    protocol_version = "HTTP/1.1"
    server_hub: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server_hub
        path = unquote(urlsplit(self.path).path)
        self.request_seen = Request(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        hub.log.append(self.request_seen)
        if hub.faults.silent:
            hub.stopped.wait(30)
            self.close_connection = True
        elif hub.faults.status:
            self._fail(hub.faults.status, "")
        elif path.startswith("/storage/"):
            self._storage(path.removeprefix("/storage/"))
        elif path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
        else:
            self._resolve(path.removeprefix("/"))

    def _fail(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _api(self, path: str) -> None:
        hub = self.server_hub
        repo, tree, revision = path.partition("/tree/")
        if not tree:
            repo, _, revision = path.partition("/revision/")
        if repo not in hub.repos:
            self._fail(401, "RepoNotFound")  # without a token, the hub does not say whether it is private
            return
        commit = self._commit(repo, revision or "main")
        if commit is None:
            self._fail(404, "RevisionNotFound")
            return
        if tree:
            entries = [self._entry(name, data) for name, data in hub.commits[commit].items()]
            self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
            return
        siblings = [self._sibling(name, data) for name, data in hub.commits[commit].items()]
        value = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": [], "private": False}
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _commit(self, repo: str, revision: str) -> str | None:
        known = self.server_hub.repos[repo]
        return known.get(revision) or (revision if revision in known.values() else None)

    def _sibling(self, name: str, data: bytes) -> dict[str, object]:
        value: dict[str, object] = {"rfilename": name}
        if self.server_hub.faults.announces:
            value |= {"size": len(data), "blobId": git_hash(data)}
            if is_large(name):
                value["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
        return value

    def _entry(self, name: str, data: bytes) -> dict[str, object]:
        value: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": git_hash(data)}
        if is_large(name):
            value["lfs"] = {"size": len(data), "oid": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
        return value

    def _resolve(self, path: str) -> None:
        hub = self.server_hub
        repo, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        if hub.faults.gated:
            self._fail(hub.faults.gated, "GatedRepo")
            return
        commit = self._commit(repo, revision) if repo in hub.repos else None
        data = hub.commits[commit].get(name) if commit else None
        if commit is None or data is None:
            self._fail(404, "EntryNotFound")
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_hash(data)}"'}
        if is_large(name):
            digest = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{digest}"'}
            # Another host for the client: it must not get the token.
            headers["Location"] = f"http://localhost:{hub.server.server_port}/storage/{commit}/{name}"
            self._send(302, b"", headers)
        else:
            self._serve(name, data, headers)

    def _storage(self, path: str) -> None:
        commit, _, name = path.partition("/")
        self._serve(name, self.server_hub.commits[commit][name], {})

    def _serve(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        faults = self.server_hub.faults
        data = faults.content.get(name, data)
        asked, status, begin, end = self.headers.get("Range"), 200, 0, len(data)
        if asked and faults.ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last) + 1, len(data)) if last else len(data)
            if begin >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            status, headers = 206, headers | {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}
        limit = faults.cut[name].pop(0) if faults.cut.get(name) else None
        self._send(status, data[begin:end], headers, limit, faults.stall.get(name))

    def _send(
        self, status: int, data: bytes, headers: dict[str, str], cut: int | None = None, stall: int | None = None
    ) -> None:
        self.request_seen.status = status
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        part = data[: stall if cut is None else cut]
        self.request_seen.sent = len(part)
        try:
            self.wfile.write(part)
            self.wfile.flush()
        except OSError:  # the client went away
            self.close_connection = True
            return
        if len(part) < len(data):
            self.close_connection = True
            if stall is not None and cut is None:
                self.server_hub.stopped.wait(30)


def model_files(directory: Path) -> Files:
    """The files of a model directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def wait_until(true: object, seconds: float = 20.0) -> None:
    """Wait for a condition (a function), and fail if it does not come true."""
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)
