"""Bound sessions: models whose input and outputs are tensors on the device."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import random_models

from llamagpu import LLM, gpu, kernels
from llamagpu.engine.bound import Bound
from llamagpu.engine.scoring import log_probabilities
from llamagpu.errors import (
    ContextFullError,
    DeviceLostError,
    KernelError,
    LlamaGPUError,
    OutOfMemoryError,
    UsageError,
)
from llamagpu.gpu.census import Census, census
from llamagpu.model import sizes
from llamagpu.model.cache import SLOTS

ROOT = Path(__file__).resolve().parent.parent


def random_ids(llm: LLM, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, llm.config.vocab_size, count).tolist()


class Case:
    """Ids and outputs of a length, on a model's device, and a session bound to them."""

    def __init__(self, llm: LLM, count: int, rows: int | None = None):
        self.llm, self.values = llm, random_ids(llm, count)
        self.ids = llm.device.tensor([self.values])
        self.logits = llm.device.empty((rows or count, llm.config.vocab_size))
        self.hidden = llm.device.empty((rows or count, llm.config.hidden_size))
        self.bound = llm.bind(input_ids=self.ids, logits=self.logits, hidden_states=self.hidden)

    def exact(self) -> np.ndarray:
        return self.llm.logits(self.values, first=len(self.values) - self.logits.rows)


# --- results -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 31, 33, 100])
def test_results_are_those_of_logits(story: LLM, count: int) -> None:
    """The same bits, for all positions and for the last one; the head's product of the hidden states gives them too."""
    for rows in {count, 1}:
        case = Case(story, count, rows)
        with case.bound as bound:
            bound.run()
            assert np.array_equal(case.logits.numpy(), case.exact())
            again = kernels.linear(case.hidden, story._session.model.weights.head).numpy()
            assert np.abs(again - case.logits.numpy()).max() <= 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral-window", "qwen3"])
@pytest.mark.parametrize("fused", [True, False])
def test_other_architectures_and_long_prompts(name: str, fused: bool, tmp_path: Path, device: gpu.Device) -> None:
    """Prompts of two chunks; sliding windows whose pages are used in turns; both forms of the forward pass."""
    c = random_models.CONFIGS.get(name, random_models.config())
    random_models.write_model(tmp_path, c, random_models.tensors(c, 5))
    with LLM(tmp_path, device=device, fused=fused) as llm:
        for count, rows in ((7, 7), (600, 600), (600, 1)):
            case = Case(llm, count, rows)
            with case.bound as bound:
                bound.run()
                assert np.array_equal(case.logits.numpy(), case.exact())


def test_outputs_larger_than_a_binding(tmp_path: Path) -> None:
    """Results are copied into every part of a tensor that is cut by rows."""
    with gpu.open() as device, LLM(device=device) as llm:
        device.memory.max_binding = 2**20  # 128 rows of logits
        logits = device.empty((300, llm.config.vocab_size))
        assert len(logits.parts) == 3
        values = random_ids(llm, 300)
        with llm.bind(input_ids=device.tensor(values), logits=logits) as bound:
            bound.run()
            assert np.array_equal(logits.numpy(), llm.logits(values))


def test_one_output_and_other_shapes(story: LLM) -> None:
    """Outputs are optional, may have a leading axis of one, and ids may be a vector."""
    values, device = random_ids(story, 9), story.device
    ids, hidden = device.tensor(values), device.empty((1, 9, story.config.hidden_size))
    with story.bind({"input_ids": ids, "hidden_states": hidden}) as bound:
        bound.run()
    case = Case(story, 9)
    with case.bound as bound:
        bound.run()
    assert np.array_equal(hidden.numpy()[0], case.hidden.numpy())
    last = device.empty((1, story.config.hidden_size))
    with story.bind([("input_ids", ids)], hidden_states=last) as bound:
        bound.run()
    assert np.array_equal(last.numpy()[0], case.hidden.numpy()[8])


