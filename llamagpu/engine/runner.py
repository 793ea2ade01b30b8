"""Running one model's plans: prompts in chunks, decode steps in batches. On the device thread."""

from __future__ import annotations

import time
from collections.abc import Sequence as Iterable
from dataclasses import dataclass

import numpy as np

from llamagpu.engine.request import NotFinite, Sequence, Token
from llamagpu.errors import LlamaGPUError
from llamagpu.gpu import Device, Plan
from llamagpu.kernels.product import MAX_VECTORS
from llamagpu.kernels.step import Sampled
from llamagpu.model import Model
from llamagpu.model.forward import BATCHES, HEAD_ROWS, batch_limit, bucket
from llamagpu.model.step import Reading

PACE_SECONDS = 0.1  # goal for one submission of a prefill
STEP_SECONDS = 1.0  # most for one submission of a step: drivers stop commands that run for seconds
# Multiply-adds a second, assumed until a long prompt has shown the true rate.
_RATE = {"software": 3e9, "integrated": 2e11, "discrete": 2e12, "other": 2e11}

Outcome = Token | NotFinite


@dataclass
class Flight:
    """A submitted step whose results were not read yet."""

    batch: tuple[Sequence, ...]
    reading: Reading


class Runner:
    """Writes the state of sequences to the GPU, runs plans, and reads tokens back."""

    def __init__(self, device: Device, model: Model):
        self._model, self._forward, self._state = model, model.forward, model.forward.state
        self._settled: tuple[Sequence, ...] = ()  # sequences whose states the first rows of the decode buffers hold
        self._rate = _RATE[device.adapter.kind]

    def begin(self, sequence: Sequence) -> bool:
        """Give a sequence its slot and pages, and set the slot's counts and bias; False if the cache has no room
        now."""
        request = sequence.request
        prefix = sequence.tokens if request.reuse != "none" else []
        if request.want_logits:
            prefix = prefix[: request.first + 1]  # the position of the first wanted logits must run
        pages = self._model.cache.take(request.most, prefix, request.reuse == "exact")
        if pages is None:
            return False
        sequence.pages, sequence.length, sequence.exact = pages, pages.cached, pages.exact
        if sequence.events.cached is None:  # not if it goes on after it lost its pages
            sequence.events.cached = min(pages.cached, len(request.prompt))
        made = sequence.tokens[len(request.prompt) :] if request.settings.counted else None
        self._state.begin_sequence(pages.slot, request.prompt, made, dict(request.bias))
        return True

    def end(self, sequence: Sequence) -> None:
        """Take the slot and pages back; the cache keeps their contents until it needs the pages."""
        if sequence in self._settled:
            self._settled = ()
        if sequence.pages is not None:
            self._model.cache.give(sequence.pages, sequence.tokens[: sequence.length], sequence.exact)
            sequence.pages = None

    def prefill(self, sequence: Sequence) -> list[Outcome]:
        """Run the next chunk of a prompt. The last one gives the first token, unless logits were asked for or the
        sequence only resumes."""
        request, first = sequence.request, sequence.length
        chunk, rows = self._chunk(sequence)
        self._state.write_prompt(chunk, first, sequence.slot, rows)
        self._settled = ()
        self._run_paced(self._forward.prefill(rows), sequence)
        if sequence.cancelled.is_set():  # perhaps in the middle of the chunk, which does not count then
            return []
        if sequence.exact == first:
            sequence.exact += len(chunk)
        sequence.length += len(chunk)
        if request.want_logits:
            self._collect_logits(sequence, len(chunk))
            return []
        if not sequence.prefilled or sequence.made:
            return []
        self._state.pick([len(chunk) - 1])
        self._state.write_rows([sequence.row_at(sequence.length - 1)], 1)
        self._settled = (sequence,)
        return self._outcomes(self._submit((sequence,), self._forward.first(request.settings.plain)))

    def _chunk(self, sequence: Sequence) -> tuple[list[int], int]:
        """The tokens that are prefilled next, and the rows of their plan.

        A sequence that begins in the cache has the bits of a lone run: its chunks end where those of a lone run end,
        and have more than ``MAX_VECTORS`` rows if these have, because products of more rows add up in another order.
        """
        first, end, most = sequence.length, sequence.decodes_from, self._model.sizes.rows
        begin = first // most * most
        chunk = sequence.tokens[first : min(begin + most, end)]
        alone = min(most, end - begin)
        return chunk, bucket(max(len(chunk), min(alone, MAX_VECTORS + 1)))

    def _run_paced(self, plan: Plan, sequence: Sequence) -> None:
        """Run a plan in submissions of about ``PACE_SECONDS``, and learn the rate from a long one."""
        pace, start = self._rate * PACE_SECONDS, time.perf_counter()
        plan.run(segment_work=pace, cancelled=sequence.cancelled.is_set)
        if not sequence.cancelled.is_set() and plan.work > 10 * pace:  # all but the last two submissions are done
            self._rate = (plan.work - 2 * pace) / (time.perf_counter() - start)

    def unsettle(self) -> None:
        """Note that the buffers of the step hold the state of no sequence: another plan has used them."""
        self._settled = ()

    @property
    def segment_work(self) -> float:
        """The most multiply-adds of one submission, at the rate that is known."""
        return self._rate * STEP_SECONDS

    def follows(self, batch: tuple[Sequence, ...]) -> bool:
        """Whether the device holds the state of these sequences, so that a step needs nothing from the host."""
        return self._settled == batch

    def launch(self, batch: tuple[Sequence, ...]) -> Flight:
        """Submit one step of sequences, whose settings are all plain or all not. If the device holds the state of other
        sequences, the state of these is written first; then nothing may be in flight."""
        rows = bucket(len(batch), BATCHES)
        if not self.follows(batch):
            assert not any(s.in_flight for s in batch)
            self._state.write_rows([s.row() for s in batch], rows)
            self._settled = batch
        positions = max(s.request.most for s in batch)
        flight = self._submit(batch, self._forward.decode(rows, positions, batch[0].request.settings.plain))
        for sequence in batch:
            sequence.in_flight += 1
        return flight

    def land(self, flight: Flight) -> list[Outcome]:
        """Wait for a launched step; returns its tokens, or errors, in the order of its batch."""
        for sequence in flight.batch:
            sequence.in_flight -= 1
            sequence.length += 1
        return self._outcomes(flight)

    def batch_of(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """The first sequences, as many as can decode in one step."""
        context, out = self._model.context, list(sequences[: BATCHES[-1]])
        while bucket(len(out), BATCHES) > batch_limit(context, max(s.request.most for s in out)):
            out.pop()
        return out

    def abandon(self, flight: Flight) -> None:
        """Drop the results of a launched step, and free its staging memory even if the device does not answer."""
        try:
            self.land(flight)
        except LlamaGPUError:
            self._state.drop(flight.reading)

    def _collect_logits(self, sequence: Sequence, rows: int) -> None:
        """Read the wanted logits of the last chunk, which had ``rows`` positions."""
        unwanted = max(0, sequence.request.first - (sequence.length - rows))
        for first in range(unwanted, rows, HEAD_ROWS):
            count = min(HEAD_ROWS, rows - first)
            padded = bucket(count, BATCHES)
            self._state.pick([min(i, rows - 1) for i in range(first, first + padded)])
            self._forward.head(padded).run()
            sequence.logits.append(self._forward.logits.head(padded).numpy()[:count].astype(np.float32))

    def _submit(self, batch: tuple[Sequence, ...], plan: Plan) -> Flight:
        """Run a plan that samples, and copy its results to staging memory."""
        reading, windows = self._state.reading([s.request.settings for s in batch])
        most = self.segment_work
        plan.run(read=(reading.slot, windows), segment_work=most if plan.work > most else None)
        return Flight(batch, reading)

    def _outcomes(self, flight: Flight) -> list[Outcome]:
        sampled = self._state.read(flight.reading)
        return [_outcome(sequence, result) for sequence, result in zip(flight.batch, sampled, strict=True)]


def _outcome(sequence: Sequence, result: Sampled) -> Outcome:
    if not result.finite:
        return NotFinite.after(sequence.length)
    wanted = sequence.request.settings.logprobs
    return Token(result.id, result.logprob if wanted else None, list(result.likely))
