"""Many requests at once: ``AsyncLLM``, several texts of a prompt, prompts with own settings, and full queues."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from serving import eventually, free_pages

from llamagpu import LLM, AsyncLLM, BusyError, Result
from llamagpu.engine.places import PLACES
from llamagpu.errors import ContextFullError, DeviceLostError, UsageError
from llamagpu.jobs.generation import Generation
from llamagpu.jobs.rows import Row

TEXT = "Once upon a time"
LONG = {"max_tokens": 1500, "ignore_eos": True}


@pytest.fixture
def llm(story: LLM) -> AsyncLLM:
    return AsyncLLM(story)


def limited(story: LLM, queue: int | None) -> contextlib.AbstractContextManager[None]:
    """A block in which the model has another queue."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        before, story._places._queue = story._places._queue, queue
        try:
            yield
        finally:
            story._places._queue = before

    return block()


# --- the event loop ------------------------------------------------------------------------------


def test_streams_and_results_are_those_of_threads(llm: AsyncLLM, story: LLM) -> None:
    async def work() -> None:
        settings: Any = {"max_tokens": 12, "temperature": 0.7, "seed": 3, "logprobs": 1}
        expected = story.generate(TEXT, **settings)
        async with llm.stream(TEXT, **settings) as stream:
            pieces = [piece async for piece in stream]
        result = await stream.result()
        assert all(pieces)
        assert "".join(pieces) == result.text == expected.text
        assert [t.id for t in stream.tokens] == result.token_ids == expected.token_ids
        assert result.logprobs == expected.logprobs
        ids = await llm.tokenize(TEXT)
        assert (await llm.generate(ids, **settings)).token_ids == expected.token_ids
        assert await llm.detokenize(ids) == TEXT
        assert (await llm.logits(ids)).tobytes() == story.logits(ids).tobytes()
        vectors = await llm.embed((text for text in ("a", "b")), pooling="mean")
        assert vectors.tobytes() == story.embed(["a", "b"], pooling="mean").tobytes()

    asyncio.run(work())


def test_chats(llm: AsyncLLM, story: LLM) -> None:
    messages = [{"role": "user", "content": "There was a cat."}]

    async def work() -> tuple[Result, list[Result], str]:
        one = await llm.chat(messages, max_tokens=6)
        several = await llm.chat(messages, max_tokens=6, n=2, temperature=0.9, seed=1)
        assert await llm.apply_chat_template(messages) == story.apply_chat_template(messages)
        return one, several, "".join([piece async for piece in llm.chat_stream(messages, max_tokens=6)])

    one, several, text = asyncio.run(work())
    assert text == one.text == story.chat(messages, max_tokens=6).text
    assert [r.seed for r in several] == [1, 2]


@pytest.mark.slow
def test_a_hundred_tasks_have_the_bits_of_lone_runs(llm: AsyncLLM, story: LLM) -> None:
    prompts = ["Once", "Tom had a ball", "The sun", "A cat and a dog"]
    settings: list[Any] = [{"max_tokens": 5 + i % 9, "temperature": (i % 3) / 2, "seed": i % 7} for i in range(100)]
    wanted = [(prompts[i % 4], s | {"logprobs": 2} if i % 5 == 0 else s) for i, s in enumerate(settings)]
    expected = [story.generate(prompt, **s) for prompt, s in wanted]

    async def one(i: int) -> Result:
        prompt, s = wanted[i]
        if i % 2:
            return await llm.generate(prompt, **s)
        stream = llm.stream(prompt, **s)
        text = "".join([piece async for piece in stream])
        result = await stream.result()
        assert result.text == text
        return result

    async def work() -> tuple[list[Result], int]:
        tasks = [asyncio.create_task(one(i)) for i in range(100)]
        await asyncio.sleep(0.3)
        threads = threading.active_count()
        return await asyncio.gather(*tasks), threads

    before = threading.active_count()
    found, threads = asyncio.run(work())
    assert [(r.token_ids, r.text, r.logprobs) for r in found] == [(r.token_ids, r.text, r.logprobs) for r in expected]
    assert threads - before <= 32  # those of the loop's own executor, which start generations