def test_runs_follow_writes_and_kernels(story: LLM) -> None:
    """Writes, kernels, runs and reads are ordered by the queue: no call waits for an earlier one."""
    device, many = story.device, np.random.default_rng(1).integers(0, 2000, (6, 40))
    table, case = device.tensor(many), Case(story, 40)
    reads, likeliest = [], []
    with case.bound as bound:
        for row in range(6):
            if row % 2:
                case.ids.write(many[row : row + 1])
            else:
                kernels.slice_rows(table, row, row + 1, case.ids)
            bound.run()
            reads.append(case.logits.numpy_async())
            likeliest.append(kernels.softmax(case.logits).numpy_async())
    for row, logits, probabilities in zip(many, reads, likeliest, strict=True):
        exact = story.logits(row.tolist())
        assert np.array_equal(logits.result(), exact)
        assert np.array_equal(probabilities.result().argmax(-1), exact.argmax(-1))


def test_ids_outside_the_vocabulary_void_what_follows(story: LLM) -> None:
    """The host never sees the ids. A run with good ones is right again."""
    case = Case(story, 40)
    with case.bound as bound:
        for bad in (story.config.vocab_size, 0xFFFFFFFF):
            values = np.array(case.values, np.uint32)
            values[17], values[30] = bad, bad
            case.ids.write(values)
            bound.run()
            for got in (case.logits.numpy(), case.hidden.numpy()):
                assert np.isfinite(got[:17]).all()
                assert np.isnan(got[17:]).all()
        case.ids.write(case.values)
        bound.run()
        assert np.array_equal(case.logits.numpy(), case.exact())


# --- what a run moves and makes ------------------------------------------------------------


def counted(call: Callable[[], object]) -> Census:
    with census() as counts:
        call()
    return counts


