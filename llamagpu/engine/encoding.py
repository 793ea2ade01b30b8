"""The loop of packs on the device thread: texts of all calls are packed together in the order of their arrival."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from llamagpu.engine.request import NotFinite
from llamagpu.errors import DeviceLostError
from llamagpu.gpu import Device, Lost, Readback
from llamagpu.model.packs import Encoded, Floats, PackModel

_IN_FLIGHT = 2  # packs that are submitted before the oldest is read


@dataclass(eq=False)
class Job:
    """The texts of one submission. ``done`` gets their pooled vectors, float32 [texts, hidden of every mode]."""

    texts: Sequence[Encoded]
    modes: tuple[str, ...]
    done: Future[Floats] = field(default_factory=Future)
    vectors: dict[int, Floats] = field(default_factory=dict)


@dataclass
class _Flight:
    """A submitted pack: the jobs and the numbers of its texts, and its vectors to come."""

    taken: list[tuple[Job, int]]
    vectors: list[Readback]


class EncoderEngine:
    """Runs the texts of all calls in packs. Everything but ``submit`` is on the device thread.

    A text whose vector is not finite may have spoiled its neighbours in the pack. So all such texts run again alone,
    and only those that are not finite then are errors.
    """

    def __init__(self, device: Device, model: PackModel):
        self._thread, self._model = device.thread, model
        self._waiting: deque[tuple[Job, int]] = deque()
        self._alone: deque[tuple[Job, int]] = deque()
        self._flights: deque[_Flight] = deque()
        self._closed: Exception | None = None
        self._thread.add(self._step)

    def submit(self, texts: Sequence[Encoded], modes: tuple[str, ...]) -> Future[Floats]:
        """Queue texts. Longer ones go first, because neighbours of one length share their attention's blocks."""
        job = Job(texts, modes)
        if not texts:
            job.done.set_result(np.empty((0, len(modes) * self._model.hidden_size), np.float32))
            return job.done
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i].ids))

        def enter() -> None:
            if self._closed is not None:
                job.done.set_exception(self._closed)
            else:
                self._waiting.extend((job, i) for i in order)

        self._thread.post(enter)
        return job.done

    @property
    def rows(self) -> int:
        """Tokens of the largest pack."""
        return self._model.rows

    def close(self) -> None:
        """End every job with an error and stop."""
        self._thread.remove(self._step)
        self._closed = DeviceLostError("The model was closed.", "It was still encoding.", "Load it again.")
        while self._flights:
            try:
                self._land()
            except DeviceLostError:
                break
        self.fail(self._closed)
        self._model.free()

    def restart(self, model: PackModel) -> None:
        """Continue on a model that was loaded again; packs that were not read run again."""
        self._model = model
        self._waiting.extendleft(item for flight in reversed(self._flights) for item in reversed(flight.taken))
        self._flights.clear()

    def fail(self, error: Exception) -> None:
        """End every job, and those to come, with an error."""
        self._closed = error
        taken = [item for flight in self._flights for item in flight.taken]
        self._fail((job for job, _ in (*taken, *self._alone, *self._waiting)), error)
        for queue in (self._flights, self._alone, self._waiting):
            queue.clear()

    def _step(self) -> bool:
        """Launch a pack, or read the oldest one."""
        launched = len(self._flights) < _IN_FLIGHT and self._launch()
        if self._flights and not launched:
            self._land()
        return bool(self._alone or self._waiting or self._flights)

    def _launch(self) -> bool:
        """Submit the next pack, if there is one that can run now."""
        texts = self._alone or self._waiting
        while texts and texts[0][0].done.done():  # its job failed in an earlier pack
            texts.popleft()
        if not texts:
            return False
        taken, count = [texts[0]], 0
        try:
            count = self._model.most(self._lengths(texts))
            taken = [texts.popleft() for _ in range(count)]
            if taken:
                vectors = self._model.launch([job.texts[i] for job, i in taken], taken[0][0].modes)
                self._flights.append(_Flight(taken, vectors))
        except Lost:
            texts.extendleft(reversed(taken[:count]))
            raise
        except Exception as e:  # the jobs of this pack get the error, of any kind
            self._fail((job for job, _ in taken), e)
        return bool(taken)

    def _lengths(self, texts: deque[tuple[Job, int]]) -> Iterator[int]:
        """Tokens of the next texts that may share a pack."""
        modes = texts[0][0].modes
        for job, i in islice(texts, 1 if texts is self._alone else None):
            if job.modes != modes:
                return
            yield len(job.texts[i].ids)

    def _land(self) -> None:
        """Read the oldest pack, and end the jobs whose last texts it held."""
        flight = self._flights.popleft()
        try:
            found = np.concatenate([readback.result() for readback in flight.vectors], axis=1)
        except Lost:
            self._flights.appendleft(flight)
            raise
        except Exception as e:
            self._fail((job for job, _ in flight.taken), e)
            return
        finite = np.isfinite(found).all(axis=1)
        if not finite.all():
            self._model.clean()
        for (job, i), vector, good in zip(flight.taken, found, finite, strict=True):
            if not good and len(flight.taken) > 1:
                self._alone.append((job, i))
                continue
            if not good:
                self._fail([job], NotFinite.of_text(len(job.texts[i].ids)))
            job.vectors[i] = vector
            if len(job.vectors) == len(job.texts) and not job.done.done():
                job.done.set_result(np.stack([job.vectors[n] for n in range(len(job.texts))]))

    def _fail(self, jobs: Iterable[Job], error: Exception) -> None:
        for job in jobs:
            if not job.done.done():
                job.done.set_exception(error)
