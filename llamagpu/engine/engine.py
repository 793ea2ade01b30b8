"""The loop on the device thread: takes requests in, prefills, decodes, hands tokens out. It knows tokens, not text."""

from __future__ import annotations

import queue
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.engine.params import SamplingParams
from llamagpu.errors import DeviceLostError, LlamaGPUError, OutOfMemoryError
from llamagpu.gpu import Device
from llamagpu.kernels import draws, step_rows
from llamagpu.model import Model
from llamagpu.model.forward import HEAD_ROWS, ROW_BUCKETS, bucket

PACE_SECONDS = 0.1  # what one submission of a prefill should take
# Multiply-adds a second assumed before anything was measured.
_FIRST_RATE = {"software": 3e9, "integrated": 2e11, "discrete": 2e12, "other": 2e11}


@dataclass(eq=False)
class Request:
    """One sequence. ``events`` carries ints (tokens), then a str (the finish reason), an array (logits) or an error."""

    prompt: list[int]
    params: SamplingParams
    stop_ids: frozenset[int]
    limit: int  # tokens that may be made before max_tokens or the context ends it
    want_logits: bool = False
    events: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    cancelled: threading.Event = field(default_factory=threading.Event)
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    length: int = 0  # positions in the cache
    last: int = 0  # the newest token, not in the cache yet
    made: int = 0
    logits: list[npt.NDArray[np.float32]] = field(default_factory=list)

    @property
    def most(self) -> int:
        """Positions that the sequence may come to take; its last token needs none."""
        return len(self.prompt) + (0 if self.want_logits else self.limit - 1)