@pytest.mark.parametrize("seed", range(4))
def test_what_nobody_waits_for_ends_within_two_steps(llm: AsyncLLM, story: LLM, seed: int) -> None:
    """By cancelling a task, ``aclose``, leaving a block, and leaving a loop: the pages are free soon."""
    pages, draw = free_pages(story), random.Random(seed)

    async def cancelled() -> None:
        prompts = [TEXT, "Tom"] if seed % 2 else TEXT
        task = asyncio.ensure_future(llm.generate(prompts, **LONG))
        await asyncio.sleep(0.01 + draw.random() / 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def closed() -> None:
        stream = llm.stream(TEXT, **LONG)
        await anext(stream)
        await stream.aclose()
        result = await stream.result()
        assert result.finish_reason == "cancelled"
        assert "".join([piece async for piece in stream]) == ""

    async def closing() -> None:
        async with contextlib.aclosing(llm.stream(TEXT, **LONG)) as stream:
            async for _ in stream:
                break

    async def left() -> None:
        async for _ in llm.stream(TEXT, **LONG):
            break

    async def late() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(llm.stream(TEXT, **LONG).result(), 0.05)

    async def work() -> None:
        ways: list[Callable[[], Awaitable[None]]] = [cancelled, closed, closing, left, late]
        way = draw.choice(ways) if seed > 1 else ways[seed]
        await asyncio.gather(way(), *(draw.choice(ways)() for _ in range(2)))

    asyncio.run(work())
    eventually(lambda: free_pages(story) == pages)


def test_steps_after_a_cancellation(llm: AsyncLLM, story: LLM) -> None:
    async def work() -> int:
        stream = llm.stream(TEXT, **LONG)
        await anext(stream)
        task = asyncio.ensure_future(stream.result())
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0)  # the cancellation reaches the task
        running = stream._taker.stream  # type: ignore[union-attr]
        at = story.device.call(lambda: len(running.tokens) + running._sequence.events.qsize())
        await asyncio.wait([task])
        result = await stream.result()
        return len(result.token_ids) - at

    assert asyncio.run(work()) <= 2


@pytest.mark.slow
def test_isolated_models() -> None:
    async def work() -> None:
        async with AsyncLLM(isolate=True, queue=0) as llm:
            found = await llm.generate([TEXT, "Tom"], max_tokens=8)
            assert [r.completion_tokens for r in found] == [8, 8]
            running = [asyncio.ensure_future(llm.generate(TEXT, **LONG)) for _ in range(PLACES)]
            while len(llm.llm._places._open) < PLACES:
                await asyncio.sleep(0.01)
            with pytest.raises(BusyError):
                await llm.generate(TEXT, max_tokens=1)
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            while any(not events.ended for events in llm.llm._places._open):
                await asyncio.sleep(0.01)
            assert (await llm.generate(TEXT, max_tokens=8)).token_ids == found[0].token_ids

    asyncio.run(work())


def test_errors_stay_with_their_task(llm: AsyncLLM) -> None:
    async def work() -> list[Any]:
        stream = llm.stream("")
        for _ in range(2):  # asking again gives the error again
            with pytest.raises(UsageError, match="empty"):
                await anext(stream)
        unbegun = llm.stream(TEXT)
        await unbegun.aclose()
        with pytest.raises(UsageError, match="closed before"):
            await anext(unbegun)
        with pytest.raises(TypeError, match="temprature"):
            llm.stream(TEXT, temprature=1)  # type: ignore[call-arg]
        calls = [llm.generate(TEXT, max_tokens=4), llm.generate(TEXT, seed=-1), llm.generate([99999])]
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(work())
    assert found[0].completion_tokens == 4
    assert "seed is -1" in str(found[1])
    assert "99999 is not a token id" in str(found[2])


def test_life(story: LLM) -> None:
    closed = LLM(device=story.device)
    closed.close()

    async def work() -> None:
        with pytest.raises(TypeError, match="contxt"):
            AsyncLLM(contxt=3)
        with pytest.raises(UsageError, match="context"):
            AsyncLLM(story, context=3)
        unloaded = AsyncLLM()
        with pytest.raises(UsageError, match="not loaded"):
            await unloaded.generate(TEXT)
        await unloaded.aclose()
        async with AsyncLLM(story) as shared:
            assert shared.llm is story
        assert not story.closed
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.002)
                ticks += 1

        ticking = asyncio.ensure_future(tick())
        async with AsyncLLM(device=story.device, context=64) as llm:
            assert ticks > 3  # loading leaves the loop free
            assert llm.llm.context == 64
            running = asyncio.ensure_future(llm.generate(TEXT, max_tokens=60, ignore_eos=True))
            await asyncio.sleep(0.02)
        assert llm.llm.closed
        with pytest.raises(DeviceLostError, match="closed"):
            await running
        with pytest.raises(DeviceLostError, match="closed"):
            await llm.embed("a", pooling="mean")
        with pytest.raises(DeviceLostError, match="closed"):
            await AsyncLLM(closed).generate(TEXT)
        ticking.cancel()

    asyncio.run(work())
    assert inspect.signature(AsyncLLM) == inspect.signature(LLM)
    assert list(inspect.signature(AsyncLLM.generate).parameters) == list(inspect.signature(LLM.generate).parameters)


def test_a_load_that_is_cancelled_leaves_nothing(story: LLM) -> None:
    before = story.device.ledger.held()
    loading, go = threading.Event(), threading.Event()

    def progress(done: int, total: int) -> None:
        loading.set()
        go.wait(10)

    async def work() -> None:
        task = asyncio.ensure_future(AsyncLLM.load(device=story.device, context=64, progress=progress))
        while not loading.is_set():
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    go.set()
    eventually(lambda: not any(t.name.startswith("llamagpu-load") for t in threading.enumerate()))
    assert story.device.ledger.held() == before


# --- calls ---------------------------------------------------------------------------------------


