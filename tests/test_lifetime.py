"""Life cycles: memory freed on close, copies, pickled errors, forks, and threads at interpreter exit."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llamagpu import LLM, errors
from llamagpu.engine.request import NotFinite

START = "import gc, os, sys, threading, time\nfrom llamagpu import LLM\n"


def script(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True, timeout=120)


CYCLES = """
from llamagpu.gpu import native
gc.disable()
for _ in range(3):
    with LLM() as llm:
        llm.generate("Once upon a time", max_tokens=3)
    del llm
print(sum(native.object_counts().values()))
"""


def test_closed_models_need_no_garbage_collection() -> None:
    """Every native object, including the device's, is freed with the model."""
    done = script(CYCLES)
    assert done.stdout.split() == ["0"], done.stderr


@pytest.mark.parametrize(
    "attempt",
    [copy.copy, copy.deepcopy, pickle.dumps, lambda llm: copy.copy(llm.device), lambda llm: pickle.dumps(llm.device)],
)
def test_copies_are_refused(story: LLM, attempt: Callable[[LLM], object]) -> None:
    with pytest.raises(errors.UsageError, match="cannot be copied or pickled"):
        attempt(story)
    assert story.generate("a", max_tokens=1).completion_tokens == 1


@pytest.mark.parametrize(
    "error",
    [
        NotFinite.after(3),
        errors.ModelNotFoundError("what", "why", "hint"),
        *(kind("what", "why") for kind in vars(errors).values() if isinstance(kind, type) and "Error" in kind.__name__),
    ],
    ids=lambda e: type(e).__name__,
)
def test_errors_survive_pickling(error: errors.LlamaGPUError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.what, again.why, again.hint) == (str(error), error.what, error.why, error.hint)


FORK = """
llm = LLM()
pid = os.fork()
if not pid:
    for attempt in (lambda: llm.generate("x"), LLM):
        try:
            attempt()
        except Exception as e:
            print(type(e).__name__, e, flush=True)
    sys.exit(7)
print(os.waitpid(pid, 0)[1] >> 8, llm.generate("Once upon a time", max_tokens=2).completion_tokens)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_gets_an_error_and_exits() -> None:
    done = script(FORK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("DeviceLostError A GPU cannot be used after fork.")
    assert done.stdout.count('"spawn"') == 2
    assert done.stdout.splitlines()[-1] == "7 2"


SPAWN = """
import multiprocessing
def work(prompt):
    with LLM() as llm:
        return llm.generate(prompt, max_tokens=8).text
if __name__ == "__main__":
    with LLM() as llm, multiprocessing.get_context("spawn").Pool(2) as pool:
        print(len({llm.generate("The dog", max_tokens=8).text, *pool.map(work, ["The dog"] * 4)}))
"""


@pytest.mark.slow
def test_spawned_processes_share_an_adapter(tmp_path: Path) -> None:
    """Two children and their parent have models on one adapter at once, with the same results."""
    path = tmp_path / "spawn.py"
    path.write_text("from llamagpu import LLM\n" + SPAWN)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


MANY_CYCLES = """
import ctypes, gc, psutil
from llamagpu.gpu import native
def figures():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps for later is not in use
    process = psutil.Process()
    return process.memory_info().rss, sum(native.object_counts().values()), process.num_threads(), process.num_fds()
def cycles(count):
    for _ in range(count):
        with LLM() as llm:
            llm.generate("Once", max_tokens=3)
cycles(50)
before = figures()
cycles(100)
after = figures()
print(before, after, file=sys.stderr)
assert after[1:] == before[1:]
assert after[0] <= before[0] * 1.03  # the driver itself keeps some memory of every device that compiled shaders
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="file handles are counted on Linux")
def test_a_hundred_loads_leave_nothing() -> None:
    """Memory, native objects, threads and file handles stay as they were after the first fifty."""
    done = script(MANY_CYCLES)
    assert done.returncode == 0, done.stderr


DAEMON = """
llm = LLM()
def work():
    while True:
        llm.generate("Once upon a time", max_tokens=300, ignore_eos=True)
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.7)
"""


@pytest.mark.slow
def test_a_daemon_thread_at_interpreter_exit() -> None:
    done = script(DAEMON)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
