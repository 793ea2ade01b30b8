"""The server under many clients at once: every answer is the right one, and what clients leave behind is freed."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest
import serving
from faults import Fault
from serving import eventually
from test_isolated import kill

from llamagpu import LLM
from llamagpu.engine import isolated
from llamagpu.gpu import recovery

pytestmark = pytest.mark.slow
TOKENS = 6
COMPLETIONS = "/v1/completions"


@dataclass(frozen=True)
class Answer:
    """A text, and the log-probabilities of its tokens, which tell prompts with the same text apart."""

    text: str
    logprobs: tuple[float, ...]


@dataclass
class Clients:
    """Clients of a server, and what they found."""

    url: str
    answers: dict[int, Answer] = field(default_factory=dict)
    refused: int = 0
    waits: list[int] = field(default_factory=list)

    def run(self, work: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
        """Let clients work on a loop of their own."""

        async def main() -> None:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=self.url, timeout=60, limits=limits) as client:
                await work(client)

        serving.run_apart(main())

    async def ask(self, client: httpx.AsyncClient, nonce: int, *, patient: bool) -> None:
        """Ask for the text after a prompt with a nonce; a patient client comes again when it is told to."""
        body = {
            "prompt": prompt(nonce),
            "max_tokens": TOKENS,
            "temperature": 0,
            "logprobs": 1,
            "stream": nonce % 2 == 0,
        }
        while True:
            response = await client.post(COMPLETIONS, json=body)
            if response.status_code == 200:
                assert nonce not in self.answers
                self.answers[nonce] = answer(chunks(response.text) if body["stream"] else response.json()["choices"])
                return
            assert response.status_code == 429, response.text
            self.refused += 1
            self.waits.append(int(response.headers["retry-after"]))
            if not patient:
                return
            await asyncio.sleep(self.waits[-1])


def prompt(nonce: int) -> str:
    """A prompt that no other request has."""
    return f"{nonce} cats"


def answer(choices: list[dict[str, Any]]) -> Answer:
    """The answer of a whole response's choice, or of the choices of all chunks."""
    assert choices[-1]["finish_reason"] in ("length", "stop")
    logprobs = [p for c in choices if c["logprobs"] for p in c["logprobs"]["token_logprobs"]]
    return Answer("".join(c["text"] for c in choices), tuple(logprobs))


def chunks(text: str) -> list[dict[str, Any]]:
    """The choices of a stream's events, which must be whole."""
    data = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(line)["choices"][0] for line in data]


def right(llm: LLM, answers: dict[int, Answer], count: int) -> None:
    """Compare some answers, drawn at random, with those of lone runs. Those of prompts that were computed again on
    another device may differ in the last bits of their probabilities."""
    for nonce, found in random.Random(count).sample(sorted(answers.items()), count):
        alone = llm.generate(prompt(nonce), max_tokens=TOKENS, logprobs=1)
        assert found.text == alone.text, nonce
        assert found.logprobs == pytest.approx([t.logprob for t in alone.logprobs or ()], abs=1e-4), nonce


@pytest.fixture(scope="module")
def child() -> Iterator[LLM]:
    """A model in a process of its own."""
    with LLM(isolate=True) as llm:
        yield llm


def crowd(clients: int, each: int, found: Clients) -> None:
    """So many clients, each with its requests one after another."""

    async def work(client: httpx.AsyncClient) -> None:
        async def one(number: int) -> None:
            for i in range(each):
                await found.ask(client, 1000 * number + i, patient=True)

        await asyncio.gather(*(one(number) for number in range(clients)))

    found.run(work)


def burst(requests: int, found: Clients, *, patient: bool) -> None:
    """So many requests at once."""

    async def work(client: httpx.AsyncClient) -> None:
        await asyncio.gather(*(found.ask(client, i, patient=patient) for i in range(requests)))

    found.run(work)


def in_the_middle(found: Clients, after: int, harm: Callable[[], None]) -> threading.Thread:
    """A thread that does harm when some answers have come."""

    def work() -> None:
        eventually(lambda: len(found.answers) >= after, 60)
        harm()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_every_answer_belongs_to_its_request(story: LLM) -> None:
    with serving.running(serving.Borrowed(stories=story)) as url:
        found = Clients(url)
        crowd(64, 20, found)
    assert len(found.answers) == 64 * 20
    assert found.refused == 0
    assert len(set(found.answers.values())) == 64 * 20  # so an answer tells its request
    right(story, found.answers, 200)


