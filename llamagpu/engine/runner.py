"""Running one model's plans: prompts in chunks, decode steps in batches. On the device thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.engine.request import Conversation, NotFinite, Request, Token
from llamagpu.errors import LlamaGPUError
from llamagpu.gpu import Device, Plan, Slot, Tensor
from llamagpu.kernels import NO_CUT, step_rows
from llamagpu.kernels.sampling import MOST_LOGPROBS, PROMPT_BIT, Settings
from llamagpu.model import Model
from llamagpu.model.forward import BATCHES, HEAD_ROWS, batch_limit, bucket

PACE_SECONDS = 0.1  # what one submission of a prefill should take
STEP_SECONDS = 1.0  # what one submission of a step may take: drivers stop what runs for seconds
# Multiply-adds a second that submissions are cut for, until long prompts have shown the true rate.
_RATE = {"software": 3e9, "integrated": 2e11, "discrete": 2e12, "other": 2e11}

Outcome = Token | NotFinite


@dataclass
class Flight:
    """A step that was submitted and not read yet."""

    batch: tuple[Request, ...]
    slot: Slot
    size: int


@dataclass
class Runner:
    """Moves the state of requests to the GPU, runs plans, brings tokens back."""

    device: Device
    model: Model

    def __post_init__(self) -> None:
        self._forward, self._arena = self.model.forward, self.model.forward.arena
        self._settled: tuple[Request, ...] = ()  # whose states the first rows of the decode buffers hold
        self._kept: list[Conversation] = []  # idle ones, whose slots and pages are not given back
        self._rate = _RATE[self.device.adapter.kind]
        self._biased: set[int] = set()  # slots whose row of the bias is not zero

    def fits(self, request: Request) -> bool:
        """Whether a request can begin now. What idle conversations keep is given up for it, the oldest first."""
        cache, own = self.model.cache, request.conversation
        while not cache.fits(request.most, own.pages if own and own.slot >= 0 else None):
            other = next((c for c in self._kept if c is not own), own if own in self._kept else None)
            if other is None:
                return False
            self._drop(other)
        return True

    def begin(self, request: Request) -> None:
        """Give a request its slot and pages, those of its conversation first, and set the slot's counts and bias."""
        cache, own = self.model.cache, request.conversation
        if own is not None and own in self._kept:
            self._kept.remove(own)
            request.length = own.shared(request.prompt)
            request.slot, request.pages = own.slot, cache.grow(own.slot, own.pages, request.most)
            own.slot = -1
        else:
            request.slot, request.pages = cache.take(request.most)
        s, vocab = request.settings, self.model.config.vocab_size
        if s.counted:
            counts = np.zeros(vocab, np.uint32)
            counts[np.asarray(request.prompt)] = PROMPT_BIT
            self._write_row(self._arena.sampler.counts, request.slot, counts)
        if request.bias or request.slot in self._biased:
            bias = np.zeros(vocab, np.float32)
            for token, value in request.bias.items():
                bias[token] = value
            self._write_row(self._arena.sampler.bias, request.slot, bias.view(np.uint32))
            (self._biased.add if request.bias else self._biased.discard)(request.slot)

    def end(self, request: Request) -> None:
        """Take the slot and pages back, or keep them for the conversation."""
        if request in self._settled:
            self._settled = ()
        own = request.conversation
        if own is None or own in self._kept:
            self.model.cache.give(request.slot, request.pages)
            return
        own.tokens = (request.prompt + request.tokens)[: request.length]
        own.slot, own.pages = request.slot, request.pages
        self._kept.append(own)

    def forget(self) -> None:
        """Give up all that idle conversations keep."""
        for conversation in tuple(self._kept):
            self._drop(conversation)

    def _drop(self, conversation: Conversation) -> None:
        self._kept.remove(conversation)
        self.model.cache.give(conversation.slot, conversation.pages)
        conversation.slot = -1

    def prefill(self, request: Request) -> list[Outcome]:
        """Run the next chunk of the prompt; after the last one, the first token (or, for ``want_logits``, none)."""
        chunk = request.prompt[request.length : request.length + self.model.rows]
        rows = bucket(len(chunk))
        last = request.length + len(chunk) - 1
        state = step_rows([0] * rows, last, self.model.cache.dump)  # padding rows write to a page of their own
        state[: len(chunk), 0] = chunk
        state[: len(chunk), 1] = np.arange(request.length, last + 1)
        state[: len(chunk), 2] = request.slot
        self._write(self._arena.step_rows, state)
        self._settled = ()
        plan, pace, start = self._forward.prefill(rows), self._rate * PACE_SECONDS, time.perf_counter()
        plan.run(segment_work=pace, cancelled=request.cancelled.is_set)
        if request.cancelled.is_set():  # perhaps before the chunk was through: it does not count
            return []
        if plan.work > 10 * pace:  # all but the last two submissions have been waited for
            self._rate = (plan.work - 2 * pace) / (time.perf_counter() - start)
        request.length += len(chunk)
        if request.want_logits:
            self._collect_logits(request, len(chunk))
            return []
        if request.length < len(request.prompt):
            return []
        self._write(self._arena.picks, step_rows([len(chunk) - 1], 0))
        self._settle((request,), request.prompt[-1:], [request.length - 1])
        return self.collect(self._submit((request,), self._forward.first(request.settings.plain)))

    def follows(self, batch: tuple[Request, ...]) -> bool:
        """Whether the state on the device is that of these requests, so that a step needs nothing from the host."""
        return self._settled == batch

    def launch(self, batch: tuple[Request, ...]) -> Flight:
        """Submit one step of requests that are all plain or all not. Where the device holds the state of others, that
        of these is written first: nothing may be in flight then."""
        if not self.follows(batch):
            self._settle(batch, [r.last for r in batch], [r.length for r in batch])
        rows = bucket(len(batch), BATCHES)
        positions = max(r.most for r in batch)
        flight = self._submit(batch, self._forward.decode(rows, positions, batch[0].settings.plain))
        for request in batch:
            request.in_flight += 1
        return flight

    def land(self, flight: Flight) -> list[Outcome]:
        """Wait for a launched step: its tokens, or why there is none, in the order of its batch."""
        for request in flight.batch:
            request.in_flight -= 1
            request.length += 1
        return self.collect(flight)

    def batch_of(self, requests: Sequence[Request]) -> list[Request]:
        """As many requests from the front as decode in one step."""
        context, out = self.model.context, list(requests[: BATCHES[-1]])
        while bucket(len(out), BATCHES) > batch_limit(context, max(r.most for r in out)):
            out.pop()
        return out

    def abandon(self, flight: Flight) -> None:
        """Give back what a step that nobody reads holds, as far as the device still answers."""
        try:
            self.land(flight)
        except LlamaGPUError:
            self.device.free(flight.slot.buffer)

    def _collect_logits(self, request: Request, rows: int) -> None:
        for first in range(0, rows, HEAD_ROWS):
            count = min(HEAD_ROWS, rows - first)
            picks = step_rows(np.minimum(np.arange(first, first + bucket(count, BATCHES)), rows - 1), 0)
            self._write(self._arena.picks, picks)
            self._forward.head(len(picks)).run()
            logits = self._arena.logits.head(len(picks)).numpy()[:count]
            request.logits.append(logits.astype(np.float32))

    def _settle(self, batch: tuple[Request, ...], tokens: Sequence[int], positions: Sequence[int]) -> None:
        """Put the state of sequences into the decode buffers, where others' was; the rest are padding rows."""
        assert not any(r.in_flight for r in batch)
        rows, count = bucket(len(batch), BATCHES), len(batch)
        sampler, plain = self._arena.sampler, batch[0].settings.plain
        state = step_rows([0] * rows, 0, self.model.cache.dump)
        state[:count, 0], state[:count, 1] = tokens, positions
        state[:count, 2] = [r.slot for r in batch]
        settings = [r.settings for r in batch] + [Settings()] * (rows - count)
        draws = [s.draw(plain, r.last_position, sorted(r.stop_ids)) for s, r in zip(settings, batch, strict=False)]
        draws += [s.draw(plain) for s in settings[count:]]
        self._write(self._arena.step_rows, state)
        self._write(sampler.draws, np.stack(draws))
        self._write(sampler.cuts, np.tile(np.array(NO_CUT, np.uint32), (rows, 1)))
        if not plain:
            self._write(sampler.settings, np.stack([s.pack() for s in settings]))
        self._settled = batch

    def _submit(self, batch: tuple[Request, ...], plan: Plan) -> Flight:
        """Run a plan that samples; what it finds is copied to a staging slot behind it."""
        count, sampler = len(batch), self._arena.sampler
        wanted = [sampler.result.head(count).part]
        if any(r.settings.logprobs for r in batch):
            wanted.append(sampler.likely.head(count).part)
        size = sum(p.size for p in wanted)
        slot = self.device.staging.take(size)
        most = self._rate * STEP_SECONDS
        plan.run(read=(slot, wanted), segment_work=most if plan.work > most else None)
        return Flight(batch, slot, size)

    def collect(self, flight: Flight) -> list[Outcome]:
        """Wait for what a submitted plan sampled: a token, or why there is none, for every request."""
        batch, count = flight.batch, len(flight.batch)
        raw = np.frombuffer(self.device.gate.read(flight.slot, flight.size), np.uint32)
        self.device.staging.give(flight.slot)
        results = raw[: 4 * count].reshape(count, 4)
        likely = raw[4 * count :].reshape(-1, MOST_LOGPROBS, 2)
        out: list[Outcome] = []
        for i, request in enumerate(batch):
            if results[i, 1]:
                out.append(NotFinite(request.length))
                continue
            n = request.settings.logprobs
            top = (
                [(int(t), float(p)) for t, p in zip(likely[i, :n, 0], likely[i, :n, 1].view(np.float32), strict=True)]
                if n
                else []
            )
            logprob = float(results[i, 2:3].view(np.float32)[0]) if n else None
            out.append(Token(int(results[i, 0]), logprob, top))
        return out

    def _write(self, tensor: Tensor, values: npt.NDArray[Any]) -> None:
        part = tensor.part
        self.device.write_bytes(part.buffer, part.offset, np.ascontiguousarray(values))

    def _write_row(self, tensor: Tensor, row: int, values: npt.NDArray[Any]) -> None:
        part = tensor.part
        self.device.write_bytes(part.buffer, part.offset + row * tensor.stride * 4, values)
