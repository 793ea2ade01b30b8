"""One thread owns the device. Calls queue on it; background steps run while no call waits."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from llamagpu.errors import DeviceLostError
from llamagpu.gpu import native

T = TypeVar("T")


def wait(future: Future[T]) -> T:
    """Wait for a future's result. It wakes often, so that Ctrl-C works on every platform."""
    while True:
        try:
            return future.result(timeout=0.2)
        except FutureTimeout:
            if future.done():
                return future.result()


class DeviceThread:
    """Runs posted calls in order. While none waits, the background steps take turns until none has work left.

    Args:
        lost: called on the thread with every DeviceLostError of a call or of a step, and whether it was a step.
    """

    def __init__(self, lost: Callable[[DeviceLostError, bool], None], name: str = "llamagpu-device"):
        self._lost = lost
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._closed, self._process = False, os.getpid()
        self._steps: list[Callable[[], bool]] = []
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def inside(self) -> bool:
        """Whether the caller is on this thread."""
        return threading.current_thread() is self._thread

    def call(self, fn: Callable[[], T]) -> T:
        """Run ``fn`` on the thread and return its result. On the thread itself, ``fn`` runs at once."""
        if self.inside:
            return fn()
        return wait(self.post(fn))

    def post(self, fn: Callable[[], T]) -> Future[T]:
        """Queue ``fn``.

        Raises:
            DeviceLostError: the thread is closed, or exists only in the parent of this forked process.
        """
        native.check_process()
        if self._closed:
            raise DeviceLostError("The device is closed.", "", "Open it again, or keep it open while you read results.")
        future: Future[T] = Future()
        self._calls.put((fn, future))
        return future

    def add(self, step: Callable[[], bool]) -> None:
        """Add a background step. It runs after calls, and again while it returns True."""
        self._steps.append(step)

    def remove(self, step: Callable[[], bool]) -> None:
        """Remove a background step. Call this on the thread itself."""
        if step in self._steps:
            self._steps.remove(step)

    def stop_steps(self) -> None:
        """Remove all background steps."""
        self._steps.clear()

    def close(self) -> None:
        """Finish the queued calls, then end. Safe to call twice."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        self._calls.put(None)
        if not self.inside:
            self._thread.join(timeout=30)

    def _run(self) -> None:
        busy = False
        while True:
            if busy and self._calls.empty():
                more = [self._take_step(step) for step in tuple(self._steps)]  # every one gets its turn
                busy = any(more)
                continue
            item = self._calls.get()
            if item is None:
                return
            fn, future = item
            del item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn())
                except BaseException as e:
                    future.set_exception(e)
                    if isinstance(e, DeviceLostError):
                        self._lost(e, False)
            del fn, future
            busy = True

    def _take_step(self, step: Callable[[], bool]) -> bool:
        """Run a step; whether there is more to do."""
        try:
            return step()
        except DeviceLostError as e:
            self._lost(e, True)
            return True
