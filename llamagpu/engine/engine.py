"""The loop on the device thread: admits sequences, prefills them, decodes in batches, and delivers tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from llamagpu.engine.bound_prompts import BoundPrompts
from llamagpu.engine.drafts import Drafter, guess, must_land
from llamagpu.engine.request import Draft, NotFinite, Outcome, Request, Sequence
from llamagpu.engine.runner import Flight, Runner
from llamagpu.engine.scheduler import Scheduler
from llamagpu.errors import DeviceLostError, OutOfMemoryError
from llamagpu.gpu import Device, Lost, Tensor
from llamagpu.model import Model
from llamagpu.model.bound import BoundPrompt
from llamagpu.model.decoder_packs import DecoderPacks

IN_FLIGHT = 2  # steps that are submitted before the oldest is read


class Engine:
    """Runs requests of one model together. ``submit``, ``bind``, ``run`` and ``unbind`` are called from any
    thread, everything else is on the device thread.

    A step is launched before the results of the previous one were read, because the device has its tokens. Sequences
    that end on the device (``kernels.sampling``) write nothing more. If a sequence ends by a stop string or a
    cancellation, which the host notices later, the steps in flight only write positions beyond its length, which are
    never read. The queue runs in order, so another sequence that gets its pages writes them after those steps.

    Requests join and leave the running batch at any token. Pages are taken as a sequence grows; if they run out, the
    youngest sequence waits and goes on from its tokens later. What it made is replayed by the kernels that made it, so
    that its bits do not change.

    After an error in a pass or a step, its sequences run alone, and the one that fails ends. If the device is lost, the
    step raises, and ``restart`` continues every sequence from its tokens.
    """

    def __init__(self, device: Device, model: Model, drafter: Drafter | None = None):
        self._device, self._thread, self._model = device, device.thread, model
        self._runner = Runner(device, model)
        self.scheduler, self._drafter = Scheduler(), drafter
        self._flights: deque[Flight] = deque()
        self._bound = BoundPrompts(model, self._runner)
        self._closed: Exception | None = None
        self._thread.add(self._step)

    def submit(self, request: Request, **fields: Any) -> Sequence:
        """Queue a request. The events of the returned sequence come from the device thread."""
        sequence = Sequence(request, **fields)

        def enter() -> None:
            if self._closed is None:
                self.scheduler.waiting.append(sequence)
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
        return self._thread.call(lambda: self._bound.bind(tensors, self.scheduler.longest))

    def run(self, prompt: BoundPrompt) -> None:
        """Submit a run of bound tensors, and wait for nothing. From any thread."""
        self._thread.call(lambda: self._bound.run(prompt))

    def unbind(self, prompt: BoundPrompt) -> None:
        """Take the slot and the pages of a bound prompt back. From any thread, also while Python collects garbage."""
        try:
            self._thread.post(lambda: self._bound.unbind(prompt))
        except DeviceLostError:
            pass  # the device freed everything

    def packs(self) -> DecoderPacks:
        """What runs packs of texts for their pooled hidden states, beside the generation of this engine."""
        runner = self._runner
        return DecoderPacks(
            self._device, self._model, lambda: bool(self.scheduler.active), runner.unsettle, lambda: runner.segment_work
        )

    def close(self) -> None:
        """End every sequence with an error and stop."""
        self._thread.remove(self._step)
        self._closed = DeviceLostError("The model was closed.", "It was still generating.", "Load it again.")
        self._fail_all(self._closed)
        self._bound.close(self._closed)
        self._model.forward.free()
        if self._drafter is not None:
            self._drafter.free()

    def restart(self, model: Model, drafter: Drafter | None = None) -> None:
        """Continue on a model that was loaded again: every sequence from its tokens, the oldest first."""
        self._model, self._runner, self._drafter = model, Runner(self._device, model), drafter
        self._bound = BoundPrompts(model, self._runner)
        self._flights.clear()
        self.scheduler.restart()

    def fail(self, error: Exception) -> None:
        """End every sequence, and those to come, with an error."""
        self._closed = error
        self._fail_all(error)
        self._bound = BoundPrompts(self._model, self._runner)
        self._bound.closed = error

    def _step(self) -> bool:
        """One unit of work: a chunk of prompts, and a token for a batch; returns whether there is more."""
        try:
            self._drop_cancelled()
            self._admit()
            self._prefill()
            self._decode()
        except Lost:
            raise
        except Exception as e:  # every sequence must get the error, of any kind
            self._fail_all(e)
        return bool(self.scheduler.active or self.scheduler.waiting or self._flights)

    def _drop_cancelled(self) -> None:
        scheduler = self.scheduler
        for sequence in [s for s in scheduler.waiting if s.cancelled.is_set()]:
            scheduler.waiting.remove(sequence)
            sequence.events.put("cancelled")
        for sequence in [s for s in scheduler.active if s.cancelled.is_set()]:
            self._finish(sequence, "cancelled")

    def _admit(self) -> None:
        """Admit waiting sequences in order, while the cache has room for their tokens and for a page more for each that
        runs."""
        scheduler = self.scheduler
        while scheduler.waiting:
            sequence = scheduler.waiting[0]
            try:
                if not self._runner.begin(sequence, len(scheduler.active)):
                    if scheduler.active:
                        return
                    raise self._full(sequence)
            except DeviceLostError:
                raise
            except Exception as e:  # it ends this sequence only
                scheduler.waiting.popleft()
                self._runner.end(sequence)
                sequence.events.put(e)
                continue
            scheduler.active.append(scheduler.waiting.popleft())

    def _full(self, sequence: Sequence) -> OutOfMemoryError:
        held = f"{len(self._bound)} bound sessions hold a part of it." if self._bound else ""
        return OutOfMemoryError(f"A sequence of {sequence.request.most} tokens does not fit the cache.", held)

    def _prefill(self) -> None:
        """The next chunk: of tokens to replay, or of prompts, as many as share a pass. Beside sequences that decode, it
        is short."""
        scheduler, runner = self.scheduler, self._runner
        again = scheduler.replaying()
        if again is not None:
            self._guarded([again], lambda: runner.replay(again))
            return
        prompts = scheduler.prompts()
        if not prompts:
            return
        pack = runner.pack(prompts, runner.chunk_rows(beside=bool(scheduler.ready)))

        def run() -> None:
            done = runner.prefill(pack)
            self._take([s for s, _ in done], [outcome for _, outcome in done])
            for s, _ in pack:
                if s.request.want_logits and s.prefilled and not s.cancelled.is_set():
                    self._finish(s, np.concatenate(s.logits))

        self._guarded([s for s, _ in pack], run)

    def _guarded(self, sequences: Iterable[Sequence], run: Callable[[], None]) -> bool:
        """Run something for sequences. If it fails, they run alone next, and one that fails alone ends with the error.
        Returns whether it went well."""
        concerned = list(sequences)
        try:
            run()
        except DeviceLostError:
            raise
        except Exception as e:
            self._land_all()
            for sequence in [s for s in concerned if s in self.scheduler.active]:
                if len(concerned) == 1:
                    self._finish(sequence, e)
                sequence.alone = True
            return False
        for sequence in concerned:
            sequence.alone = False
        return True

    def _decode(self) -> None:
        """A step of the sequences that are ready, as many as one holds."""
        batch = self._batch()
        if self._flights and not (self._flights[-1].batch == batch and self._runner.follows(batch)):
            self._land_all()  # the next step needs its tokens on the host; it may end some
            batch = self._batch()
        if not batch:
            self._land_all()
            return
        if not self._reserve(batch):
            return
        if not self._speculate(batch):
            steps = 1 if self._drafter is not None else self._runner.steps(batch)
            self._guarded(batch, lambda: self._flights.append(self._runner.launch(batch, steps)))
        if len(self._flights) > IN_FLIGHT:
            self._land()
        if len(batch) < len(self.scheduler.steps()):  # sequences that did not run go first next time
            self._land_all()
            self.scheduler.ran(batch)

    def _speculate(self, batch: tuple[Sequence, ...]) -> bool:
        """Verify guesses of the next tokens in one step, or make masks for it; False if there are none."""
        if self._flights and any(must_land(s, self._drafter) for s in batch):
            self._land_all()  # guesses and masks follow the newest tokens, which the next call has
            return True
        drafts = guess(self._drafter, batch, self._runner)
        if drafts:
            self._guarded(batch, lambda: self._verify(drafts))
        return bool(drafts)

    def _verify(self, drafts: list[Draft]) -> None:
        for draft, outcomes in zip(drafts, self._runner.verify(drafts), strict=True):
            self.scheduler.judged(draft, len(outcomes) - 1)
            self._take([draft.sequence] * len(outcomes), outcomes)

    def _batch(self) -> tuple[Sequence, ...]:
        """The sequences of the next step."""
        more = self.scheduler.steps()
        return tuple(self._runner.batch_of(more)) if more else ()

    def _reserve(self, batch: tuple[Sequence, ...]) -> bool:
        """Pages for the next position of every sequence. If there are none, the youngest sequence gives up its own and
        resumes from its tokens later; then the batch is another one, and this returns False."""
        for sequence in batch:
            if self._runner.reserve(sequence, 1):
                continue
            self._land_all()
            victim = self.scheduler.youngest() if self.scheduler.active else sequence
            if victim is sequence and len(self.scheduler.active) == 1:
                self._finish(sequence, self._full(sequence))
            elif victim in self.scheduler.active:
                self._release(victim)
                self.scheduler.preempt(victim)
            return False
        return True

    def _land(self) -> None:
        flight = self._flights.popleft()
        for outcomes in self._runner.land(flight):
            self._take(flight.batch, outcomes)

    def _land_all(self) -> None:
        while self._flights:
            self._land()

    def _take(self, sequences: Iterable[Sequence], outcomes: Iterable[Outcome]) -> None:
        """Deliver tokens, and finish the sequences that end with them."""
        for sequence, token in zip(sequences, outcomes, strict=True):
            if sequence not in self.scheduler.active:  # it ended while this step was in flight
                continue
            if isinstance(token, NotFinite):
                self._finish(sequence, token)
                continue
            end = sequence.take(token.id)
            sequence.events.put(token)
            if end is not None:
                self._finish(sequence, end)

    def _finish(self, sequence: Sequence, event: Any) -> None:
        self.scheduler.active.remove(sequence)
        self._release(sequence)
        sequence.events.put(event)

    def _release(self, sequence: Sequence) -> None:
        """Take back what a sequence holds."""
        self._runner.end(sequence)
        if self._drafter is not None:
            self._drafter.end(sequence)

    def _fail_all(self, error: Exception) -> None:
        while self._flights:
            self._runner.abandon(self._flights.popleft())
        for sequence in self.scheduler.active:
            self._release(sequence)
        for sequence in self.scheduler.clear():
            sequence.events.put(error)
