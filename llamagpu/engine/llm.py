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
from llamagpu.engine.params import GenerateOptions, sampling_params, takes_options
from llamagpu.engine.request import Request
from llamagpu.engine.result import Result
from llamagpu.engine.session import Session
from llamagpu.engine.stream import Stream, next_event
from llamagpu.errors import ContextFullError, DeviceLostError, LlamaGPUError, Unique, UsageError, shown
from llamagpu.model import Sizes, check_dtypes, find_model, prepare
from llamagpu.model.weights import Progress
from llamagpu.text import ChatTemplate, Tokenizer, special_tokens

Message = Mapping[str, Any]
Prompt = str | Sequence[int]
_CHAT_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # read from generation_config.json


class LLM(Unique):
    """A Llama on a GPU. Use it as a context manager, from any thread; overlapping calls run together.

    Args:
        model: a directory in Hugging Face layout, a GGUF file, a hub id, or None for the bundled model.
        device: ``auto``, an adapter's number, kind, backend or name, or an open ``gpu.Device`` to share.
        dtype: ``auto`` (as stored), ``float32``, ``float16``, ``bfloat16``, ``int8`` or ``int4`` (groups of 64).
        kv_dtype: ``auto`` (float16 with float16 and quantized weights, otherwise float32), ``float32`` or ``float16``.
        context: the most tokens of a sequence; None is the model's maximum, 4096, or the most that fits.
        revision: of a hub id.
        tune: first measure the kernel variants for this model's matrices, which takes some seconds, and store the
            fastest on this machine, as ``llamagpu tune`` does. Other models on a shared device are not affected.
        fused: False runs one kernel for each operation of the formula: slower, readable, and an oracle.
        progress: called with (bytes loaded, bytes in total).

    Raises:
        ModelNotFoundError: the model or one of its files is missing.
        UnsupportedModelError: its files are broken, contradict one another, or need features that are not implemented.
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
        dtype, kv_dtype = check_dtypes(dtype, kv_dtype)
        if not isinstance(device, gpu.Device):
            device = adapter_name(device)
        if context is not None:
            context = whole_number(context, "a context length")
        self._prepared = prepared = prepare(find_model(model, revision), dtype)
        source, self.config, self.name = prepared.source, prepared.config, prepared.name
        files = source.tokenizer_json(), source.tokenizer_config()
        self._tokenizer = Tokenizer(*files, prepared.config.vocab_size, f"{self.name}'s tokenizer.json")
        self._generation = source.generation_config()
        self._session = Session(
            prepared, device, context=context, kv_dtype=kv_dtype, tune=tune, fused=fused, progress=progress
        )

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LLM {self.name} on {self.device.adapter}{' closed' if self._session.closed else ''}>"

    @property
    def device(self) -> gpu.Device:
        """The device that the model is on."""
        return self._session.device

    @property
    def context(self) -> int:
        """The most tokens of a sequence, prompt and new ones together."""
        return self._session.model.context

    @property
    def sizes(self) -> Sizes:
        """The bytes of weights, cache and activations, and the chosen context, pool and cache dtype."""
        return self._session.model.sizes

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The model's chat template, read when it is first needed; None if it has none."""
        source = self._prepared.source
        template = source.chat_template()
        return None if template is None else ChatTemplate(template, special_tokens(source.tokenizer_config()))

    def close(self) -> None:
        """Free the model's memory. Running generations end with an error; closing twice is harmless."""
        self._session.close()

    # --- text -------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with BOS if the tokenizer adds it."""
        return self._tokenizer.encode(text, special=add_special_tokens)

    def detokenize(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return self._tokenizer.decode(self._ids(ids), skip_special=skip_special_tokens)

    def apply_chat_template(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to the beginning of the answer.

        Raises:
            UsageError: the model has no chat template, or the template refuses the conversation.
            ContextFullError: it is far longer than the context; then it is not even tokenized.
        """
        template = self.chat_template
        if template is None:
            raise UsageError(
                f"The model {self.name} has no chat template.",
                "It was not made for conversations.",
                "Use generate, or a model whose name says chat or instruct.",
            )
        messages = items(messages, "a conversation")
        for message in messages:
            parts = [message.get(k) for k in ("role", "content")] if isinstance(message, Mapping) else [None]
            if not all(isinstance(p, str) for p in parts):
                raise UsageError(
                    f"{shown(message)} is not a message.", "A message has a role and a content, both text."
                )
        if not messages:
            raise UsageError("The conversation is empty.", "There is nothing to answer.")
        self._check_characters(sum(len(m["content"]) for m in messages), "conversation")
        text = template.render(messages)
        self._check_characters(len(text), "conversation")
        return self.tokenize(text, add_special_tokens=False)

    # --- generation -------------------------------------------------------------------------

    @overload
    def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> Result: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: Sequence[int], **options: Unpack[GenerateOptions]) -> Result: ...
    @overload
    def generate(
        self, prompt: Sequence[str] | Sequence[Sequence[int]], **options: Unpack[GenerateOptions]
    ) -> list[Result]: ...

    @takes_options
    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        **options: Unpack[GenerateOptions],
    ) -> Result | list[Result]:
        """Continue a prompt: a string (BOS is added as the tokenizer says), token ids (taken as they are), or a list of
        either, which gives a list of results in order.

        The prompts of a list run in batches, and each result is the same as alone. The keyword arguments are described
        in ``llamagpu.engine.params.GenerateOptions``.

        Raises:
            UsageError: an empty prompt, or a value out of its range.
            ContextFullError: a prompt longer than the context.
            TypeError: an unknown keyword.
        """
        if not isinstance(prompt, str):
            prompt = items(prompt, "a prompt")
        if isinstance(prompt, str) or (prompt and not any(_is_prompt(p) for p in prompt)):
            with self._stream(cast(Prompt, prompt), **options) as stream:
                return stream.result
        ids = [self._prompt_ids(p) for p in _prompts(prompt)]  # all are checked before any begins
        streams = [self._stream(i, **options) for i in ids]
        try:
            return [s.result for s in streams]
        finally:
            for s in streams:
                s.close()

    @takes_options
    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Stream:
        """As ``generate``, but an iterator of text pieces; its ``result`` has the rest. Closing it stops it early."""
        return self._stream(prompt, **options)

    @takes_options
    def chat(self, messages: Sequence[Message], **options: Unpack[GenerateOptions]) -> Result:
        """The answer to a conversation: messages with ``role`` and ``content``, put into the model's chat template.

        The cache keeps earlier conversations while it has room, and a conversation that begins the same reuses it.
        Sampling settings that are not given come from the model's generation_config.json.

        Raises:
            UsageError: the model has no chat template, or it refuses the conversation.
            ContextFullError: the conversation is longer than the context.
        """
        with self.chat_stream(messages, **options) as stream:
            return stream.result

    @takes_options
    def chat_stream(self, messages: Sequence[Message], **options: Unpack[GenerateOptions]) -> Stream:
        """As ``chat``, but an iterator of text pieces."""
        ids = self.apply_chat_template(messages)
        merged = cast(GenerateOptions, {**self._chat_settings(), **options})
        return self._stream(ids, reuse=True, **merged)

    def _chat_settings(self) -> dict[str, Any]:
        given = self._generation
        if given.get("do_sample") is not True:
            return {k: given[k] for k in ("repetition_penalty",) if given.get(k) is not None}
        return {"temperature": 1.0} | {k: given[k] for k in _CHAT_SETTINGS if given.get(k) is not None}

    def _stream(self, prompt: Prompt, reuse: bool = False, **options: Unpack[GenerateOptions]) -> Stream:
        params = sampling_params(self.config.vocab_size, **options)
        ids = self._prompt_ids(prompt)
        stops = params.stop_token_ids | (frozenset() if params.ignore_eos else frozenset(self.config.eos_token_id))
        limit = min(params.max_tokens, self.context - len(ids) + 1)
        request = Request(tuple(ids), limit, params.settings, stops, params.bias, reuse=reuse)
        return Stream(self._session.engine, request, self._tokenizer, self.context, params.stop)

    def logits(self, ids: Iterable[int]) -> npt.NDArray[np.float32]:
        """The model's logits for every position: float32 [len(ids), vocab_size]. Adds no BOS."""
        request = Request(tuple(self._prompt_ids(items(ids, "token ids"))), 1, want_logits=True)
        sequence = self._session.engine.submit(request)
        out: npt.NDArray[np.float32] | str
        try:
            out = next_event(sequence)
        finally:
            sequence.cancelled.set()
        if isinstance(out, str):
            raise LlamaGPUError("The computation was cancelled.")
        return out

    def _ids(self, given: Iterable[int]) -> list[int]:
        """Token ids as ints, each one of this model."""
        ids = [whole_number(i, "a token id") for i in items(given, "token ids")]
        vocab = self.config.vocab_size
        bad = next((i for i in ids if not 0 <= i < vocab), None)
        if bad is not None:
            raise UsageError(f"{shown(bad)} is not a token id of this model.", f"Ids run from 0 to {vocab - 1}.")
        return ids

    def _check_characters(self, count: int, kind: str) -> None:
        """Refuse text that cannot fit before it is tokenized, which could take minutes."""
        most = self.context * self._tokenizer.longest
        if count > most:
            raise ContextFullError(
                f"The {kind} has {count:,} characters; the context holds at most {most:,}.",
                f"The context has {self.context} tokens. Nothing was cut.",
                f"Shorten the {kind}.",
            )

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if self._session.closed:
            raise DeviceLostError("This model is closed.", "", "Load it again.")
        if isinstance(prompt, str):
            self._check_characters(len(prompt), "prompt")
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


def _is_prompt(value: Any) -> bool:
    """Whether an item of a list is a prompt of its own: text, or a list or array of ids."""
    return isinstance(value, str) or (hasattr(value, "__len__") and not isinstance(value, (bytes, Mapping)))


def _prompts(given: Sequence[Any]) -> list[Prompt]:
    other = [p for p in given if not _is_prompt(p)]
    if other:
        raise UsageError("A list of prompts holds texts or lists of token ids.", f"It also holds {shown(other[0])}.")
    return list(given)
