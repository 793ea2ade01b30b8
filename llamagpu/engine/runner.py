"""Running one model's plans: prompts in chunks, decode steps in batches. On the device thread."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Iterable
from dataclasses import dataclass, replace

import numpy as np

from llamagpu.engine.rate import Rate
from llamagpu.engine.request import Draft, Outcome, Sequence, adapted, guided, masks_of
from llamagpu.errors import LlamaGPUError
from llamagpu.gpu import Device, Plan
from llamagpu.kernels.kv_write import PAGE
from llamagpu.model import Model
from llamagpu.model.forward import BATCHES, HEAD_ROWS, ROW_BUCKETS, batch_limit, bucket
from llamagpu.model.step import Chunk, Reading, Row, pack_rows_of

_LEAST_ROWS = 16  # of a prefill beside running sequences


@dataclass
class Flight:
    """Submitted steps whose results were not read yet. ``follows``: others were in flight before them."""

    batch: tuple[Sequence, ...]
    reading: Reading
    follows: bool = False


class Runner:
    """Writes the state of sequences to the GPU, runs plans, and reads tokens back."""

    def __init__(self, device: Device, model: Model):
        self._model, self._forward, self._state = model, model.forward, model.forward.state
        self._settled: tuple[Sequence, ...] = ()  # sequences whose states the first rows of the decode buffers hold
        self._rate = Rate(device.adapter.kind)
        self._begun: tuple[Sequence, ...] = ()  # sequences whose next logits were submitted before their masks

    def begin(self, sequence: Sequence, spare: int = 0) -> bool:
        """Give a sequence its slot, pages for its tokens so far, and its bias; False if the cache has no room now, or
        less than ``spare`` pages would be left."""
        request = sequence.request
        # Tokens that it made itself are exact only if decode steps wrote them.
        prefix = {"none": [], "exact": list(request.prompt), "any": sequence.tokens}[request.reuse]
        if request.want_logits:
            prefix = prefix[: request.first + 1]  # the position of the first wanted logits must run
        count = min(request.most, len(sequence.tokens) + PAGE)
        root = self._model.loras.root(request.adapter, request.adapter_scale)
        pages = self._model.cache.take(count, prefix, request.most, spare, request.reuse == "exact", root)
        if pages is None:
            return False
        sequence.pages, sequence.length, sequence.exact = pages, pages.cached, pages.exact
        sequence.counted = False
        if sequence.events.cached is None:  # not if it goes on after it lost its pages
            sequence.events.cached = min(pages.cached, len(request.prompt))
        self._state.set_bias(pages.slot, dict(request.bias))
        self._model.loras.choose(pages.slot, request.adapter, request.adapter_scale)
        return True

    def end(self, sequence: Sequence) -> None:
        """Take the slot and pages back; the cache keeps their contents until it needs the pages."""
        if sequence in self._settled:
            self._settled = ()
        if sequence.pages is not None:
            self._model.cache.give(sequence.pages, sequence.tokens[: sequence.length], sequence.exact)
            sequence.pages = None

    def reserve(self, sequence: Sequence, positions: int) -> bool:
        """Give a sequence pages for more positions, beyond those in the cache and in flight; False if there are
        none."""
        assert sequence.pages is not None
        tokens = min(sequence.length + sequence.in_flight + positions, sequence.request.most)
        pages = self._model.cache.grow(sequence.pages, tokens)
        if pages is None:
            return False
        sequence.pages = pages
        return True

    # --- prompts ----------------------------------------------------------------------------

    def chunk_rows(self, beside: bool) -> int:
        """Most rows of a prefill pass. ``beside`` running sequences it takes about ``rate.PACE_SECONDS``, if that is
        possible."""
        most = self._model.sizes.rows
        if not beside:
            return most
        rows = self._rate.paced * _LEAST_ROWS / self._forward.prefill(_LEAST_ROWS).work
        return max(b for b in ROW_BUCKETS if b <= max(_LEAST_ROWS, min(rows, most)))

    def pack(self, sequences: Iterable[Sequence], most: int) -> list[tuple[Sequence, int]]:
        """The first sequences that share a prefill pass of up to ``most`` rows, and the tokens of each in it. Logits
        are computed alone."""
        out: list[tuple[Sequence, int]] = []
        free = most
        for s in sequences:
            count = min(s.prefill_end - s.length, free)
            if count < 1 or (out and s.request.want_logits) or len(out) == HEAD_ROWS:
                break
            out.append((s, count))
            free -= pack_rows_of(count)
            if s.request.want_logits:
                break
        return out

    def prefill(self, pack: Iterable[tuple[Sequence, int]]) -> list[tuple[Sequence, Outcome]]:
        """Run the next chunks of prompts. A prompt's last chunk gives the first token, unless logits were asked for or
        the sequence only resumes."""
        chunks = [Chunk(s.tokens[s.length : s.length + count], s.length, s.slot) for s, count in pack]
        sizes = [len(c.tokens) for c in chunks]
        rows = sizes[0] if len(sizes) == 1 else sum(map(pack_rows_of, sizes))
        rows = bucket(min(rows, self._model.sizes.rows))
        begins = self._state.write_prompts(chunks, rows)
        self._settled = ()
        plan = self._forward.prefill(rows, adapted([s for s, _ in pack]))
        self._rate.run_prompt(plan, lambda: all(s.cancelled.is_set() for s, _ in pack))
        picks = []
        for (sequence, count), begin in zip(pack, begins, strict=True):
            if sequence.cancelled.is_set():  # perhaps in the middle of the chunk, which does not count then
                continue
            if sequence.exact == sequence.length:
                sequence.exact += count
            sequence.length += count
            if sequence.request.want_logits:
                self._collect_logits(sequence, count)
            elif sequence.prefilled and not sequence.made:
                picks.append((sequence, begin + count - 1))
        try:
            return self._first(picks)
        except Exception:
            for sequence, _ in picks:  # their last positions run again, so that they get a first token
                sequence.length -= 1
                sequence.exact = min(sequence.exact, sequence.length)
            raise

    def _first(self, picks: list[tuple[Sequence, int]]) -> list[tuple[Sequence, Outcome]]:
        """The first tokens of sequences, whose last positions are the picked rows."""
        if not picks:
            return []
        batch, rows = tuple(s for s, _ in picks), bucket(len(picks), BATCHES)
        self._state.pick([row for _, row in picks] + [picks[-1][1]] * (rows - len(picks)))
        self._write_state(batch, [s.row_at(s.length - 1) for s in batch], rows)
        if guided(batch):
            self._state.write_masks(masks_of([Draft(s) for s in batch], self._model.config.vocab_size))
        flight = self._submit(batch, self._forward.first(rows, self._plain(batch), guided(batch)))
        return list(zip(batch, self._outcomes(flight), strict=True))

    def replay(self, sequence: Sequence) -> None:
        """Write the next keys and values of tokens that the sequence made before it lost its pages. Decode kernels
        compute them, as they did before, so that they have the same bits."""
        begin = sequence.length
        count = min(sequence.decodes_from - begin, batch_limit(self._model.context, sequence.request.most))
        rows = [Row(sequence.tokens[at], at, sequence.slot) for at in range(begin, begin + count)]
        self._state.write_rows(rows, bucket(count, BATCHES))
        self._settled, sequence.counted = (), False
        plan = self._forward.decode(bucket(count, BATCHES), sequence.request.most, True, adapted([sequence]))
        self._rate.run_prompt(plan, sequence.cancelled.is_set)
        if not sequence.cancelled.is_set():
            sequence.length += count

    def _collect_logits(self, sequence: Sequence, rows: int) -> None:
        """Read the wanted logits of the last chunk, which had ``rows`` positions."""
        unwanted = max(0, sequence.request.first - (sequence.length - rows))
        for first in range(unwanted, rows, HEAD_ROWS):
            count = min(HEAD_ROWS, rows - first)
            padded = bucket(count, BATCHES)
            self._state.pick([min(i, rows - 1) for i in range(first, first + padded)])
            self._forward.head(padded).run()
            sequence.logits.append(self._forward.logits.head(padded).numpy()[:count].astype(np.float32))

    # --- steps ------------------------------------------------------------------------------

    def unsettle(self) -> None:
        """Note that the buffers of the step hold the state of no sequence: another plan has used them."""
        self._settled = ()

    @property
    def segment_work(self) -> float:
        """The most multiply-adds of one submission, at the rate that is known."""
        return self._rate.segment_work

    def follows(self, batch: tuple[Sequence, ...]) -> bool:
        """Whether the device holds the state of these sequences, so that a step needs nothing from the host."""
        return self._settled == batch

    def launch(self, batch: tuple[Sequence, ...], steps: int = 1) -> Flight:
        """Submit steps, one behind the other. If the device holds the state of other sequences, the state of these is
        written first; then nothing may be in flight."""
        rows = bucket(len(batch), BATCHES)
        if not self.follows(batch):
            assert not any(s.in_flight for s in batch)
            self._write_state(batch, [s.row() for s in batch], rows)
        positions, follows = max(s.request.most for s in batch), batch[0].in_flight > 0
        plan = self._forward.decode(rows, positions, self._plain(batch), adapted(batch))
        flight = self._submit(batch, plan, steps)
        for sequence in batch:
            sequence.in_flight += steps
        return replace(flight, follows=follows)

    def land(self, flight: Flight) -> Iterator[list[Outcome]]:
        """Wait for launched steps; returns the tokens or errors of each, in the order of its batch. The sequences
        advance from step to step."""
        results = self._state.read(flight.reading)
        self._rate.landed(flight.follows, len(results))
        for sampled in results:
            for sequence in flight.batch:
                sequence.in_flight -= 1
                sequence.length += 1
            yield [s.outcome(r) for s, r in zip(flight.batch, sampled, strict=True)]

    def steps(self, batch: Iterable[Sequence]) -> int:
        """Steps of the next submission for a batch: no more than one of its sequences can take, each with its pages."""
        most = min(self._rate.burst, max(s.request.limit - s.made - s.in_flight for s in batch))
        return most if most > 1 and all(self.reserve(s, most) for s in batch) else 1

    def verify(self, drafts: Iterable[Draft]) -> list[list[Outcome]]:
        """One step with a row for the newest token of each sequence and for every guess after it. Returns the next
        tokens of each: those that agree with its guesses, and one more. Nothing may be in flight."""
        rows, owners = [], []
        for d in drafts:
            s = d.sequence
            for i, token in enumerate((s.tokens[s.length], *d.tokens)):
                rows.append(replace(s.row(), token=token, position=s.length + i))
                owners.append(s)
        follows = self.follows(tuple(owners))
        results, out, first = self._outcomes(self._verified(drafts, rows, tuple(owners))), [], 0
        self._rate.landed(follows, 1)
        for d in drafts:
            out.append(d.agreed(results[first : first + len(d.tokens) + 1]))
            d.sequence.length += len(out[-1])
            first += len(d.tokens) + 1
        return out

    def _verified(self, drafts: Iterable[Draft], rows: list[Row], owners: tuple[Sequence, ...]) -> Flight:
        """The step of ``verify``. If it needs masks, they are made while the device computes the logits."""
        size, positions, plain = bucket(len(rows), BATCHES), max(s.request.most for s in owners), self._plain(owners)
        single, lora = not any(d.tokens for d in drafts), adapted(owners)
        begun = self._begun == owners and self.follows(owners) and single
        self._begun = ()
        if not self.follows(owners):
            self._write_state(owners, rows, size)
        if not single:
            self._settled = ()  # rows of one sequence do not follow one another
        if not guided(owners):
            return self._submit(owners, self._forward.decode(size, positions, plain, lora))
        trunk = self._forward.trunk(size, positions, lora)
        if not begun:
            self._rate.run_step(trunk)
        self._state.write_masks(masks_of(drafts, self._model.config.vocab_size))
        flight = self._submit(owners, self._forward.masked(size, plain))
        # The next logits need nothing of the host. Where steps are short, they are computed while it takes the tokens,
        # in vain if the grammar forces the next ones.
        more = single and all(s.made + 1 < s.request.limit for s in owners)
        if more and self._rate.burst > 1 and all(self.reserve(s, 2) for s in owners):
            self._rate.run_step(trunk)
            self._begun = owners
        return flight

    def room(self, batch: Iterable[Sequence]) -> int:
        """Rows of a step for guesses, beside the rows of a batch."""
        context, most = self._model.context, max(s.request.most for s in batch)
        return max(b for b in BATCHES if b <= batch_limit(context, most)) - len(batch)

    def batch_of(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """The first sequences, as many as can decode in one step."""
        context, out = self._model.context, list(sequences[: BATCHES[-1]])
        while bucket(len(out), BATCHES) > batch_limit(context, max(s.request.most for s in out)):
            out.pop()
        return out

    def abandon(self, flight: Flight) -> None:
        """Drop the results of a launched step, and free its staging memory even if the device does not answer."""
        try:
            self._state.read(flight.reading)
        except LlamaGPUError:
            self._state.drop(flight.reading)

    def _plain(self, batch: Iterable[Sequence]) -> bool:
        """Whether no sequence needs the kernels of penalties and filters."""
        return all(s.request.settings.plain for s in batch)

    def _write_state(self, batch: tuple[Sequence, ...], state: list[Row], rows: int) -> None:
        """Write the state of a step's rows, and the counts of tokens where they are missing."""
        for s in batch:
            if s.request.settings.counted and not s.counted:
                self._state.count_tokens(s.slot, s.request.prompt, s.tokens[len(s.request.prompt) :])
                s.counted = True
        self._state.write_rows(state, rows, guided(batch))
        self._settled = batch

    def _submit(self, batch: tuple[Sequence, ...], plan: Plan, steps: int = 1) -> Flight:
        """Run a plan that samples, and copy its results to staging memory."""
        reading, windows = self._state.reading([s.request.settings for s in batch], steps)
        self._rate.run_step(plan, (reading.slot, windows), steps)
        return Flight(batch, reading)

    def _outcomes(self, flight: Flight) -> list[Outcome]:
        [sampled] = self._state.read(flight.reading)
        return [s.outcome(r) for s, r in zip(flight.batch, sampled, strict=True)]
