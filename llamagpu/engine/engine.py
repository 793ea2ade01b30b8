"""The loop on the device thread: admits sequences, prefills them, decodes in batches, and delivers tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llamagpu.engine.request import NotFinite, Request, Sequence
from llamagpu.engine.runner import Flight, Outcome, Runner
from llamagpu.errors import DeviceLostError, OutOfMemoryError
from llamagpu.gpu import Device, Lost, Tensor
from llamagpu.model import Model
from llamagpu.model.bound import INPUT, BoundPrompt
from llamagpu.model.decoder_packs import DecoderPacks

IN_FLIGHT = 2  # steps that are submitted before the oldest is read


class Engine:
    """Runs requests of one model together. ``submit``, ``bind``, ``run`` and ``unbind`` are called from any
    thread, everything else is on the device thread.

    A step is launched before the results of the previous one were read, because the device has its tokens. Sequences
    that end on the device (``kernels.sampling``) write nothing more. If a sequence ends by a stop string or a
    cancellation, which the host notices later, the steps in flight only write positions beyond its length, which are
    never read. The queue runs in order, so another sequence that gets its pages writes them after those steps.

    An error while a sequence is admitted or prefilled ends that sequence; an error in a step ends the sequences of the
    step. If the device is lost, the step raises, and ``restart`` continues every sequence from its tokens.
    """

    def __init__(self, device: Device, model: Model):
        self._device, self._thread, self._model = device, device.thread, model
        self._runner = Runner(device, model)
        self._waiting: deque[Sequence] = deque()
        self._active: list[Sequence] = []
        self._flights: deque[Flight] = deque()
        self._bound: set[BoundPrompt] = set()
        self._turn = 0
        self._closed: Exception | None = None
        self._thread.add(self._step)

    def submit(self, request: Request, **fields: Any) -> Sequence:
        """Queue a request. The events of the returned sequence come from the device thread."""
        sequence = Sequence(request, **fields)

        def enter() -> None:
            if self._closed is None:
                self._waiting.append(sequence)
            else:
                sequence.events.put(self._closed)

        self._thread.post(enter)
        return sequence

    def bind(self, tensors: Mapping[str, Tensor]) -> BoundPrompt:
        """Take a slot and pages for a prompt of bound tensors, checked before; see ``Bound``. From any thread.

        Raises:
            OutOfMemoryError: the cache has no room now.
            DeviceLostError: the model is closed.
        """
        return self._thread.call(lambda: self._bind(tensors))

    def _bind(self, tensors: Mapping[str, Tensor]) -> BoundPrompt:
        self._check_open()
        cache, count = self._model.cache, tensors[INPUT].columns
        pages = cache.take(count)
        if pages is None:
            raise OutOfMemoryError(
                f"The cache has no room for {count} bound tokens now.",
                f"{cache.free_pages} pages and {cache.free_slots} slots are free.",
                "Close other bound sessions, wait until generations end, or use a smaller context.",
            )
        try:
            prompt = BoundPrompt(self._model, pages, tensors, self._runner.segment_work)
        except BaseException:
            cache.give(pages)
            raise
        self._bound.add(prompt)
        return prompt

    def run(self, prompt: BoundPrompt) -> None:
        """Submit a run of bound tensors, and wait for nothing. From any thread."""

        def run() -> None:
            self._check_open()
            if prompt not in self._bound:
                raise DeviceLostError("The bound tensors were lost with their device.", "", "Bind new ones.")
            self._runner.unsettle()
            prompt.commands.run()

        self._thread.call(run)

    def unbind(self, prompt: BoundPrompt) -> None:
        """Take the slot and the pages of a bound prompt back. From any thread, also while Python collects garbage."""

        def give() -> None:
            if prompt in self._bound:
                self._bound.remove(prompt)
                self._model.cache.give(prompt.pages)
                prompt.words.free()

        try:
            self._thread.post(give)
        except DeviceLostError:
            pass  # the device freed everything

    def packs(self) -> DecoderPacks:
        """What runs packs of texts for their pooled hidden states, beside the generation of this engine."""
        runner = self._runner
        return DecoderPacks(
            self._device, self._model, lambda: bool(self._active), runner.unsettle, lambda: runner.segment_work
        )

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    def close(self) -> None:
        """End every sequence with an error and stop."""
        self._thread.remove(self._step)
        self._closed = DeviceLostError("The model was closed.", "It was still generating.", "Load it again.")
        self._fail_all(self._closed)
        for prompt in self._bound:
            prompt.words.free()
        self._bound.clear()
        self._model.forward.free()

    def restart(self, model: Model) -> None:
        """Continue on a model that was loaded again: every sequence from its tokens, in the order of before."""
        self._model, self._runner = model, Runner(self._device, model)
        self._flights.clear()
        self._bound.clear()
        self._waiting.extendleft(reversed(self._active))
        self._active.clear()
        for sequence in self._waiting:
            sequence.restart()

    def fail(self, error: Exception) -> None:
        """End every sequence, and those to come, with an error."""
        self._closed = error
        self._fail_all(error)
        self._bound.clear()

    def _step(self) -> bool:
        """One unit of work: a chunk of one prompt, and a token for a batch; returns whether there is more."""
        try:
            self._drop_cancelled()
            self._admit()
            self._prefill()
            self._decode()
        except Lost:
            raise
        except Exception as e:  # every sequence must get the error, of any kind
            self._fail_all(e)
        return bool(self._active or self._waiting or self._flights)

    def _drop_cancelled(self) -> None:
        for sequence in [s for s in self._waiting if s.cancelled.is_set()]:
            self._waiting.remove(sequence)
            sequence.events.put("cancelled")
        for sequence in [s for s in self._active if s.cancelled.is_set()]:
            self._finish(sequence, "cancelled")

    def _admit(self) -> None:
        """Admit waiting sequences in order, while the cache has room for all tokens that they may need."""
        while self._waiting:
            sequence = self._waiting[0]
            try:
                if not self._runner.begin(sequence):
                    if self._active:
                        return
                    held = f"{len(self._bound)} bound sessions hold a part of it." if self._bound else ""
                    most = sequence.request.most
                    raise OutOfMemoryError(f"A sequence of {most} tokens does not fit the cache.", held)
            except DeviceLostError:
                raise
            except Exception as e:  # it ends this sequence only
                self._waiting.popleft()
                self._runner.end(sequence)
                sequence.events.put(e)
                continue
            self._active.append(self._waiting.popleft())

    def _prefill(self) -> None:
        sequence = next((s for s in self._active if not s.prefilled), None)
        if sequence is None:
            return
        try:
            self._take((sequence,), self._runner.prefill(sequence))
            if sequence.request.want_logits and sequence.prefilled and not sequence.cancelled.is_set():
                self._finish(sequence, np.concatenate(sequence.logits))
        except DeviceLostError:
            raise
        except Exception as e:  # it ends this sequence only
            self._finish(sequence, e)

    def _decode(self) -> None:
        """A step of the plain sequences, or of the others. They are not mixed, so that no sequence affects another."""
        ready = [s for s in self._active if s.prefilled and not s.request.want_logits]
        more = [s for s in ready if s.made + s.in_flight < s.request.limit]
        plain, filtered = (
            [s for s in more if s.request.settings.plain],
            [s for s in more if not s.request.settings.plain],
        )
        kinds = [kind for kind in (plain, filtered) if kind]
        if not kinds:
            self._land_all()
            return
        self._turn += 1
        batch = tuple(self._runner.batch_of(kinds[self._turn % len(kinds)]))
        if self._flights and not (self._flights[-1].batch == batch and self._runner.follows(batch)):
            self._land_all()  # the next step needs its tokens on the host; it may end some
            return
        if not self._launch(batch):
            return
        if len(self._flights) > IN_FLIGHT:
            self._land()
        if len(batch) < len(ready):  # sequences that did not run go first next time
            self._land_all()
            self._active = [s for s in self._active if s not in batch] + [s for s in self._active if s in batch]

    def _launch(self, batch: tuple[Sequence, ...]) -> bool:
        """Launch a step; if that fails, its sequences end with the error."""
        try:
            self._flights.append(self._runner.launch(batch))
        except DeviceLostError:
            raise
        except Exception as e:
            self._land_all()
            for sequence in [s for s in batch if s in self._active]:
                self._finish(sequence, e)
            return False
        return True

    def _land(self) -> None:
        flight = self._flights.popleft()
        self._take(flight.batch, self._runner.land(flight))

    def _land_all(self) -> None:
        while self._flights:
            self._land()

    def _take(self, sequences: Iterable[Sequence], outcomes: list[Outcome]) -> None:
        """Deliver tokens, and finish the sequences that end with them."""
        for sequence, token in zip(sequences, outcomes, strict=False):
            if sequence not in self._active:  # it ended while this step was in flight
                continue
            if isinstance(token, NotFinite):
                self._finish(sequence, token)
                continue
            sequence.tokens.append(token.id)
            sequence.events.put(token)
            if token.id in sequence.request.stop_ids:
                self._finish(sequence, "stop")
            elif sequence.made >= sequence.request.limit:
                self._finish(sequence, "length")

    def _finish(self, sequence: Sequence, event: Any) -> None:
        self._active.remove(sequence)
        self._runner.end(sequence)
        sequence.events.put(event)

    def _fail_all(self, error: Exception) -> None:
        while self._flights:
            self._runner.abandon(self._flights.popleft())
        for sequence in self._active:
            self._runner.end(sequence)
        for sequence in (*self._active, *self._waiting):
            sequence.events.put(error)
        self._active.clear()
        self._waiting.clear()