class Engine:
    """Runs requests of one model, several at a time, in turn. Everything but ``submit`` is on the device thread."""

    def __init__(self, device: Device, model: Model):
        self._device, self._model, self._forward = device, model, model.forward
        self._waiting: deque[Request] = deque()
        self._active: deque[Request] = deque()
        self._decoding: Request | None = None  # whose state the decode buffers hold
        self._rate = _FIRST_RATE[device.adapter.kind]
        device.thread.add(self._step)

    def submit(self, request: Request) -> None:
        """Queue a request; its events come from the device thread."""
        self._device.thread.post(lambda: self._waiting.append(request))

    def close(self) -> None:
        """End every request with an error and stop."""
        self._device.thread.remove(self._step)
        self._forward.free()
        self._fail(DeviceLostError("The model was closed.", "It was still generating.", "Load it again."))

    def _step(self) -> bool:
        """One unit of work; whether there is more."""
        try:
            while self._waiting and self._model.cache.fits(self._waiting[0].most):
                request = self._waiting[0]  # stays in a queue throughout: an error must find it
                request.slot, request.pages = self._model.cache.take(request.most)
                self._active.append(self._waiting.popleft())
            if self._waiting and not self._active:  # it would wait for ever
                raise OutOfMemoryError(f"A sequence of {self._waiting[0].most} tokens does not fit the cache.")
            if self._active:
                request = self._active[0]
                self._active.rotate(-1)
                self._advance(request)
            self._drop_cancelled_waiting()
        except Exception as e:  # every request must hear of it, whatever it is
            self._fail(e)
        return bool(self._active or self._waiting)

    def _drop_cancelled_waiting(self) -> None:
        for request in [r for r in self._waiting if r.cancelled.is_set()]:
            self._waiting.remove(request)
            request.events.put("cancelled")

    def _fail(self, error: Exception) -> None:
        for request in self._active:
            self._model.cache.give(request.slot, request.pages)
        for request in (*self._active, *self._waiting):
            request.events.put(error)
        self._active.clear()
        self._waiting.clear()
        self._decoding = None

    def _finish(self, request: Request, event: Any) -> None:
        self._active.remove(request)
        self._model.cache.give(request.slot, request.pages)
        if self._decoding is request:
            self._decoding = None
        request.events.put(event)

    def _advance(self, request: Request) -> None:
        if request.cancelled.is_set():
            self._finish(request, "cancelled")
        elif request.length < len(request.prompt):
            self._prefill(request)
        else:
            self._decode(request)

    # --- prefill ----------------------------------------------------------------------------

    def _prefill(self, request: Request) -> None:
        """The next chunk of the prompt; after the last one, the first token."""
        chunk = request.prompt[request.length : request.length + min(self._model.rows, ROW_BUCKETS[-1])]
        rows = bucket(len(chunk))
        last = request.length + len(chunk) - 1
        state = step_rows([0] * rows, last, self._model.cache.dump)  # padding rows write to a page of their own
        state[: len(chunk), 0] = chunk
        state[: len(chunk), 1] = np.arange(request.length, last + 1)
        state[: len(chunk), 2] = request.slot
        self._write(self._forward.arena.step_rows, state)
        self._decoding = None
        pace = self._rate * PACE_SECONDS
        self._forward.prefill(rows).run(segment_work=pace, cancelled=request.cancelled.is_set)
        request.length += len(chunk)
        if request.cancelled.is_set():
            return
        if request.want_logits:
            self._collect_logits(request, len(chunk))
        elif request.length == len(request.prompt):
            self._first_token(request, len(chunk) - 1)
        if request.want_logits and request.length == len(request.prompt):
            self._finish(request, np.concatenate(request.logits))

    def _collect_logits(self, request: Request, rows: int) -> None:
        arena = self._forward.arena
        for first in range(0, rows, HEAD_ROWS):
            count = min(HEAD_ROWS, rows - first)
            picks = step_rows(np.minimum(np.arange(first, first + bucket(count)), rows - 1), 0)
            self._write(arena.picks, picks)
            self._forward.head(len(picks)).run()
            request.logits.append(arena.logits.head(len(picks)).numpy()[:count].astype(np.float32))

    def _first_token(self, request: Request, row: int) -> None:
        arena = self._forward.arena
        self._write(arena.picks, step_rows([row], 0))
        self._settle(request, request.prompt[-1], request.length - 1)
        self._take(request, self._forward.first())

    # --- decode -----------------------------------------------------------------------------

    def _settle(self, request: Request, token: int, position: int) -> None:
        """Put a sequence's state into the decode buffers, where another's was."""
        arena, p = self._forward.arena, request.params
        self._write(arena.step_rows, step_rows([token], position, request.slot))
        self._write(arena.settings, draws([p.seed or 0], [p.temperature]))
        self._decoding = request

    def _decode(self, request: Request) -> None:
        """Run one step. The token and its position are on the device already, unless another sequence ran since."""
        if self._decoding is not request:
            self._settle(request, request.last, request.length)
        request.length += 1
        self._take(request, self._forward.decode(request.most))

    def _take(self, request: Request, plan: Any) -> None:
        """Run a plan that samples; read the token, hand it out, and end the sequence where it ends."""
        device, result = self._device, self._forward.arena.result
        slot = device.staging.take(16)
        plan.run(read=(result.part, slot))
        token, flag = np.frombuffer(device.gate.read(slot, 16), np.uint32)[:2].tolist()
        device.staging.give(slot)
        if flag:
            at = request.length
            self._finish(
                request,
                LlamaGPUError(
                    f"The logits are not finite after {at} tokens.",
                    "A NaN or an infinity came out of the model: broken weights, or values beyond float16.",
                    "Check the checkpoint, or use --dtype float32 and --kv-dtype float32.",
                ),
            )
            return
        request.last = token
        request.made += 1
        request.events.put(token)
        if token in request.stop_ids:
            self._finish(request, "stop")
        elif request.made >= request.limit:
            self._finish(request, "length")

    def _write(self, tensor: Any, values: npt.NDArray[np.uint32]) -> None:
        part = tensor.part
        self._device.write_bytes(part.buffer, part.offset, np.ascontiguousarray(values))