def test_a_full_queue_refuses_and_patience_is_rewarded(story: LLM) -> None:
    models = serving.Borrowed(places=8, queue=16, stories=story)
    with serving.running(models) as url:
        hasty, patient = Clients(url), Clients(url)
        burst(200, hasty, patient=False)
        assert len(hasty.answers) + hasty.refused == 200
        assert hasty.refused > 100  # those that are being tokenized count too
        assert len(hasty.answers) >= 8 + 16
        burst(200, patient, patient=True)
        assert len(patient.answers) == 200
        gate = models.served["stories"].gate
        assert (gate.running, gate.waiting) == (0, 0)
    assert all(1 <= wait <= 60 for wait in hasty.waits + patient.waits)
    right(story, hasty.answers, 20)
    right(story, patient.answers, 60)


@pytest.mark.parametrize("kind", ["crowd", "burst"])
def test_a_lost_device_costs_no_answer(kind: str, story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a crowd that comes back and of a burst beyond the queue: every answer is right, or was refused as busy."""
    monkeypatch.setattr(recovery, "AGAIN_SECONDS", 0.0)
    queue = 64 if kind == "crowd" else 16
    with LLM() as llm, serving.running(serving.Borrowed(places=8, queue=queue, stories=llm)) as url:
        found, losses = Clients(url), llm.device.recovery.losses
        with Fault("submit", at=60 if kind == "crowd" else 8).injected() as fault:
            crowd(64, 4, found) if kind == "crowd" else burst(200, found, patient=False)
        assert fault.fired
        assert llm.device.recovery.losses > losses
        assert httpx.get(f"{url}/health").status_code == 200
    assert len(found.answers) + found.refused == (256 if kind == "crowd" else 200)
    assert (found.refused == 0) == (kind == "crowd")
    assert len(found.answers) >= 8 + 16
    right(story, found.answers, min(60, len(found.answers)))


def test_an_abort_of_the_driver_costs_no_answer(story: LLM, child: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "AGAIN_SECONDS", 0.0)
    deaths = child._session._supervisor.deaths  # type: ignore[union-attr]
    with serving.running(serving.Borrowed(places=8, queue=16, stories=child)) as url:
        for number, load in enumerate((lambda f: crowd(32, 3, f), lambda f: burst(200, f, patient=True))):
            found = Clients(url)
            harm = in_the_middle(found, 10, lambda: kill(child))
            load(found)
            harm.join()
            assert len(found.answers) == (96, 200)[number]
            right(story, found.answers, 60)
    assert child._session._supervisor.deaths == deaths + 2  # type: ignore[union-attr]


def leave(url: str, number: int, draw: random.Random) -> Any:
    """A client that goes at a random moment, after its request or in the middle of it."""
    body = {"prompt": prompt(number), "max_tokens": 400, "ignore_eos": True, "stream": number % 2 == 0}
    data = serving.post(url, COMPLETIONS, json.dumps(body).encode())
    connection = serving.raw(url, data if number % 10 else data[: draw.randrange(len(data))])
    time.sleep(draw.random() * 0.03)
    connection.close()


def test_clients_that_go_leave_nothing(story: LLM) -> None:
    models, draw = serving.Borrowed(places=16, queue=600, stories=story), random.Random(4)
    gate, process = models.served["stories"].gate, psutil.Process()

    def idle() -> bool:
        return (gate.running, gate.waiting) == (0, 0) and serving.free_pages(story) == pages

    def all_go(count: int) -> None:
        threads = [
            threading.Thread(target=lambda n=n: [leave(url, i, draw) for i in range(n, count, 10)]) for n in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        eventually(idle, 10)

    pages = serving.free_pages(story)
    with serving.running(models) as url:
        all_go(100)
        held, files, resident = story.device.ledger.held(), process.num_fds(), process.memory_info().rss
        all_go(500)
        assert story.device.ledger.held() - held < 1 << 16  # plans of further batch sizes
        assert process.num_fds() <= files + 2
        assert process.memory_info().rss - resident < 16 << 20


def test_the_engine_stops_with_its_last_client(story: LLM) -> None:
    models = serving.Borrowed(places=8, queue=16, stories=story)
    gate = models.served["stories"].gate
    body = json.dumps({"prompt": prompt(1), "max_tokens": 480, "ignore_eos": True, "stream": True}).encode()
    with serving.running(models) as url, Fault("submit").injected() as steps:
        connections = [serving.raw(url, serving.post(url, COMPLETIONS, body)) for _ in range(8)]
        eventually(lambda: gate.running == 8)
        eventually(lambda: steps.calls > 50)
        for connection in connections:
            connection.close()
        eventually(lambda: gate.running == 0)
        until_idle = steps.calls
        time.sleep(0.3)
        assert steps.calls <= until_idle + 2