@pytest.mark.parametrize("runs", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_budget_of_runs(story: LLM, runs: int) -> None:
    """A run is one submission. It moves no byte between host and GPU, waits for nothing and allocates nothing."""
    case = Case(story, 8, 1)
    with case.bound as bound:
        bound.run()
        counts = counted(lambda: [bound.run() for _ in range(runs)])
        assert {name: n for name, n in counts.objects.items() if n} == {
            "wgpuDeviceCreateCommandEncoder": runs,
            "wgpuCommandEncoderBeginComputePass": runs,
            "wgpuCommandEncoderFinish": runs,
        }
        assert counts.calls["wgpuQueueSubmit"] == runs
        assert counts.calls["wgpuBufferMapAsync"] == counts.calls["wgpuDevicePoll"] == 0
        assert not counts.bytes
        assert np.array_equal(case.logits.numpy(), case.exact())


def test_budget_of_a_read(story: LLM) -> None:
    """A read of one row of numbers moves that row; synchronize moves the 16 bytes of its fence."""
    case = Case(story, 8, 1)
    with case.bound as bound:
        counts = counted(lambda: (bound.run(), case.logits.numpy()))
        assert counts.bytes == {"down": 4 * story.config.vocab_size}
        assert counted(story.device.synchronize).bytes == {"down": 16}


def test_binding_again_records_nothing(story: LLM) -> None:
    """Another binding of a length makes one buffer, and uploads its state and its row of the page table."""
    Case(story, 40).bound.close()
    tensors = {
        "input_ids": story.device.tensor(random_ids(story, 40)),
        "logits": story.device.empty((40, story.config.vocab_size)),
    }
    counts = counted(lambda: story.bind(tensors).close())
    assert {name: n for name, n in counts.objects.items() if n and "Create" in name} == {"wgpuDeviceCreateBuffer": 1}
    table = story._session.model.cache.table
    assert counts.bytes == {"up": 16 * (1 + 48 + 32 + 8) + table.row_bytes}  # a flag, the rows, the rows of two heads


# --- company -------------------------------------------------------------------------------


def test_bound_runs_between_generations(story: LLM) -> None:
    """Two bound sessions and generations of another thread keep their results."""
    prompts, texts = ["Once upon a time", "The cat"], []
    expected = [r.token_ids for r in story.generate(prompts, max_tokens=30)]
    first, second = Case(story, 33), Case(story, 70, 1)
    exact = first.exact(), second.exact()

    def generate() -> None:
        texts.append([r.token_ids for r in story.generate(prompts, max_tokens=30)])

    thread = threading.Thread(target=generate)
    with first.bound, second.bound:
        thread.start()
        for _ in range(8):
            first.bound.run()
            second.bound.run()
            assert np.array_equal(first.logits.numpy(), exact[0])
            assert np.array_equal(second.logits.numpy(), exact[1])
        thread.join()
    assert texts == [expected]


def free(llm: LLM) -> tuple[int, int]:
    """Free pages and slots of the cache, after all queued calls."""
    cache = llm._session.model.cache
    return llm.device.call(lambda: (cache.free_pages, cache.free_slots))


def test_pages_are_given_back(story: LLM) -> None:
    """By close, by the end of a block, and by garbage collection; tensors stay."""
    gc.collect()
    before, held = free(story), story.device.ledger.held("activations")
    cases = [Case(story, 40) for _ in range(3)]
    assert free(story) == (before[0] - 9, before[1] - 3)
    cases[0].bound.close()
    cases[0].bound.close()
    with cases[1].bound:
        pass
    cases.pop()
    gc.collect()
    assert free(story) == before
    assert story.device.ledger.held("activations") == held
    assert cases[0].logits.numpy().shape == (40, story.config.vocab_size)
    for case in cases:
        with pytest.raises(DeviceLostError, match="bound session is closed"):
            case.bound.run()


def test_a_full_cache_is_an_error(tmp_path: Path, device: gpu.Device) -> None:
    """Both for one more bound session, and for a sequence; both fit after a close."""
    c = random_models.config()
    random_models.write_model(tmp_path, c, random_models.tensors(c, 5))
    with LLM(tmp_path, device=device) as llm:
        ids, logits = device.tensor([1, 2]), device.empty((1, llm.config.vocab_size))
        many = [llm.bind(input_ids=ids, logits=logits) for _ in range(SLOTS)]
        with pytest.raises(OutOfMemoryError, match="no room for 2 bound tokens"):
            llm.bind(input_ids=ids, logits=logits)
        with pytest.raises(OutOfMemoryError, match="32 bound sessions hold a part of it"):
            llm.generate([1], max_tokens=1)
        many.pop().close()
        assert llm.generate([1], max_tokens=1).completion_tokens == 1
        many[0].run()


def test_bound_sessions_leave_room_for_a_text_that_grows(device: gpu.Device) -> None:
    """It could not go on otherwise: other texts give their pages to it, bound sessions do not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "_POOLS", ())
        with LLM(device=device, context=128) as llm:  # eight pages
            expected = llm.generate("Once", max_tokens=90, ignore_eos=True).token_ids
            many = {"input_ids": device.tensor([list(range(40))]), "logits": device.empty((1, llm.config.vocab_size))}
            hold = threading.Event()
            device.thread.post(lambda: hold.wait(10))  # so that the text cannot end before the session binds
            stream = llm.stream("Once", max_tokens=90, ignore_eos=True)  # comes to take six pages
            with ThreadPoolExecutor(1) as other:
                binding = other.submit(llm.bind, **many)
                time.sleep(0.05)
                hold.set()
                with pytest.raises(OutOfMemoryError, match=r"may come to need 6 of its 8 pages\."):
                    binding.result()
            case = Case(llm, 30, 1)
            assert stream.result.token_ids == expected
            case.bound.run()
            assert np.array_equal(case.logits.numpy(), case.exact())


def test_closed_models_and_freed_tensors(device: gpu.Device) -> None:
    held = device.ledger.held()
    with LLM(device=device) as llm:
        case, other = Case(llm, 40), Case(llm, 3)
        other.logits.free()
        with pytest.raises(KernelError, match="was freed"):
            other.bound.run()
        with pytest.raises(KernelError, match="logits was freed"):
            llm.bind(input_ids=other.ids, logits=other.logits)
        case.bound.run()
    with pytest.raises(DeviceLostError, match="closed"):
        case.bound.run()
    with pytest.raises(DeviceLostError, match="closed"):
        llm.bind(input_ids=case.ids, logits=case.logits)
    assert np.isfinite(case.logits.numpy()).all()  # it was queued before the model was closed
    case.bound.close()
    for tensor in (case.ids, case.logits, case.hidden, other.ids, other.hidden):
        tensor.free()
    assert device.ledger.held() <= held


def test_a_closed_device() -> None:
    with LLM() as llm:
        case = Case(llm, 3)
    with pytest.raises(DeviceLostError, match="closed"):
        case.bound.run()
    case.bound.close()


# --- refused bindings ----------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[LLM, dict[str, gpu.Tensor]], Bound], type[LlamaGPUError], str]] = {
    "twice": (
        lambda llm, t: llm.bind([("input_ids", t["ids"]), ("logits", t["logits"]), ("logits", t["hidden"])]),
        UsageError,
        "'logits' is bound twice",
    ),
    "twice, by keyword": (
        lambda llm, t: llm.bind({"logits": t["logits"]}, input_ids=t["ids"], logits=t["logits"]),
        UsageError,
        "'logits' is bound twice",
    ),
    "no pairs": (lambda llm, t: llm.bind(t["ids"]), UsageError, "no bindings"),  # type: ignore[arg-type]
    "no names": (lambda llm, t: llm.bind([([], t["ids"])]), UsageError, "no bindings"),  # type: ignore[list-item]
    "unknown": (
        lambda llm, t: llm.bind(input_ids=t["ids"], scores=t["logits"]),
        UsageError,
        "'scores' cannot be bound",
    ),
    "no input": (lambda llm, t: llm.bind(logits=t["logits"]), UsageError, "input_ids is missing"),
    "no output": (lambda llm, t: llm.bind(input_ids=t["ids"]), UsageError, "every output is missing"),
    "an array": (
        lambda llm, t: llm.bind(input_ids=np.arange(4), logits=t["logits"]),  # type: ignore[arg-type]
        UsageError,
        "input_ids is a ndarray",
    ),
    "float ids": (lambda llm, t: llm.bind(input_ids=t["floats"], logits=t["logits"]), UsageError, "tensor of u32"),
    "half logits": (lambda llm, t: llm.bind(input_ids=t["ids"], logits=t["halves"]), UsageError, "tensor of f32"),
    "ids in rows": (lambda llm, t: llm.bind(input_ids=t["rows"], logits=t["logits"]), UsageError, r"\[n\] or \[1, n\]"),
    "rows": (lambda llm, t: llm.bind(input_ids=t["ids"], logits=t["three"]), UsageError, r"\[4, 2048\] or \[1, 2048\]"),
    "columns": (lambda llm, t: llm.bind(input_ids=t["ids"], logits=t["hidden"]), UsageError, "its shape must be"),
    "one tensor for two": (
        lambda llm, t: llm.bind(input_ids=t["ids"], logits=t["logits"], hidden_states=t["logits"]),
        UsageError,
        "its shape must be",
    ),
    "too long": (lambda llm, t: llm.bind(input_ids=t["long"], logits=t["last"]), ContextFullError, "513 tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_bindings_are_refused_when_bound(story: LLM, name: str) -> None:
    device, c = story.device, story.config
    tensors = {
        "ids": device.tensor([1, 2, 3, 4]),
        "floats": device.tensor([1.0, 2, 3, 4]),
        "rows": device.tensor([[1], [2], [3], [4]]),
        "long": device.empty((513,), "u32"),
        "logits": device.empty((4, c.vocab_size)),
        "last": device.empty((1, c.vocab_size)),
        "three": device.empty((3, c.vocab_size)),
        "halves": device.empty((4, c.vocab_size), "f16"),
        "hidden": device.empty((4, c.hidden_size)),
    }
    before = free(story)
    call, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        call(story, tensors)
    assert free(story) == before


def test_shared_memory_and_other_devices_are_refused(story: LLM, baseline: gpu.Device, tmp_path: Path) -> None:
    c = random_models.config(vocab_size=64)  # as many as the hidden size
    random_models.write_model(tmp_path, c, random_models.tensors(c, 5))
    with LLM(tmp_path, device=story.device) as llm:
        device = llm.device
        ids, both = device.tensor([1, 2, 3, 4]), device.empty((8, 64))
        for logits, hidden in ((both[:4], both[:4]), (both[:4], both[3:4]), (both[4:5], both[4:])):
            with pytest.raises(UsageError, match="share memory"):
                llm.bind(input_ids=ids, logits=logits, hidden_states=hidden)
        with llm.bind(input_ids=ids, logits=both[:4], hidden_states=both[4:]) as bound:
            bound.run()
            assert np.array_equal(both.numpy()[:4], llm.logits([1, 2, 3, 4]))
        with pytest.raises(KernelError, match="logits is on another device"):
            llm.bind(input_ids=ids, logits=baseline.empty((4, 64)))


# --- events and reads ----------------------------------------------------------------------


def test_events_hold_the_time_of_the_gpu(story: LLM) -> None:
    device, case = story.device, Case(story, 200)
    begin, middle, end = (device.event() for _ in range(3))
    for event in (begin, middle):
        with pytest.raises(KernelError, match="was not recorded"):
            event.synchronize()
    with case.bound as bound:
        bound.run()
        begin.record()
        bound.run()
        middle.record()
        for _ in range(5):
            bound.run()
        assert counted(end.record).calls["wgpuBufferMapAsync"] == 0
        end.synchronize()
        one, five = begin.elapsed_time(middle), middle.elapsed_time(end)
        assert 0 < one < five
        assert np.isclose(begin.elapsed_time(end), one + five)
        assert begin.elapsed_time(begin) == 0
        begin.record()  # again: a later point
        assert end.elapsed_time(begin) >= 0


def test_events_need_timestamps(story: LLM, baseline: gpu.Device) -> None:
    with pytest.raises(KernelError, match="no timestamp queries"):
        baseline.event()
    with pytest.raises(KernelError, match="an event of the same device"):
        story.device.event().elapsed_time(None)  # type: ignore[arg-type]


def test_numpy_async(device: gpu.Device) -> None:
    """The values are those of the call, not of the wait. Futures can be awaited and asked twice, by any thread."""
    x = device.tensor(np.arange(12).reshape(3, 4), "f32")
    reads = []
    for factor in range(20):
        x.write(np.full((3, 4), factor))
        reads.append(x.numpy_async())
    x.free()

    async def gather() -> list[np.ndarray]:
        return list(await asyncio.gather(*(wait(r) for r in reads)))

    async def wait(read: gpu.Readback) -> np.ndarray:
        return await read

    got = asyncio.run(gather())
    for factor, (values, read) in enumerate(zip(got, reads, strict=True)):
        assert np.array_equal(values, np.full((3, 4), factor))
        assert read.result() is values
    with pytest.raises(KernelError, match="is quantized"):
        kernels.quantize(device.tensor(np.ones((1, 64))), 4).numpy_async()


def test_numpy_async_of_a_closed_device() -> None:
    with gpu.open() as device:
        read = device.tensor([1.0]).numpy_async()
    with pytest.raises(DeviceLostError, match="closed"):
        read.result()


# --- the example of the docs ---------------------------------------------------------------


def script(name: str) -> object:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_example_of_the_docs() -> None:
    code = (ROOT / "docs" / "binding.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_scores_of_continuations(story: LLM) -> None:
    """The GPU's log-probabilities are those of the host; 16 bytes of each come back."""
    example = script("score_continuations")
    prompt = story.tokenize(example.PROMPT)  # type: ignore[attr-defined]
    texts = example.continuations(20)  # type: ignore[attr-defined]
    added = [story.tokenize(text, add_special_tokens=False) for text in texts]
    with census() as counts:
        got = list(example.log_probabilities(story, prompt, added))  # type: ignore[attr-defined]
    assert counts.bytes["down"] == 16 * len(added)
    for score, tokens in zip(got, added, strict=True):
        rows = log_probabilities(story.logits([*prompt, *tokens], first=len(prompt) - 1)[:-1], 0)
        assert abs(score - rows[np.arange(len(tokens)), tokens].sum()) < 1e-4


def test_the_bench_of_bound_runs(capsys: pytest.CaptureFixture[str]) -> None:
    script("bench_bound").main(["--runs", "3", "--tokens", "4"])  # type: ignore[attr-defined]
    out = capsys.readouterr().out
    assert "0 per run" in out
    assert "by the GPU's clock" in out
