"""The bound tensors of an engine: prompts that keep a slot and pages of the cache. On the device thread."""

from __future__ import annotations

from collections.abc import Mapping

from llamagpu.engine.runner import Runner
from llamagpu.errors import DeviceLostError, OutOfMemoryError
from llamagpu.gpu import Tensor
from llamagpu.model import Model
from llamagpu.model.bound import INPUT, BoundPrompt


class BoundPrompts:
    """The bound prompts of one model, and their pages."""

    def __init__(self, model: Model, runner: Runner):
        self._model, self._runner = model, runner
        self._prompts: set[BoundPrompt] = set()
        self.closed: Exception | None = None  # what a closed engine raises

    def __len__(self) -> int:
        return len(self._prompts)

    def bind(self, tensors: Mapping[str, Tensor], longest: int) -> BoundPrompt:
        """Take a slot and pages for a prompt of bound tensors, checked before.

        What it takes it may keep for ever, so that it leaves what a sequence of ``longest`` tokens needs, if that runs
        alone: others give way to it, bound prompts do not.

        Raises:
            OutOfMemoryError: the cache has no room now.
        """
        if self.closed is not None:
            raise self.closed
        cache, count = self._model.cache, tensors[INPUT].columns
        held = sum(len(prompt.pages.pages) for prompt in self._prompts)
        room = cache.total - held - cache.pages_of(count) >= cache.pages_of(longest)
        pages = cache.take(count) if room else None
        if pages is None:
            why = f"{cache.free_pages} pages and {cache.free_slots} slots are free."
            if not room:
                why = f"A generation that runs may come to need {cache.pages_of(longest)} of its {cache.total} pages."
            raise OutOfMemoryError(
                f"The cache has no room for {count} bound tokens now.",
                why,
                "Close other bound sessions, wait until generations end, or use a smaller context.",
            )
        try:
            prompt = BoundPrompt(self._model, pages, tensors, self._runner.segment_work)
        except BaseException:
            cache.give(pages)
            raise
        self._prompts.add(prompt)
        return prompt

    def run(self, prompt: BoundPrompt) -> None:
        """Submit a run, and wait for nothing.

        Raises:
            DeviceLostError: the prompt was lost with its device.
        """
        if self.closed is not None:
            raise self.closed
        if prompt not in self._prompts:
            raise DeviceLostError("The bound tensors were lost with their device.", "", "Bind new ones.")
        self._runner.unsettle()
        prompt.commands.run()

    def unbind(self, prompt: BoundPrompt) -> None:
        """Take the slot and the pages back."""
        if prompt in self._prompts:
            self._prompts.remove(prompt)
            self._model.cache.give(prompt.pages)
            prompt.words.free()

    def close(self, error: Exception) -> None:
        """Free what the prompts hold, for good; their pages go with the cache."""
        self.closed = error
        for prompt in self._prompts:
            prompt.words.free()
        self._prompts.clear()
