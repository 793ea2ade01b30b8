"""The loop on the device thread: takes requests in, prefills, decodes in batches, hands tokens out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from llamagpu.engine.request import NotFinite, Request
from llamagpu.engine.runner import Flight, Outcome, Runner
from llamagpu.errors import DeviceLostError, OutOfMemoryError
from llamagpu.gpu import Device
from llamagpu.model import Model

IN_FLIGHT = 2  # steps that are submitted before the oldest is read


class Engine:
    """Runs requests of one model together. Everything but ``submit`` is on the device thread.

    A step is launched before the one in front of it has been read: the device knows its tokens. Rows that end there
    (``kernels.sample``) write nothing more, and what the host finds out later, a stop string or a cancellation, only
    leaves positions behind the sequence's length that nobody reads. The queue runs in order, so pages that are given to
    another sequence are written by it after everything that was in flight.
    """

    def __init__(self, device: Device, model: Model):
        self._device, self._model = device, model
        self._runner = Runner(device, model)
        self._waiting: deque[Request] = deque()
        self._active: list[Request] = []
        self._flights: deque[Flight] = deque()
        self._turn = 0
        self._closed: DeviceLostError | None = None
        device.thread.add(self._step)

    def submit(self, request: Request) -> None:
        """Queue a request; its events come from the device thread."""

        def enter() -> None:
            if self._closed is None:
                self._waiting.append(request)
            else:
                request.events.put(self._closed)

        self._device.thread.post(enter)

    def forget(self) -> None:
        """Give up what idle conversations keep in the cache."""
        self._device.call(self._runner.forget)

    def close(self) -> None:
        """End every request with an error and stop."""
        self._device.thread.remove(self._step)
        self._model.forward.free()
        self._closed = DeviceLostError("The model was closed.", "It was still generating.", "Load it again.")
        self._fail(self._closed)

    def _step(self) -> bool:
        """One unit of work: a chunk of one prompt, and a token for a batch; whether there is more."""
        try:
            self._drop_cancelled()
            self._admit()
            prompts = [r for r in self._active if not r.prefilled]
            if prompts:
                self._take((prompts[0],), self._runner.prefill(prompts[0]))
            self._decode()
        except Exception as e:  # every request must hear of it, whatever it is
            self._fail(e)
        return bool(self._active or self._waiting or self._flights)

    def _drop_cancelled(self) -> None:
        for request in [r for r in self._waiting if r.cancelled.is_set()]:
            self._waiting.remove(request)
            request.events.put("cancelled")
        for request in [r for r in self._active if r.cancelled.is_set()]:
            self._finish(request, "cancelled")

    def _admit(self) -> None:
        """Take waiting requests in, in their order, while the cache has room for all that they may need."""
        while self._waiting and self._runner.fits(self._waiting[0]):
            request = self._waiting[0]  # stays in a queue throughout: an error must find it
            self._runner.begin(request)
            self._active.append(self._waiting.popleft())
        if self._waiting and not self._active:  # it would wait for ever
            raise OutOfMemoryError(f"A sequence of {self._waiting[0].most} tokens does not fit the cache.")

    def _decode(self) -> None:
        """A step of the plain requests, or of the others: they are not mixed, so that company changes no result."""
        ready = [r for r in self._active if r.prefilled and not r.want_logits]
        more = [r for r in ready if r.made + r.in_flight < r.limit]
        kinds = [k for k in ([r for r in more if r.settings.plain], [r for r in more if not r.settings.plain]) if k]
        if not kinds:
            self._land_all()
            return
        self._turn += 1
        batch = tuple(self._runner.batch_of(kinds[self._turn % len(kinds)]))
        if self._flights and not (self._flights[-1].batch == batch and self._runner.follows(batch)):
            self._land_all()  # the next step needs its tokens on the host; it may end some
            return
        self._flights.append(self._runner.launch(batch))
        if len(self._flights) > IN_FLIGHT:
            self._land()
        if len(batch) < len(ready):  # those that did not run go first next time
            self._land_all()
            self._active = [r for r in self._active if r not in batch] + [r for r in self._active if r in batch]

    def _land(self) -> None:
        flight = self._flights.popleft()
        self._take(flight.batch, self._runner.land(flight))

    def _land_all(self) -> None:
        while self._flights:
            self._land()

    def _take(self, requests: Sequence[Request], outcomes: list[Outcome]) -> None:
        """Hand tokens out, and end the sequences that end there."""
        for request, token in zip(requests, outcomes, strict=False):
            if request not in self._active:  # it ended while this step was in flight
                continue
            if isinstance(token, NotFinite):
                self._finish(request, token)
                continue
            request.last = token.id
            request.made += 1
            request.tokens.append(token.id)
            request.events.put(token)
            if token.id in request.stop_ids:
                self._finish(request, "stop")
            elif request.made >= request.limit:
                self._finish(request, "length")
        for request in requests:
            if request.want_logits and request.prefilled and not request.cancelled.is_set():
                self._finish(request, np.concatenate(request.logits))

    def _finish(self, request: Request, event: Any) -> None:
        self._active.remove(request)
        self._runner.end(request)
        request.events.put(event)

    def _fail(self, error: Exception) -> None:
        while self._flights:
            self._runner.abandon(self._flights.popleft())
        for request in self._active:
            self._runner.end(request)
        for request in (*self._active, *self._waiting):
            request.events.put(error)
        self._active.clear()
        self._waiting.clear()
