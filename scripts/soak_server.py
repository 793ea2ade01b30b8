#!/usr/bin/env python3
"""Keep `llamagpu serve` busy for a long time, and watch memory, files and pages: makes docs/server-soak.json and .md.

    python scripts/soak_server.py docs --minutes 10 --connections 10000

The server runs as users start it, with the bundled model and a random encoder, each in a process of its own. Clients
stream, chat, embed, go in the middle of an answer and send bodies that are wrong, at random. Greedy and seeded texts
and vectors are compared with those of a lone request. Then as many connections are opened as the limits of the machine
allow, while another client asks for /health.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests"), str(HERE.parent)]
import httpx  # noqa: E402
import psutil  # noqa: E402
import random_encoders  # noqa: E402
from turns import about_machine, machine  # noqa: E402

from llamagpu.version import __version__  # noqa: E402

CLIENTS = 24
PROMPTS = ["Once upon a time", "The little dog ran", "One day, a girl named Lily", "Tom had a red ball. " * 20]
TEXTS = [" ".join(f"a{i}" for i in range(n)) for n in (1, 7, 30, 90)]
COMPLETIONS, CHATS, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
SPARE_FILES = 300  # of a process that opens connections
# Path, body and the status that it must get.
WRONG: list[tuple[str, Any, int]] = [
    (COMPLETIONS, b"{", 400),
    (COMPLETIONS, b'{"prompt": ' + b"[" * 50_000, 400),
    (COMPLETIONS, {"model": "stories", "prompt": "a", "unknown": 1}, 400),
    (COMPLETIONS, {"model": "stories", "prompt": "a", "n": 1024}, 400),
    (COMPLETIONS, {"model": "stories", "prompt": "a " * 2000}, 400),
    (CHATS, {"model": "stories", "messages": [{"role": "pirate", "content": "a"}]}, 400),
    (CHATS, {"model": "nobody", "messages": [{"role": "user", "content": "a"}]}, 404),
    (EMBEDDINGS, {"model": "encoder", "input": [1, 2, 3]}, 400),
    ("/nothing", {}, 404),
    (COMPLETIONS, b'{"prompt": "' + b"a" * 8_000_000 + b'"}', 413),
]


class Clients:
    """Clients of a server: what they asked, and what was wrong."""

    def __init__(self, client: httpx.AsyncClient):
        self._client = client
        self.done: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.tokens = 0
        self._expected: dict[tuple[str, int], Any] = {}
        self._kinds: dict[str, Callable[[int], Awaitable[Any]]] = {
            "greedy streams": lambda i: self._stream(PROMPTS[i], max_tokens=24, temperature=0),
            "seeded streams": lambda i: self._stream(PROMPTS[i], max_tokens=24, temperature=0.9, seed=i),
            "vectors": self._embed,
        }

    async def learn(self) -> None:
        """The answers of lone requests."""
        for kind, ask in self._kinds.items():
            for i in range(4):
                self._expected[kind, i] = await ask(i)
        self.tokens = 0

    async def work(self, seed: int, until: float) -> None:
        """Requests of all kinds, one after another."""
        draw = random.Random(seed)
        others: dict[str, Callable[[], Awaitable[None]]] = {
            "chats": lambda: self._chat(draw.choice(PROMPTS)),
            "clients that went": lambda: self._leave(draw),
            "wrong bodies": lambda: self._send_wrong(*draw.choice(WRONG)),
            "looks at health and metrics": self._look,
        }
        while time.monotonic() < until:
            kind = draw.choice([*self._kinds, *others])
            try:
                if kind in others:
                    await others[kind]()
                else:
                    i = draw.randrange(4)
                    if await self._kinds[kind](i) != self._expected[kind, i]:
                        self.wrong[f"{kind}: another answer than alone"] += 1
                self.done[kind] += 1
            except Exception as e:
                self.wrong[f"{kind}: {type(e).__name__}: {e!s:.80}"] += 1

    async def _stream(self, prompt: str, **settings: Any) -> str:
        body = {"model": "stories", "prompt": prompt, "ignore_eos": True, "stream": True, **settings}
        text, ended = "", False
        async with self._client.stream("POST", COMPLETIONS, json=body) as response:
            assert response.status_code == 200, response.status_code
            async for line in response.aiter_lines():
                ended = ended or line == "data: [DONE]"
                if line.startswith("data: {"):
                    text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
        assert ended, "the stream has no end"
        self.tokens += settings["max_tokens"]
        return text

    async def _chat(self, text: str) -> None:
        body = {"model": "stories", "messages": [{"role": "user", "content": text}], "max_tokens": 16, "n": 2}
        found = (await self._posted(CHATS, body, 200)).json()
        assert len(found["choices"]) == 2
        self.tokens += found["usage"]["completion_tokens"]

    async def _embed(self, i: int) -> Any:
        found = await self._posted(EMBEDDINGS, {"model": "encoder", "input": TEXTS[: i + 1]}, 200)
        return [one["embedding"] for one in found.json()["data"]]

    async def _leave(self, draw: random.Random) -> None:
        body = {"model": "stories", "prompt": draw.choice(PROMPTS), "max_tokens": 400, "stream": True}
        async with self._client.stream("POST", COMPLETIONS, json=body) as response:
            left = draw.randrange(6)
            async for _ in response.aiter_lines():
                left -= 1
                if left < 0:
                    return

    async def _send_wrong(self, path: str, body: Any, status: int) -> None:
        await self._posted(path, body, status)

    async def _look(self) -> None:
        for path in ("/health", "/metrics"):
            response = await self._client.get(path)
            assert response.status_code == 200, response.status_code

    async def _posted(self, path: str, body: Any, status: int) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = await self._client.post(path, content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == status, response.status_code
        return response


# --- the server ------------------------------------------------------------------------------


@contextmanager
def serving(connections: int, log: Path) -> Iterator[tuple[psutil.Process, str]]:
    """`llamagpu serve` with two models, and its URL."""
    raw = random_encoders.CONFIGS["bert"]
    with tempfile.TemporaryDirectory() as folder, log.open("w") as errors:
        random_encoders.write_model(Path(folder), raw, random_encoders.tensors(raw, 1))
        command = [sys.executable, "-m", "llamagpu", "serve", "--port", "0", "--max-connections", str(connections)]
        models = ["-m", f"stories={HERE.parent / 'weights' / 'stories'}", "-m", f"encoder={folder}"]
        with subprocess.Popen([*command, *models], stderr=errors, cwd=HERE.parent) as process:
            try:
                while "http://" not in log.read_text():
                    if process.poll() is not None:
                        raise SystemExit(f"error: the server ended.\n{log.read_text()}")
                    time.sleep(0.1)
                yield psutil.Process(process.pid), log.read_text().split()[-1]
            finally:
                process.terminate()


def figures(server: psutil.Process) -> dict[str, int]:
    """What must not grow."""
    models = server.children()
    return {
        "server, resident MB": server.memory_info().rss >> 20,
        "processes of models, resident MB": sum(m.memory_info().rss for m in models) >> 20,
        "server, open files": server.num_fds(),
        "processes of models, open files": sum(m.num_fds() for m in models),
        "processes of models": len(models),
    }


async def pages_in_use(client: httpx.AsyncClient) -> float:
    """The used part of the cache, when what clients left has ended."""
    for _ in range(100):
        lines = (await client.get("/metrics")).text.splitlines()
        used = next(float(line.split()[-1]) for line in lines if line.startswith("vllm:kv_cache_usage_perc{"))
        if used == 0:
            break
        await asyncio.sleep(0.1)
    return used


async def soak(url: str, server: psutil.Process, minutes: float) -> dict[str, Any]:
    """Run all clients for so many minutes."""
    seen: list[dict[str, int]] = []
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        clients = Clients(client)
        await clients.learn()
        begin = time.monotonic()

        async def watch() -> None:
            for part in (0.1, 0.55, 1.0):  # the first look is after what is made once was made
                await asyncio.sleep(max(0.0, begin + 60 * minutes * part - time.monotonic()))
                seen.append(figures(server))
                print(f"{time.monotonic() - begin:7.1f} s {seen[-1]} {dict(clients.wrong)}", flush=True)

        work = (clients.work(n, begin + 60 * minutes) for n in range(CLIENTS))
        await asyncio.gather(watch(), *work)
        used = await pages_in_use(client)
    about = {"done": dict(clients.done), "wrong": dict(clients.wrong), "tokens": clients.tokens}
    return about | {"figures": seen, "cache used": used}


# --- connections -----------------------------------------------------------------------------


async def crowd(url: str, server: psutil.Process, wanted: int) -> dict[str, Any]:
    """Open connections, wait until all are open, and send a request on each; another client asks for /health."""
    host, port = url.removeprefix("http://").split(":")
    open_now: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    failed: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    waits: list[float] = []
    over = asyncio.Event()

    async def look() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            while not over.is_set():
                begin = time.perf_counter()
                assert (await client.get("/health")).status_code == 200
                waits.append(time.perf_counter() - begin)
                await asyncio.sleep(0.05)

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(f"GET /health HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            line = await asyncio.wait_for(reader.readline(), 120)
            answers[line.split()[1].decode() if line else "closed"] += 1
        except OSError as e:
            answers[type(e).__name__] += 1

    looking = asyncio.create_task(look())
    before, begin = server.memory_info().rss >> 20, time.monotonic()
    for _ in range(wanted):
        try:
            open_now.append(await asyncio.open_connection(host, int(port)))
        except OSError as e:
            failed[type(e).__name__] += 1
    seconds, held = time.monotonic() - begin, server.memory_info().rss >> 20
    files = server.num_fds()
    await asyncio.gather(*(ask(*pair) for pair in open_now))
    over.set()
    await looking
    for _, writer in open_now:
        writer.close()
    waits.sort()
    latency = {"median": statistics.median(waits), "99 %": waits[len(waits) * 99 // 100], "longest": waits[-1]}
    return {
        "wanted": wanted,
        "opened": len(open_now),
        "seconds": round(seconds, 1),
        "failed": dict(failed),
        "answers": dict(answers),
        "resident MB": [before, held, server.memory_info().rss >> 20],
        "files": files,
        "health ms": {name: round(1000 * value, 1) for name, value in latency.items()},
    }


# --- the page --------------------------------------------------------------------------------


def page(found: dict[str, Any]) -> str:
    """The text of docs/server-soak.md."""
    s, c = found["soak"], found["crowd"]
    wrong = "; ".join(f"{n} × {what}" for what, n in s["wrong"].items()) or "none"
    requests = sum(s["done"].values())
    answers = ", ".join(f"{n:,} × {what}" for what, n in c["answers"].items())
    failed = ", ".join(f"{n:,} × {what}" for what, n in c["failed"].items()) or "none"
    before, held, after = c["resident MB"]
    health = ", ".join(f"{name} {ms:g} ms" for name, ms in c["health ms"].items())
    lines = ["# A server for a long time", "", about_machine(found["machine"]), found["beside"], ""]
    lines += [
        f"{found['minutes']:g} minutes of {CLIENTS} clients: {requests:,} requests, {s['tokens']:,} tokens.",
        f"Unexpected statuses, broken streams and answers unlike those of a lone request: {wrong}.",
        "",
        "| requests | number |",
        "| --- | ---: |",
        *(f"| {kind} | {n:,} |" for kind, n in sorted(s["done"].items())),
        "",
        "| | after a tenth | in the middle | at the end |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {name} | {' | '.join(f'{f[name]:,}' for f in s['figures'])} |" for name in s["figures"][0]),
        "",
        f"Used part of the cache at the end, without requests: {s['cache used']:g}.",
        "",
        "## Connections",
        "",
        f"{c['wanted']:,} connections were wanted, and {c['opened']:,} opened one after another in {c['seconds']:g} s.",
        f"They stayed open without a request. The system refused: {failed}. Then a request came on each at once.",
        f"The answers: {answers}.",
        f"The server may hold {found['most']:,} (`--max-connections`). It had {c['files']:,} open files, and",
        f"{before} MB of memory before, {held} MB with all connections open, {after} MB after their answers.",
        f"Another client's `/health` meanwhile: {health}.",
        "",
        f"llamagpu {found['version']}. Made by `python scripts/soak_server.py docs --minutes {found['minutes']:g} "
        f"--connections {c['wanted']}`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=10_000, help="as far as the limit of open files allows")
    o = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted, load = min(o.connections, hard - SPARE_FILES), psutil.getloadavg()[0]
    most = wanted + CLIENTS + 1
    with tempfile.TemporaryDirectory() as folder, serving(most, Path(folder) / "log") as (server, url):
        found: dict[str, Any] = {"version": __version__, "machine": machine(), "minutes": o.minutes, "most": most}
        found["beside"] = (
            f"The machine's load was {load:.1f} when it began: other work ran beside it." if load > 1 else ""
        )
        found["soak"] = asyncio.run(soak(url, server, o.minutes))
        found["crowd"] = asyncio.run(crowd(url, server, wanted))
    (o.out / "server-soak.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (o.out / "server-soak.md").write_text(page(found), encoding="utf-8")
    print(page(found))
    sys.exit(bool(found["soak"]["wrong"]))


if __name__ == "__main__":
    main()
