"""``LLM``: a model that generates text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack, cast, overload

import numpy as np
import numpy.typing as npt

from llamagpu import gpu
from llamagpu.engine.arguments import adapter_name, items, whole_number
from llamagpu.engine.engine import Engine
from llamagpu.engine.options import GenerateOptions
from llamagpu.engine.params import sampling_params
from llamagpu.engine.request import Conversation, Request
from llamagpu.engine.result import Result
from llamagpu.engine.stream import Stream, next_event
from llamagpu.errors import ContextFullError, DeviceLostError, LlamaGPUError, UsageError
from llamagpu.model import Sizes, check_dtypes, find_model, load_generation_config, load_model, prepare
from llamagpu.model.tuner import tune_anyway
from llamagpu.model.weights import Progress
from llamagpu.text import ChatTemplate, Tokenizer, load_chat_template

Message = Mapping[str, Any]
Prompt = str | Sequence[int]
_CHAT_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # that generation_config.json may set


class LLM:
    """A Llama on a GPU. Use it as a context manager, from any thread; calls that overlap take turns.

    Args:
        model: a directory in Hugging Face layout, a hub id, or None for the model that comes with the package.
        device: ``auto``, an adapter's number, kind, backend or name, or an open ``gpu.Device`` to share.
        dtype: ``auto`` (as stored), ``float32``, ``float16``, ``bfloat16``, ``int8`` or ``int4`` (groups of 64).
        kv_dtype: ``auto`` (float16 with float16 and quantised weights, otherwise float32), ``float32`` or ``float16``.
        context: the most tokens of a sequence; None is the model's maximum, 4096, or what fits.
        revision: of a hub id.
        tune: measure the kernel variants for this model's matrices first, some seconds, and keep the fastest on this
            machine, as ``llamagpu tune`` does; of a shared device before other models are loaded.
        fused: False runs a kernel for every step of the formula: slower, readable, and an oracle.
        progress: called with (bytes loaded, bytes in all).

    Raises:
        ModelNotFoundError: the model or one of its files is not there.
        UnsupportedModelError: its files are broken, contradict one another or ask for what is not implemented.
        NoAdapterError: no GPU adapter, or none that matches.
        OutOfMemoryError: it does not fit.
        UsageError: an argument is out of its range.

    >>> with LLM() as llm:
    ...     print(llm.generate("Once upon a time", max_tokens=20).text)
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: str | int | gpu.Device = "auto",
        dtype: str = "auto",
        kv_dtype: str = "auto",
        context: int | None = None,
        revision: str | None = None,
        tune: bool = False,
        fused: bool = True,
        progress: Progress | None = None,
    ):
        self._closed = True
        check_dtypes(dtype, kv_dtype)
        if not isinstance(device, gpu.Device):
            device = adapter_name(device)
        if context is not None:
            context = whole_number(context, "context")
        directory = find_model(model, revision)
        prepared = prepare(directory, dtype)
        self.config, self.directory = prepared.config, directory
        self._tokenizer = Tokenizer(directory, prepared.config.vocab_size)
        self._generation = load_generation_config(directory)
        self._conversation = Conversation()
        self._owns_device = not isinstance(device, gpu.Device)
        self.device = gpu.open(device)
        with self.device.ledger.tracking() as self._buffers:
            try:
                if tune:
                    tune_anyway(self.device, prepared.layout)
                self._model = load_model(prepared, self.device, context, kv_dtype, progress, fused)
            except BaseException:
                self._free()
                if self._owns_device:
                    self.device.close()
                raise
        self._engine = Engine(self.device, self._model)
        self._closed = False

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LLM {self.directory.name} on {self.device.adapter}{' closed' if self._closed else ''}>"

    @property
    def context(self) -> int:
        """The most tokens of a sequence, prompt and new ones together."""
        return self._model.context

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The model's chat template, read when it is first needed; None where it has none."""
        return load_chat_template(self.directory)

    @property
    def sizes(self) -> Sizes:
        """The bytes that weights, cache and activations take, and the choices behind them."""
        return self._model.sizes

    def close(self) -> None:
        """Free the model's memory. Generations still running end with an error; calling it twice is harmless."""
        if self._closed:
            return
        self._closed = True

        def close() -> None:  # one call: an interrupt while it is waited for leaves nothing behind
            self._engine.close()
            self._free()

        try:
            self.device.call(close)
        except DeviceLostError:
            pass  # the device was closed before the model
        if self._owns_device:
            self.device.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def _free(self) -> None:
        for buffer in self._buffers:
            self.device.free(buffer)
        self._buffers.clear()

    # --- text -------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with BOS where the tokenizer adds it."""
        return self._tokenizer.encode(text, special=add_special_tokens)

    def detokenize(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return self._tokenizer.decode(self._ids(ids), skip_special=skip_special_tokens)

    # --- generation -------------------------------------------------------------------------

    @overload
    def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> Result: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: Sequence[int], **options: Unpack[GenerateOptions]) -> Result: ...
    @overload
    def generate(self, prompt: Sequence[str], **options: Unpack[GenerateOptions]) -> list[Result]: ...

    def generate(
        self, prompt: str | Sequence[int] | Sequence[str], **options: Unpack[GenerateOptions]
    ) -> Result | list[Result]:
        """Continue a prompt: a string (BOS is added as the tokenizer says), token ids (taken as they are), or a list of
        strings, which gives a list of results in order.

        A list runs together, each result as it would be alone. The keyword arguments are those of ``sampling_params``:
        max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty,
        logit_bias, seed, stop, stop_token_ids, ignore_eos, logprobs.

        Raises:
            UsageError: an empty prompt, one longer than the context, or a value out of its range.
            TypeError: an unknown keyword.
        """
        if not isinstance(prompt, str):
            prompt = items(prompt, "a prompt")
        if isinstance(prompt, str) or not any(isinstance(p, str) for p in prompt):
            with self.stream(cast(Prompt, prompt), **options) as stream:
                return stream.result
        ids = [self._prompt_ids(p) for p in self._texts(prompt)]  # all are checked before any begins
        streams = [self.stream(i, **options) for i in ids]
        try:
            return [s.result for s in streams]
        finally:
            for s in streams:
                s.close()

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Stream:
        """As ``generate``, but an iterator of text pieces; its ``result`` has the rest. Leaving it stops it."""
        return self._stream(prompt, None, **options)

    def chat(self, messages: Sequence[Message], **options: Unpack[GenerateOptions]) -> Result:
        """The answer to a conversation: messages with ``role`` and ``content``, put into the model's chat template.

        What the cache still holds of the last conversation is reused where this one begins the same. Sampling settings
        that are not given come from the model's generation_config.json.

        Raises:
            UsageError: the model has no chat template, or it refuses the conversation, or passes a limit.
        """
        with self.chat_stream(messages, **options) as stream:
            return stream.result

    def chat_stream(self, messages: Sequence[Message], **options: Unpack[GenerateOptions]) -> Stream:
        """As ``chat``, but an iterator of text pieces."""
        template = self.chat_template
        if template is None:
            raise UsageError(
                f"The model {self.directory.name} has no chat template.",
                "It was not made for conversations.",
                "Use generate, or a model whose name says chat or instruct.",
            )
        messages = items(messages, "a conversation")
        for message in messages:
            parts = [message.get(k) for k in ("role", "content")] if isinstance(message, Mapping) else [None]
            if not all(isinstance(p, str) for p in parts):
                raise UsageError(f"{message!r} is no message.", "A message has a role and a content, both text.")
        if not messages:
            raise UsageError("The conversation is empty.", "There is nothing to answer.")
        text = template.render(messages)
        merged = cast(GenerateOptions, {**self._chat_settings(), **options})
        return self._stream(self.tokenize(text, add_special_tokens=False), self._conversation, **merged)

    def _chat_settings(self) -> dict[str, Any]:
        given = self._generation
        if given.get("do_sample") is not True:
            return {k: given[k] for k in ("repetition_penalty",) if given.get(k) is not None}
        return {"temperature": 1.0} | {k: given[k] for k in _CHAT_SETTINGS if given.get(k) is not None}

    def _stream(self, prompt: Prompt, conversation: Conversation | None, **options: Unpack[GenerateOptions]) -> Stream:
        params = sampling_params(**options)
        ids = self._prompt_ids(prompt)
        stops = params.stop_token_ids | (frozenset() if params.ignore_eos else frozenset(self.config.eos_token_id))
        beyond = [t for t in params.bias if t >= self.config.vocab_size]
        if beyond:
            raise UsageError(f"logit_bias names the token {beyond[0]}.", f"Ids run to {self.config.vocab_size - 1}.")
        limit = min(params.max_tokens, self.context - len(ids) + 1)
        request = Request(ids, limit, params.settings, stops, params.bias, conversation=conversation)
        return Stream(self._engine, request, self._tokenizer, self.context, params.stop)

    def logits(self, ids: Iterable[int]) -> npt.NDArray[np.float32]:
        """The model's logits for every position: float32 [len(ids), vocab_size]. Adds no BOS."""
        request = Request(self._prompt_ids(items(ids, "token ids")), 1, want_logits=True)
        self._engine.submit(request)
        out: npt.NDArray[np.float32] | str
        try:
            out = next_event(request)
        finally:
            request.cancelled.set()
        if isinstance(out, str):
            raise LlamaGPUError("The computation was cancelled.")
        return out

    def _ids(self, given: Iterable[int]) -> list[int]:
        """Token ids as ints, each one of this model."""
        ids = [whole_number(i, "a token id") for i in items(given, "token ids")]
        vocab = self.config.vocab_size
        bad = [i for i in ids if not 0 <= i < vocab]
        if bad:
            raise UsageError(f"{bad[0]} is no token id of this model.", f"Ids run from 0 to {vocab - 1}.")
        return ids

    @staticmethod
    def _texts(prompts: Sequence[Any]) -> list[str]:
        other = [p for p in prompts if not isinstance(p, str)]
        if other:
            raise UsageError("A list of prompts holds strings only.", f"It also holds {other[0]!r}.")
        return list(prompts)

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if self._closed:
            raise DeviceLostError("This model is closed.", "", "Load it again.")
        most = self.context * self._tokenizer.longest
        if isinstance(prompt, str) and len(prompt) > most:  # tokenising it could take minutes
            raise ContextFullError(
                f"The prompt has {len(prompt):,} characters; the context holds at most {most:,}.",
                f"It is {self.context} tokens. Nothing was cut.",
                "Shorten the prompt.",
            )
        ids = self.tokenize(prompt) if isinstance(prompt, str) else self._ids(prompt)
        if not ids or (isinstance(prompt, str) and not prompt):
            raise UsageError("The prompt is empty.", "There is nothing to continue.", "Give at least one character.")
        if len(ids) > self.context:
            raise ContextFullError(
                f"The prompt has {len(ids)} tokens; the context holds {self.context}.",
                "Nothing was cut.",
                "Shorten the prompt, or load the model with a larger context if it has one.",
            )
        return ids
