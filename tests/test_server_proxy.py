"""Two servers behind nginx, with the configuration of docs/scaling.md."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import CHAT, MESSAGES, eventually
from test_server_life import process

pytestmark = pytest.mark.slow
PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
NAME = "chat.example"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def nginx(folder: Path, ports: list[int]) -> Iterator[str]:
    """The URL of nginx with the page's configuration and these ports. Only places of files and ports are changed."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not here (apt install nginx-light)")
    found = re.search(r"```nginx\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    port, text = free_port(), found[1]
    for old, new in (("listen 80;", f"listen 127.0.0.1:{port};"), (":8001", f":{ports[0]}"), (":8002", f":{ports[1]}")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    places = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = f"pid {folder}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{places}{text}}}\n"
    (folder / "nginx.conf").write_text(whole)
    command = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "error.log", "-g", "daemon off;"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        eventually(lambda: answers(port) or running.poll() is not None, 10)
        assert running.poll() is None, running.stderr and running.stderr.read()
        yield f"http://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.communicate(timeout=10)


def answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def chats(url: str) -> float:
    """Chats that a server answered."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    samples = [s for family in families for s in family.samples if s.name == "llamagpu:responses_total"]
    return sum(s.value for s in samples if s.labels.get("route") == CHAT and s.labels.get("status") == "200")


def turns(name: str, system: str | None) -> list[list[dict[str, str]]]:
    """A conversation as it grows: the messages of each of its requests."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    grown = []
    for turn in range(4):
        messages = [*messages, {"role": "user", "content": f"{name} asks question {turn}"}]
        grown.append(messages)
        messages = [*messages, {"role": "assistant", "content": f'Answer {turn} with {{braces}} and "quotes".'}]
    return grown


def test_requests_go_by_conversation_and_away_from_the_dead(tmp_path: Path) -> None:
    with (
        process("--allow-host", NAME, "--no-isolate") as (one, first),
        process("--allow-host", NAME, "--no-isolate") as (_, second),
        nginx(tmp_path, [int(url.rsplit(":", 1)[1]) for url in (first, second)]) as url,
        httpx.Client(base_url=url, headers={"Host": NAME}, timeout=30) as client,
    ):
        check_stickiness(client, (first, second))
        check_streaming(client)
        check_cancelling(client, (first, second))
        one.send_signal(signal.SIGKILL)
        one.wait()
        for name in range(20):
            assert ask(client, [{"role": "user", "content": f"After {name}"}]).status_code == 200


def ask(client: httpx.Client, messages: list[dict[str, str]], **headers: str) -> httpx.Response:
    return client.post(CHAT, json={"messages": messages, "max_tokens": 1}, headers=headers)


def check_stickiness(client: httpx.Client, servers: tuple[str, str]) -> None:
    """All requests of a conversation, or of a session, go to one server; both servers get some."""
    used: Counter[bool] = Counter()
    for name in range(12):
        before = [chats(url) for url in servers]
        for messages in turns(f"Client {name}", None if name % 2 else "Be brief."):
            assert ask(client, messages).status_code == 200
        grown = [chats(url) - b for url, b in zip(servers, before, strict=True)]
        assert sorted(grown) == [0, 4], f"conversation {name}"
        used[grown[0] == 4] += 1
    assert len(used) == 2
    before = [chats(url) for url in servers]
    for name in range(8):
        ask(client, turns(f"Client {name}", None)[0], **{"X-Session": "one"})
    assert sorted(chats(url) - b for url, b in zip(servers, before, strict=True)) == [0, 8]


def check_streaming(client: httpx.Client) -> None:
    """Tokens come one by one, not together at the end."""
    body = {"messages": MESSAGES, "max_tokens": 200, "ignore_eos": True, "stream": True}
    with client.stream("POST", CHAT, json=body) as response:
        times = [time.monotonic() for line in response.iter_lines() if line.startswith("data: {")]
    assert len(times) > 50
    assert times[len(times) // 2] - times[0] > 0.2 * (times[-1] - times[0])
    assert len({round(t, 2) for t in times}) > 10


def check_cancelling(client: httpx.Client, servers: tuple[str, str]) -> None:
    """A client that goes ends its generation."""
    body: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 480, "ignore_eos": True, "stream": True}
    with client.stream("POST", CHAT, json=body) as response:
        next(response.iter_lines())

    def idle(url: str) -> bool:
        text = httpx.get(f"{url}/metrics").text
        return 'vllm:num_requests_running{model_name="stories"} 0.0' in text

    eventually(lambda: all(map(idle, servers)))
