"""Drafts by a smaller model: it runs on the device of the model that it guesses for, and has its vocabulary."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import replace

from llamagpu.engine.pace import MOST
from llamagpu.engine.request import Sequence, Token
from llamagpu.engine.runner import Runner
from llamagpu.errors import UsageError
from llamagpu.gpu import Device
from llamagpu.model import Model, Prepared, find_model, prepare
from llamagpu.text import Tokenizer


def prepare_draft(name: str, target: Prepared) -> Prepared:
    """A draft model's files, read and checked.

    Raises:
        ModelNotFoundError: it is missing.
        UsageError: its vocabulary is another one.
    """
    draft = prepare(find_model(name))
    if _vocabulary(draft) != _vocabulary(target):
        raise UsageError(
            f"{draft.name} cannot draft for {target.name}.",
            "Their tokenizers have different vocabularies.",
            "Use a smaller model of the same family.",
        )
    return draft


def _vocabulary(prepared: Prepared) -> dict[str, int]:
    source = prepared.source
    return dict(Tokenizer(source.tokenizer_file(), source.tokenizer_config(), prepared.config.vocab_size).vocab)


class ModelDrafter:
    """Guesses what a smaller model would say, with the settings and the seed of each sequence: where both models agree,
    a drawn token is the same one.

    Every sequence has a mirror, a sequence of the draft model. On the device thread.
    """

    def __init__(self, device: Device, model: Model, vocab_size: int):
        self._model, self._runner, self._vocab = model, Runner(device, model), vocab_size
        self._mirrors: dict[Sequence, Sequence] = {}

    def end(self, sequence: Sequence) -> None:
        """See ``Drafter.end``."""
        mirror = self._mirrors.pop(sequence, None)
        if mirror is not None:
            self._runner.end(mirror)

    def free(self) -> None:
        """Free the plans."""
        self._model.forward.free()

    def guess(self, sequences: Tokens[tuple[Sequence, int]]) -> list[list[int]]:
        """See ``Drafter.guess``. The mirrors decode together."""
        wanted = {s: most for s, most in sequences if most > 0 and self._follow(s, most)}
        if not wanted:
            return [[] for _ in sequences]
        batch = tuple(self._runner.batch_of([self._mirrors[s] for s in wanted]))
        wanted = dict(list(wanted.items())[: len(batch)])
        flights = [self._runner.launch(batch) for _ in range(max(wanted.values()))]
        for flight in flights:
            [outcomes] = self._runner.land(flight)
            for mirror, outcome in zip(batch, outcomes, strict=True):
                mirror.tokens.append(outcome.id if isinstance(outcome, Token) else self._vocab)
        return [self._guesses(s, wanted[s]) if s in wanted else [] for s, _ in sequences]

    def _guesses(self, sequence: Sequence, most: int) -> list[int]:
        """The mirror's new tokens, up to one that the model does not have."""
        made = self._mirrors[sequence].tokens[len(sequence.tokens) :][:most]
        return made[: next((i for i, token in enumerate(made) if token >= self._vocab), most)]

    def _follow(self, sequence: Sequence, most: int) -> bool:
        """Bring the mirror of a sequence to its newest token, with room for more; False if there is none."""
        if len(sequence.tokens) + MOST >= self._model.context:
            self.end(sequence)
            return False
        mirror = self._mirrors.get(sequence) or self._begin(sequence)
        if mirror is None:
            return False
        held, tokens = mirror.tokens[: mirror.length], sequence.tokens
        agreed = next((i for i, (a, b) in enumerate(zip(held, tokens, strict=False)) if a != b), len(held))
        mirror.tokens, mirror.length = list(tokens), min(agreed, len(tokens) - 1)
        if not self._runner.reserve(mirror, len(tokens) - mirror.length + MOST):
            return False
        self._runner.unsettle()
        while not mirror.prefilled:
            if mirror.replays:
                self._runner.replay(mirror)
            else:
                count = min(mirror.prefill_end - mirror.length, self._runner.chunk_rows(beside=False))
                self._runner.prefill([(mirror, count)])
        return True

    def _begin(self, sequence: Sequence) -> Sequence | None:
        request = sequence.request
        limit = self._model.context - len(request.prompt)
        settings = replace(request.settings, logprobs=0)
        free = replace(request, limit=limit, settings=settings, stop_ids=frozenset(), reuse="none", guide=None)
        mirror = Sequence(free)
        mirror.tokens = list(sequence.tokens)
        if not self._runner.begin(mirror):
            return None
        self._mirrors[sequence] = mirror
        return mirror
