"""The loop of an encoder on the device thread: texts of all calls are packed together in the order of their arrival."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llamagpu.errors import DeviceLostError
from llamagpu.gpu import Device
from llamagpu.model.encoder import Encoded, Encoder

Floats = npt.NDArray[np.float32]


@dataclass
class Job:
    """The texts of one submission. ``done`` gets their pooled vectors, float32 [texts, hidden of every mode]."""

    texts: Sequence[Encoded]
    modes: tuple[str, ...]
    done: Future[Floats] = field(default_factory=Future)
    vectors: dict[int, Floats] = field(default_factory=dict)


class EncoderEngine:
    """Runs the texts of all calls in packs. Everything but ``submit`` is on the device thread."""

    def __init__(self, device: Device, encoder: Encoder):
        self._thread, self._encoder = device.thread, encoder
        self._waiting: deque[tuple[Job, int]] = deque()
        self._closed: DeviceLostError | None = None
        self._thread.add(self._step)

    def submit(self, texts: Sequence[Encoded], modes: tuple[str, ...]) -> Future[Floats]:
        """Queue texts. Longer ones go first, because neighbours of one length share their attention's blocks."""
        job = Job(texts, modes)
        if not texts:
            job.done.set_result(np.empty((0, len(modes) * self._encoder.config.hidden_size), np.float32))
            return job.done
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i].ids))

        def enter() -> None:
            if self._closed is not None:
                job.done.set_exception(self._closed)
            else:
                self._waiting.extend((job, i) for i in order)

        self._thread.post(enter)
        return job.done

    def close(self) -> None:
        """End every job with an error and stop."""
        self._thread.remove(self._step)
        self._closed = DeviceLostError("The model was closed.", "It was still encoding.", "Load it again.")
        self._fail({id(job): job for job, _ in self._waiting}.values(), self._closed)
        self._waiting.clear()
        self._encoder.free()

    def _step(self) -> bool:
        """One pack."""
        while self._waiting and self._waiting[0][0].done.done():  # its job failed in an earlier pack
            self._waiting.popleft()
        if not self._waiting:
            return False
        modes = self._waiting[0][0].modes
        taken: list[tuple[Job, int]] = []
        pack: list[Encoded] = []
        rows = positions = 0
        while self._waiting and self._waiting[0][0].modes == modes:
            job, i = self._waiting[0]
            rows, positions = rows + len(job.texts[i].ids), positions + job.texts[i].positions
            if pack and not self._encoder.fits(rows, positions):
                break
            taken.append(self._waiting.popleft())
            pack.append(job.texts[i])
        try:
            found = np.concatenate([self._encoder.pooled(pack, mode) for mode in modes], axis=1)
        except Exception as e:  # the jobs of this pack get the error, of any kind
            self._fail({id(job): job for job, _ in taken}.values(), e)
            return bool(self._waiting)
        for (job, i), vector in zip(taken, found, strict=True):
            job.vectors[i] = vector
            if len(job.vectors) == len(job.texts) and not job.done.done():
                job.done.set_result(np.stack([job.vectors[n] for n in range(len(job.texts))]))
        return bool(self._waiting)

    def _fail(self, jobs: object, error: Exception) -> None:
        for job in jobs:  # type: ignore[attr-defined]
            if not job.done.done():
                job.done.set_exception(error)
