"""The door to the engine: the models that are served, and what is asked of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llamagpu.engine import LLM, CrossEncoder, Embedder, Stream
from llamagpu.engine.chat_options import TOOL_OPTIONS
from llamagpu.engine.params import sampling_params
from llamagpu.engine.request import Reuse
from llamagpu.errors import DeviceLostError, UsageError
from llamagpu.model import DEFAULT_MODEL
from llamagpu.model.weights import Progress
from llamagpu.server.errors import BAD_REQUEST, LOADING, NO_MODEL, RequestError
from llamagpu.server.gate import Gate
from llamagpu.server.opening import Model, named, open_model
from llamagpu.text.shape import SHAPES
from llamagpu.text.tools import ToolUse

M = TypeVar("M", LLM, Embedder, CrossEncoder)
DOES: dict[type, str] = {LLM: "generates text", Embedder: "embeds texts", CrossEncoder: "ranks documents"}


@dataclass(eq=False)
class Served:
    """A model that is served, or one of its LoRA adapters.

    Attributes:
        base: the model of an adapter, with which it shares ``model`` and ``gate``.
        lost: whether the device was lost and did not come back; known of bases.
    """

    name: str
    model: Model
    gate: Gate
    created: int = field(default_factory=lambda: int(time.time()))
    base: Served | None = None
    lost: bool = False

    def with_adapter(self, name: str) -> Served:
        """One of the model's adapters."""
        return Served(name, self.model, self.gate, self.created, self)

    @property
    def llm(self) -> LLM:
        """The model, which generates text.

        Raises:
            RequestError: it does not.
        """
        return self._as(LLM)

    @property
    def embedder(self) -> Embedder:
        """The model, which embeds; see ``llm``."""
        return self._as(Embedder)

    @property
    def ranker(self) -> CrossEncoder:
        """The model, which ranks; see ``llm``."""
        return self._as(CrossEncoder)

    def _as(self, kind: type[M]) -> M:
        if not isinstance(self.model, kind):
            what = f"The model {self.name} {DOES[type(self.model)]}."
            raise RequestError(BAD_REQUEST, what, f"This endpoint needs one that {DOES[kind]}.", param="model")
        return self.model

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Note whether the device of what runs in the block was lost and did not come back."""
        base = self.base or self
        try:
            yield
        except DeviceLostError:
            base.lost = True
            raise
        base.lost = False

    async def ids(self, prompt: str | Sequence[int]) -> list[int]:
        """The ids of a prompt."""
        return await asyncio.to_thread(self.llm.prompt_ids, prompt)

    async def chat_ids(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[int]:
        """The ids of a conversation up to the beginning of the answer."""
        llm = self.llm

        def work() -> list[int]:
            return llm.prompt_ids(llm.apply_chat_template(messages, **options))

        return await asyncio.to_thread(work)

    def checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a generation, with those of generation_config.json where a request gives none.

        Raises:
            UsageError: a value is out of its range.
            RequestError: the model cannot write what ``response_format`` asks for.
        """
        shape = {name: options[name] for name in SHAPES if name in options}
        try:
            self.llm.prepare_shape(**shape)  # once, and on this thread, which may wait
        except UsageError as e:
            what = "response_format cannot be used."
            raise RequestError(BAD_REQUEST, what, f"{e.what} {e.why}", e.hint, param="response_format") from None
        adapter = None if self.base is None else self.name
        settings = {**self.llm.chat_settings, **options, "adapter": adapter}
        sampling_params(self.llm.config.vocab_size, **settings)
        return settings

    async def tool_use(self, options: Mapping[str, Any]) -> ToolUse | None:
        """How a conversation uses tools, if it has some.

        Raises:
            RequestError: it cannot use them.
        """
        try:
            return await asyncio.to_thread(lambda: self.llm.tool_use(**options))
        except UsageError as e:
            if (named := e.what.split()[0]) in TOOL_OPTIONS:
                raise RequestError(BAD_REQUEST, e.what, e.why, e.hint, param=named) from None
            why = f"{e.what} {e.why}"
            raise RequestError(BAD_REQUEST, "tools cannot be used.", why, e.hint, param="tools") from None

    def start(
        self, ids: Sequence[int], settings: Mapping[str, Any], *, reuse: Reuse, tools: ToolUse | None = None
    ) -> Stream:
        """Start a generation; closing the stream cancels it."""
        return self.llm.start(ids, settings, reuse=reuse, tools=tools)

    def embed(self, texts: Iterator[str], dimensions: int | None) -> Iterable[Any]:
        """The vectors of texts, one by one, as they are made; on a thread that may wait."""
        vectors: Iterable[Any] = self.embedder.encode(texts, truncate_dim=dimensions, too_long="error")
        return vectors

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Scores of pairs of a query and a document; on a thread that may wait.

        Raises:
            UsageError: the model has several labels.
        """
        if self.ranker.num_labels != 1:
            raise UsageError(f"{self.name} has {self.ranker.num_labels} labels.", "Ranking needs one.")
        return [float(score) for score in self.ranker.predict(pairs)]


class Models:
    """The served models and adapters by name; none until ``load`` is done. ``names`` has all of them at once.

    Args:
        given: names, paths and hub ids as ``-m`` takes them; none is the bundled model.
        options: of ``LLM``, and of the others as far as they have them.
        places, queue: of each model's ``Gate``.
        adapters: paths of LoRA adapters of the first model, by their names in requests.

    Raises:
        UsageError: two models or adapters have the same name.
    """

    def __init__(
        self,
        given: Sequence[str],
        options: Mapping[str, Any],
        places: int,
        queue: int,
        adapters: Mapping[str, str] | None = None,
    ):
        self._given = [named(text) for text in given or (DEFAULT_MODEL,)]
        self._adapters = dict(adapters or {})
        self.names = [*(name for name, _ in self._given), *self._adapters]
        for name in self.names:
            if self.names.count(name) > 1:
                hint = "Give others: -m NAME=PATH, --adapter NAME=PATH."
                raise UsageError(f"Two models or adapters have the name {name}.", "A request names one.", hint)
        self._options, self._places, self._queue = dict(options), places, queue
        self.served: dict[str, Served] = {}
        self.loaded = False

    def load(self, progress: Progress | None = None) -> None:
        """Load all models; takes its time.

        Raises:
            LlamaGPUError: one cannot be loaded. Those before it are closed.
        """
        try:
            for i, (name, model) in enumerate(self._given):
                adapters = {} if i else self._adapters
                found = open_model(model, {**self._options, "adapters": adapters}, progress)
                base = self.served[name] = Served(name, found, Gate(self._places, self._queue))
                self.served |= {adapter: base.with_adapter(adapter) for adapter in adapters}
        except BaseException:
            self.close()
            raise
        self.loaded = True

    def close(self) -> None:
        """Close all models."""
        self.loaded = False
        for served in self.bases:
            served.model.close()
        self.served.clear()

    @property
    def bases(self) -> list[Served]:
        """The models without their adapters."""
        return [served for served in tuple(self.served.values()) if served.base is None]

    def get(self, name: str | None) -> Served:
        """The model or adapter of a request; without a name, the only model.

        Raises:
            RequestError: there is none of that name, or the models are being loaded.
        """
        self.check_loaded()
        known = f"Served: {', '.join(self.served)}."
        if name is None:
            if len(self.bases) == 1:
                return self.bases[0]
            raise RequestError(BAD_REQUEST, "The request names no model.", known, param="model")
        if name not in self.served:
            raise RequestError(NO_MODEL, f"There is no model {name[:200]}.", known, param="model")
        return self.served[name]

    def check_loaded(self) -> None:
        """Refuse requests before the models are loaded."""
        if not self.loaded:
            raise RequestError(LOADING, "The models are being loaded.", "", "Try again later.", retry_after=1)
