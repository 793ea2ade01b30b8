"""The engines that scripts/bench_invariance.py measures: llamagpu, and llama.cpp's server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llamagpu import LLM, gpu
from llamagpu.engine.request import Reuse
from llamagpu.version import __version__

DRAWN = {"temperature": 0.8, "top_k": 40}  # settings of answers that are drawn with a seed
MOST_AT_ONCE = 32
LIMIT = 600.0  # seconds that llama-server may take to answer
PROMPT, DRAFT, PREEMPTION = "speculation from the prompt", "speculation with a draft model", "preemption"


class Opened(Protocol):
    """An engine with the model loaded."""

    def ask(self, ids: Sequence[int], tokens: int, seed: int | None, reuse: Reuse) -> list[int]:
        """Up to ``tokens`` new token ids, with what the cache may be used for: see ``LLM.generate``."""

    def warm(self, ids: Sequence[int]) -> None:
        """Leave a beginning in the cache."""

    def gap(self, ids: Sequence[int]) -> float:
        """How far the likeliest next token's logit is above the second's."""

    def note(self) -> str:
        """What happened since the last note, as the page tells it."""


class Engine(Protocol):
    """An engine that can be opened in several modes."""

    name: str
    version: str
    modes: frozenset[str]

    def open(self, mode: str) -> AbstractContextManager[Opened]:
        """Load the model."""


class OpenedLLM:
    """llamagpu, through its public interface."""

    def __init__(self, llm: LLM, mode: str):
        self._llm, self._mode = llm, mode
        self._cached: list[int] = []  # tokens of every prompt that came from the cache

    def ask(self, ids: Sequence[int], tokens: int, seed: int | None, reuse: Reuse) -> list[int]:
        """See ``Opened``."""
        settings: dict[str, Any] = {"temperature": 0.0} if seed is None else DRAWN | {"seed": seed}
        with self._llm.stream(list(ids), reuse=reuse, max_tokens=tokens, **settings) as stream:
            self._cached.append(stream.result.cached_tokens)
            return stream.result.token_ids

    def warm(self, ids: Sequence[int]) -> None:
        """See ``Opened``."""
        with self._llm.stream(list(ids), max_tokens=1) as stream:
            assert stream.result.token_ids

    def gap(self, ids: Sequence[int]) -> float:
        """See ``Opened``."""
        second, first = np.sort(self._llm.logits(ids, first=len(ids) - 1)[0])[-2:]
        return float(first - second)

    def note(self) -> str:
        """See ``Opened``."""
        cached, self._cached = sum(self._cached), []
        if self._mode != PREEMPTION:
            return f"{cached} tokens came from the cache" if cached else ""
        return f"preempted {self._llm.counters.preemptions} times, in a cache of {self._llm.sizes.pool} tokens"


class Ours:
    """llamagpu."""

    name = "llamagpu"

    def __init__(self, model: Path, longest: int):
        self._model = model
        self._options: dict[str, dict[str, Any]] = {
            "": {},
            PREEMPTION: {"context": longest},
            PROMPT: {"speculate": "prompt"},
            DRAFT: {"speculate": model},
        }
        self.modes = frozenset(self._options)
        self.version = ""

    @contextmanager
    def open(self, mode: str) -> Iterator[OpenedLLM]:
        """See ``Engine``."""
        options = dict(self._options[mode])
        if mode == PREEMPTION:
            with LLM(self._model, **options) as llm:  # its cache holds 8 contexts
                options["max_memory"] = llm.sizes.total - llm.sizes.kv * 5 // 8
        with LLM(self._model, **options) as llm:
            adapter = llm.device.adapter
            self.version = f"llamagpu {__version__}, {gpu.version()}, on {adapter}, {adapter.driver}"
            yield OpenedLLM(llm, mode)


class OpenedServer:
    """A llama-server that listens."""

    def __init__(self, address: str):
        self._address = address
        self._timings: list[dict[str, Any]] = []

    def ask(self, ids: Sequence[int], tokens: int, seed: int | None, reuse: Reuse) -> list[int]:
        """See ``Opened``."""
        settings = {"temperature": 0.0} if seed is None else DRAWN | {"seed": seed}
        found = self._completion(ids, tokens, settings | {"cache_prompt": reuse != "none"})
        self._timings.append(found["timings"])
        return list(found["tokens"])

    def warm(self, ids: Sequence[int]) -> None:
        """See ``Opened``."""
        self._completion(ids, 1, {"cache_prompt": True})

    def gap(self, ids: Sequence[int]) -> float:
        """See ``Opened``."""
        answer = self._completion(ids, 1, {"temperature": 0.0, "n_probs": 2, "cache_prompt": False})
        first, second = answer["completion_probabilities"][0]["top_logprobs"]
        return float(first["logprob"] - second["logprob"])

    def note(self) -> str:
        """See ``Opened``."""
        counts = (("tokens came from the cache", "cache_n"), ("drafted tokens were right", "draft_n_accepted"))
        sums = [(sum(t.get(key, 0) for t in self._timings), what) for what, key in counts]
        self._timings = []
        return ", ".join(f"{n} {what}" for n, what in sums if n)

    def answers(self) -> bool:
        """Whether it has loaded its model."""
        try:
            with urllib.request.urlopen(f"{self._address}/health", timeout=LIMIT):
                return True
        except urllib.error.URLError:
            return False

    def _completion(self, ids: Sequence[int], tokens: int, settings: dict[str, Any]) -> dict[str, Any]:
        body = {"prompt": list(ids), "n_predict": tokens, "return_tokens": True} | settings
        request = urllib.request.Request(f"{self._address}/completion", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=LIMIT) as response:
            return dict(json.load(response))


class LlamaServer:
    """llama.cpp's server on one device, with a slot for each of 32 requests, in every mode the same."""

    modes = frozenset(("", PROMPT, DRAFT))

    def __init__(self, binary: Path, model: Path, vulkan: bool, threads: int):
        self.name = f"llama.cpp, {'Vulkan' if vulkan else 'CPU'}"
        device = ["-ngl", "99"] if vulkan else ["--device", "none", "-ngl", "0"]
        slots = ["--parallel", str(MOST_AT_ONCE), "--ctx-size", str(512 * MOST_AT_ONCE)]
        self._command = [str(binary), "-m", str(model), "--threads", str(threads), *device, *slots]
        simple = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "2", "--spec-ngram-simple-size-m", "4"]
        draft = ["--spec-type", "draft-simple", "--spec-draft-model", str(model), "--spec-draft-n-max", "4"]
        self._options = {"": [], PROMPT: simple, DRAFT: draft}
        about = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=True)
        found = next(line for line in (about.stdout + about.stderr).splitlines() if line.startswith("version"))
        where = "CPU"
        if vulkan:
            devices = subprocess.run([str(binary), "--list-devices"], capture_output=True, text=True, env=_visible())
            line = next((line for line in devices.stdout.splitlines() if "Vulkan0" in line), None)
            if line is None:
                raise SystemExit(f"error: {binary} finds no Vulkan device.")
            where = line.split(":", 1)[1].rsplit("(", 1)[0].strip()  # without its free memory
        self.version = f"llama.cpp {found.split(':', 1)[1].strip()}, on {where}, {threads} thread{'s' * (threads > 1)}"

    @contextmanager
    def open(self, mode: str) -> Iterator[OpenedServer]:
        """See ``Engine``."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [*self._command, *self._options[mode], "--port", str(port)]
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_visible())
            server = OpenedServer(f"http://127.0.0.1:{port}")
            try:
                while not server.answers():
                    if process.poll() is not None:
                        log.seek(0)
                        raise RuntimeError(log.read().decode(errors="replace").strip().splitlines()[-1][:200])
                    time.sleep(0.2)
                yield server
            finally:
                process.kill()
                process.wait()


def _visible() -> dict[str, str]:
    """llama.cpp takes software devices for Vulkan only if they are named."""
    return os.environ | {"GGML_VK_VISIBLE_DEVICES": "0"}
