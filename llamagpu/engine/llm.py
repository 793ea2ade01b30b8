"""``LLM``: a model that generates text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack, get_args, overload

import numpy as np
import numpy.typing as npt

from llamagpu.engine.arguments import items, out_of_range, whole_in
from llamagpu.engine.batch import Batch, Call, Item
from llamagpu.engine.embeddings import Embeddings
from llamagpu.engine.language_model import LanguageModel
from llamagpu.engine.params import (
    CHAT_DEFAULTS,
    ChatOptions,
    GenerateOptions,
    choice_settings,
    sampling_params,
    takes_chat_options,
    takes_options,
)
from llamagpu.engine.prompts import Prompt
from llamagpu.engine.request import Request, Reuse
from llamagpu.engine.result import Result
from llamagpu.engine.stream import Stream, wait_logits
from llamagpu.model.sentence_transformers import read_pipeline
from llamagpu.text import Message
from llamagpu.text.settings import chat_settings
from llamagpu.text.stream import begins_text


class LLM(LanguageModel):
    """A Llama on a GPU. Use it as a context manager, from any thread; overlapping calls run together.

    Args:
        model: a directory in Hugging Face layout, a GGUF file, a hub id, or None for the bundled model.
        device: ``auto``, an adapter's number, kind, backend or name, or an open ``gpu.Device`` to share. ``auto`` is
            the variable LLAMAGPU_DEVICE, or else a discrete GPU before an integrated one before a software adapter, of
            those that can hold the model.
        dtype: ``auto`` (as stored), ``float32``, ``float16``, ``bfloat16``, ``int8`` or ``int4`` (groups of 64).
        kv_dtype: ``auto`` (float16 with float16 and quantized weights, otherwise float32), ``float32`` or ``float16``.
        context: the most tokens of a sequence; None is the model's maximum, 4096, or the most that fits.
        revision: of a hub id: a branch, a tag or a commit.
        chat_template: Jinja in place of the model's own chat template, or the name of one that the model has.
        tune: first measure the kernel variants for this model's matrices, which takes some seconds, and store the
            fastest on this machine, as ``llamagpu tune`` does. Other models on a shared device are not affected.
        fused: False runs one kernel for each operation of the formula: slower, readable, and an oracle.
        progress: called with (bytes loaded, bytes in total).
        recover: whether a lost device is opened again and the model loaded again, once in a minute. Generations
            continue from their tokens; a shared device does as it was opened.
        isolate: load the model in a process of its own, which is started again if its driver ends it, once in a minute.
            Generations continue from their tokens. ``bind`` and most of ``device`` are missing then.
        max_memory: the most memory to take on the adapter, in bytes or as text such as ``"4GB"``.
        speculate: ``"prompt"`` guesses that a text repeats parts of itself, and verifies up to 15 tokens in a step.
            A directory, GGUF file or hub id names a smaller model of the same vocabulary that guesses. Guesses change
            no token, also of drawn ones. None guesses nothing.
        verify: replay the first tokens of a text after loading, and compare every result with a float64 reference.
        queue: the most requests that may wait beside the 32 that run together; more are a ``BusyError``. None is any
            number.

    Raises:
        ModelNotFoundError: the model or one of its files is missing.
        UnsupportedModelError: its files are broken, contradict one another, or need features that are not implemented.
        NoAdapterError: no GPU adapter, or none that matches.
        OutOfMemoryError: it does not fit; a hub model is not downloaded then.
        UsageError: an argument is out of its range.
        WrongNumbersError: ``verify`` found a result that departs.

    >>> with LLM() as llm:
    ...     print(llm.generate("Once upon a time", max_tokens=20).text)
    """

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: Item, *, n: None = None, reuse: Reuse = "exact", **options: Unpack[GenerateOptions]
    ) -> Result: ...
    @overload
    def generate(
        self,
        prompt: Sequence[Item],
        *,
        n: None = None,
        reuse: Reuse = "exact",
        **options: Unpack[GenerateOptions],
    ) -> list[Result]: ...
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: Item, *, n: int, reuse: Reuse = "exact", **options: Unpack[GenerateOptions]
    ) -> list[Result]: ...
    @overload
    def generate(
        self, prompt: Sequence[Item], *, n: int, reuse: Reuse = "exact", **options: Unpack[GenerateOptions]
    ) -> list[list[Result]]: ...

    @takes_options
    def generate(
        self,
        prompt: Item | Sequence[Item],
        *,
        n: int | None = None,
        reuse: Reuse = "exact",
        **options: Unpack[GenerateOptions],
    ) -> Any:
        """Continue a prompt: a string (BOS is added as the tokenizer says), token ids (taken as they are), or a list of
        prompts, which gives a list of results in order.

        The prompts of a list run in batches, and each result is the same as alone. A dictionary is a prompt with
        settings of its own, which replace those of the call: ``{"prompt": "One day", "max_tokens": 5}``; None is a
        setting that is not given. The keyword arguments are described in ``llamagpu.engine.params.GenerateOptions``.

        Args:
            n: the texts of each prompt; their results are a list, also if ``n`` is 1. Text ``i`` has the seed plus
                ``i``.
            reuse: a prompt that begins as earlier ones takes its beginning from the cache, while that has room to keep
                it. ``exact`` takes what prompts left there, which changes no bit of the result; ``any`` also takes what
                generation left, whose last bits differ; ``none`` takes nothing.

        Raises:
            UsageError: an empty prompt, or a value out of its range; of a list, the item is named, counted from 0.
            ContextFullError: a prompt longer than the context.
            BusyError: the queue is full.
            TypeError: an unknown keyword.
        """
        with self.begin(prompt, n=n, reuse=reuse, **options) as batch:
            return batch.results

    @takes_options
    def begin(
        self,
        prompt: Item | Sequence[Item],
        *,
        n: int | None = None,
        reuse: Reuse = "exact",
        **options: Unpack[GenerateOptions],
    ) -> Batch:
        """Start what ``generate`` does, and wait for nothing. All prompts are checked before any begins."""
        sampling_params(self.config.vocab_size, **options)
        return self._begun(Call.of(prompt, n, options), reuse)

    @takes_options
    def stream(self, prompt: Prompt, *, reuse: Reuse = "exact", **options: Unpack[GenerateOptions]) -> Stream:
        """As ``generate``, but an iterator of text pieces; its ``result`` has the rest. Closing it stops it early."""
        return self._begun(Call.single(prompt, options), reuse).streams[0]

    @overload
    def chat(self, messages: Iterable[Message], *, n: None = None, **options: Unpack[ChatOptions]) -> Result: ...
    @overload
    def chat(self, messages: Iterable[Message], *, n: int, **options: Unpack[ChatOptions]) -> list[Result]: ...

    @takes_chat_options
    def chat(self, messages: Iterable[Message], *, n: int | None = None, **options: Unpack[ChatOptions]) -> Any:
        """The answer to a conversation, put into the model's chat template; with ``n``, a list of answers, as
        ``generate`` has it.

        Messages are dictionaries with ``role`` and ``content``, in OpenAI's form. The keyword arguments are described
        in ``llamagpu.engine.params.ChatOptions``; sampling settings that are not given come from the model's
        generation_config.json. The cache keeps earlier conversations while it has room, and a conversation that begins
        the same reuses it, answers included (``reuse="any"`` of ``generate``).

        Raises:
            UsageError: the model has no chat template, the conversation is not valid, or the template refuses it.
            ContextFullError: the conversation is longer than the context.
            BusyError: the queue is full.
            TypeError: an unknown keyword.
        """
        with self.begin_chat(messages, n=n, **options) as batch:
            return batch.results

    @takes_chat_options
    def begin_chat(self, messages: Iterable[Message], *, n: int | None = None, **options: Unpack[ChatOptions]) -> Batch:
        """Start what ``chat`` does, and wait for nothing."""
        given: dict[str, Any] = {**options}
        ids = self.apply_chat_template(messages, **{k: given.pop(k) for k in CHAT_DEFAULTS if k in given})
        return self._begun(Call.single(ids, self.chat_settings | given, n), "any")

    @takes_chat_options
    def chat_stream(self, messages: Iterable[Message], **options: Unpack[ChatOptions]) -> Stream:
        """As ``chat``, but an iterator of text pieces."""
        return self.begin_chat(messages, **options).streams[0]

    @property
    def chat_settings(self) -> dict[str, Any]:
        """The settings of ``chat`` where its caller gives none, from generation_config.json."""
        return chat_settings(self._generation)

    def _request(self, ids: list[int], reuse: Reuse, options: dict[str, Any]) -> tuple[Request, tuple[str, ...]]:
        """A request, and the strings that end its text."""
        params = sampling_params(self.config.vocab_size, **options)
        stops = params.stop_token_ids | (frozenset() if params.ignore_eos else frozenset(self.config.eos_token_id))
        reuse = _checked(reuse)
        limit = min(params.max_tokens, self.context - len(ids) + 1)
        guide = None
        if params.shape is not None:
            guide = self._guides.guide(params.shape, stops, begins=begins_text(self._tokenizer, ids))
        return Request(tuple(ids), limit, params.settings, stops, params.bias, reuse=reuse, guide=guide), params.stop

    def _begun(self, call: Call, reuse: Reuse) -> Batch:
        wanted: list[tuple[Request, tuple[str, ...]]] = []
        for i, (prompt, settings) in enumerate(call.prompts):
            with call.about(i):
                ids = self.prompt_ids(prompt)
                wanted += [self._request(ids, reuse, choice_settings(settings, j)) for j in range(call.n or 1)]
        with self._places.room_for(len(wanted)):
            streams = [Stream(self._places, one, self._tokenizer, self.context, stop) for one, stop in wanted]
        return Batch(call, streams)

    @property
    def most_requests(self) -> int | None:
        """The most requests that run and wait together; None is any number."""
        return self._places.most

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt as ``generate`` takes it: of a text, with BOS as the tokenizer says, or given ones.

        Raises:
            UsageError: the prompt is empty, or has ids that the model lacks.
            ContextFullError: it is longer than the context.
        """
        self._check_open()
        return self._prompts.ids(prompt)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text in progress, which may be a part of a character."""
        return self._tokenizer.token_bytes(self._prompts.checked([token_id])[0])

    def logits(self, ids: Iterable[int], *, first: int = 0, reuse: Reuse = "none") -> npt.NDArray[np.float32]:
        """The model's logits for the positions from ``first`` on: float32 [len(ids) - first, vocab_size]. Adds no BOS.

        ``reuse`` is that of ``generate``.
        """
        prompt = tuple(self.prompt_ids(items(ids, "token ids")))
        first = whole_in("first", first, 0, len(prompt) - 1)
        request = Request(prompt, 1, want_logits=True, first=first, reuse=_checked(reuse))
        return wait_logits(self._places, request)

    def save_cache(self, path: str | Path) -> int:
        """Write what the cache knows of earlier prompts and texts to a file; returns its tokens.

        Generation waits meanwhile. Until the file is complete, the name keeps what it had.

        Raises:
            LlamaGPUError: writing failed, for example because the disk is full.
            UsageError: the model is isolated: its cache is in another process.
        """
        self._check_open()
        return self._session.save_cache(Path(path))

    def load_cache(self, path: str | Path) -> int:
        """Add the tokens of a file of ``save_cache`` to the cache, where that has room; returns their number. Prompts
        that begin with them cost only their other tokens, and give the bits that they give without.

        Generation waits meanwhile. Load only files that you would load a model from: they hold keys and values.

        Raises:
            UsageError: the file is missing, damaged, or of another model, dtype, adapter, tuning or version; or the
                model is isolated.
        """
        self._check_open()
        return self._session.load_cache(Path(path))

    def embed(
        self, sentences: str | Iterable[str], batch_size: int = 32, *, pooling: str | None = None, **options: Any
    ) -> Any:
        """Vectors of texts from the last hidden states, as ``Embedder.encode`` makes them; see there for the options.

        Args:
            pooling: last, mean, cls, max, weightedmean or mean_sqrt_len; None is the one of the model's
                ``modules.json``.

        Raises:
            UsageError: there is no pooling, an item is not text, or an argument is not allowed.
        """
        self._check_open()
        if pooling not in self._embeddings:  # the files are read once
            pipeline = read_pipeline(self.directory, pooling)
            self._embeddings[pooling] = Embeddings(pipeline, self.texts(pipeline.max_length))
        return self._embeddings[pooling].encode(sentences, batch_size, **options)

    @cached_property
    def _embeddings(self) -> dict[str | None, Embeddings]:
        """What embeds, by pooling."""
        return {}


def _checked(reuse: Any) -> Reuse:
    """Raises UsageError for other values."""
    if reuse not in get_args(Reuse):
        raise out_of_range("reuse", reuse, "exact, any or none")
    checked: Reuse = reuse
    return checked