def test_several_texts_of_a_prompt(story: LLM) -> None:
    settings: Any = {"max_tokens": 6, "temperature": 0.9}
    lone = [story.generate(TEXT, seed=(2**32 - 1 + i) % 2**32, **settings).token_ids for i in range(3)]
    found = story.generate(TEXT, n=3, seed=2**32 - 1, **settings)
    assert [r.token_ids for r in found] == lone
    assert [r.seed for r in found] == [2**32 - 1, 0, 1]
    pairs = story.generate([TEXT, "Tom"], n=2, seed=5, **settings)
    assert [[r.seed for r in pair] for pair in pairs] == [[5, 6]] * 2
    assert pairs[1][1].token_ids == story.generate("Tom", seed=6, **settings).token_ids
    assert len(story.generate(TEXT, n=1, max_tokens=1)) == 1
    assert len({r.seed for r in story.generate(TEXT, n=2, **settings)}) == 2  # drawn ones
    for n in (0, 1.5, True):
        with pytest.raises(UsageError, match="n is"):
            story.generate(TEXT, n=n)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="'n'"):
        story.stream(TEXT, n=2)  # type: ignore[call-arg]


def test_prompts_with_settings_of_their_own(story: LLM) -> None:
    ids = story.tokenize(TEXT)
    row = json.loads('{"prompt": "Tom", "temperature": 0.7, "seed": 1, "stop": null, "logit_bias": {"5": 3}}')
    found = story.generate([{"prompt": TEXT, "max_tokens": 3}, row, {"prompt": ids}, TEXT], max_tokens=5)
    assert [r.completion_tokens for r in found] == [3, 5, 5, 5]
    alone = story.generate("Tom", max_tokens=5, temperature=0.7, seed=1, logit_bias={5: 3})
    assert found[1].token_ids == alone.token_ids
    assert found[2].token_ids == found[3].token_ids == story.generate(TEXT, max_tokens=5).token_ids
    assert story.generate({"prompt": TEXT, "max_tokens": 2}).completion_tokens == 2
    with story.stream(TEXT, max_tokens=8) as other:  # nothing begins if one of them is refused
        cases: list[tuple[list[Any], str]] = [
            (["a", ""], "^Item 1: The prompt is empty"),
            ([{"prompt": "a", "temprature": 1}], "^Item 0: 'temprature' is no setting"),
            (["a", {"prompt": "b", "seed": -1}], "^Item 1: seed is -1"),
            (["a", {}], "^Item 1: prompt is None"),
            (["a", {"prompt": {"b": 1}}], "^Item 1: prompt is {'b'"),
            (["a", 5], "^Item 1: 5 is no prompt"),
            ([[1, 2], [10**6]], "^Item 1: 1000000 is not a token id"),
        ]
        for prompts, message in cases:
            with pytest.raises(UsageError, match=message):
                story.generate(prompts)
        with pytest.raises(UsageError, match=r"^seed is -1"):
            story.generate(["a"], seed=-1)
        with pytest.raises(ContextFullError, match=r"^Item 0: "):
            story.generate([[1] * 5000])
        assert other.result.completion_tokens == 8


def test_full_queues(story: LLM) -> None:
    with limited(story, 1), contextlib.ExitStack() as stack:
        most = PLACES + 1
        with pytest.raises(BusyError, match=f"A call may have {most} requests at most; this one has {most + 1}"):
            story.generate(TEXT, n=most + 1)
        streams = [stack.enter_context(story.stream(TEXT, **LONG)) for _ in range(most)]
        with pytest.raises(BusyError, match=f"{PLACES} requests run and 1 wait") as caught:
            story.stream(TEXT)
        assert caught.value.exit_code == 1
        assert "later" in caught.value.hint
        with pytest.raises(BusyError):
            story.logits([1])
        with pytest.raises(BusyError):
            asyncio.run(AsyncLLM(story).generate([TEXT, TEXT], max_tokens=1))
        streams[0].close()
        eventually(lambda: streams[0]._sequence.events.ended)
        stack.enter_context(story.stream(TEXT, **LONG))
    rows = [Row(i, {"prompt": TEXT, "max_tokens": 1}, str(i)) for i in range(PLACES + 8)]
    eventually(lambda: all(stream._sequence.events.ended for stream in streams))
    with limited(story, 0):  # a job asks for no more than the queue takes
        assert all(isinstance(outcome, dict) for outcome in Generation(story).run(rows))
    with pytest.raises(UsageError, match="queue is -1"):
        LLM(queue=-1)
    assert story.generate(TEXT, max_tokens=1).completion_tokens == 1


def test_openai_logprobs(story: LLM) -> None:
    result = story.generate(TEXT, max_tokens=40, logprobs=2, stop="little")
    assert result.logprobs is not None
    content = result.openai_logprobs()["content"]
    assert "".join(entry["token"] for entry in content) == result.text + "little"  # whose token begins in the text
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == result.text + "little"
    assert [len(entry["top_logprobs"]) for entry in content] == [2] * len(content)
    assert content[0]["logprob"] == result.logprobs[0].logprob
    assert result.logprobs[0].text == content[0]["token"]
    assert json.loads(json.dumps(result.as_dict()))["logprobs"][0]["bytes"] == content[0]["bytes"]
    with pytest.raises(UsageError, match="no log-probabilities"):
        story.generate(TEXT, max_tokens=1).openai_logprobs()
