"""``LLM``: a model that generates text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, cast, overload

import numpy as np
import numpy.typing as npt

from llamagpu import gpu
from llamagpu.engine.arguments import adapter_name, items, whole_in, whole_number
from llamagpu.engine.bound import Bindings, Bound, check_bindings, named_tensors
from llamagpu.engine.params import (
    CHAT_DEFAULTS,
    ChatOptions,
    GenerateOptions,
    sampling_params,
    takes_chat_options,
    takes_options,
)
from llamagpu.engine.prompts import Prompt, Prompts, is_prompt, prompts_of
from llamagpu.engine.request import Request
from llamagpu.engine.result import Result
from llamagpu.engine.session import Session
from llamagpu.engine.stream import Stream, wait_logits
from llamagpu.errors import DeviceLostError, Unique, UsageError
from llamagpu.model import Sizes, check_dtypes, find_model, prepare
from llamagpu.model.bound import decoder_arguments
from llamagpu.model.fingerprint import fingerprint
from llamagpu.model.weights import Progress
from llamagpu.text import ChatTemplates, Conversation, Message, Tokenizer, special_tokens

_CHAT_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # read from generation_config.json


class LLM(Unique):
    """A Llama on a GPU. Use it as a context manager, from any thread; overlapping calls run together.

    Args:
        model: a directory in Hugging Face layout, a GGUF file, a hub id, or None for the bundled model.
        device: ``auto``, an adapter's number, kind, backend or name, or an open ``gpu.Device`` to share.
        dtype: ``auto`` (as stored), ``float32``, ``float16``, ``bfloat16``, ``int8`` or ``int4`` (groups of 64).
        kv_dtype: ``auto`` (float16 with float16 and quantized weights, otherwise float32), ``float32`` or ``float16``.
        context: the most tokens of a sequence; None is the model's maximum, 4096, or the most that fits.
        revision: of a hub id: a branch, a tag or a commit.
        chat_template: Jinja in place of the model's own chat template, or the name of one that the model has.
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
        chat_template: str | None = None,
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
        if chat_template is not None and not isinstance(chat_template, str):
            raise UsageError("chat_template is not text.", "It is Jinja, or the name of one of the model's templates.")
        self._chat_template = chat_template
        files = source.tokenizer_file(), source.tokenizer_config()
        self._tokenizer = Tokenizer(*files, prepared.config.vocab_size, f"{self.name}'s tokenizer")
        templates = ChatTemplates(
            source.chat_templates(), chat_template, special_tokens(files[1]), self._tokenizer.special_texts
        )
        self._generation = source.generation_config()
        self._session = Session(
            prepared, device, context=context, kv_dtype=kv_dtype, tune=tune, fused=fused, progress=progress
        )
        self._prompts = Prompts(self.name, self._tokenizer, templates, prepared.config.vocab_size, self.context)

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

    @property
    def dtype(self) -> str:
        """The dtype of the weights as it was asked for: ``auto``, ``float16``, …"""
        return self._prepared.layout.dtype

    @property
    def fingerprint(self) -> str:
        """A hash of the model's files and of a given chat template, the same on every machine. It ignores dtypes."""
        return fingerprint(self._prepared, self._chat_template)

    @property
    def special_tokens(self) -> dict[str, int]:
        """Ids of the special tokens that the tokenizer's config names: ``bos_token``, ``eos_token``, …"""
        vocab, named = self._tokenizer.vocab, special_tokens(self._prepared.source.tokenizer_config())
        return {name: vocab[token] for name, token in named.items() if token in vocab}

    @property
    def chat_templates(self) -> ChatTemplates:
        """The model's chat templates; false if it has none."""
        return self._prompts.templates

    def close(self) -> None:
        """Free the model's memory. Running generations end with an error; closing twice is harmless."""
        self._session.close()

    # --- text -------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with BOS if the tokenizer adds it. Special tokens in the text are recognised."""
        return self._tokenizer.encode(text, special=add_special_tokens)

    def detokenize(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return self._tokenizer.decode(self._prompts.checked(ids), skip_special=skip_special_tokens)

    def apply_chat_template(
        self,
        messages: Iterable[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, up to the beginning of the answer; ``ChatOptions`` describes the arguments.

        Special tokens are recognised in the template's own text only, and BOS is added by the template alone.

        Args:
            add_generation_prompt: False ends after the last message.

        Raises:
            UsageError: the model has no chat template, the conversation is not valid, or the template refuses it.
            ContextFullError: it is far longer than the context; then it is not even tokenized.
        """
        given = items(messages, "a conversation")
        ends = add_generation_prompt and not continue_final_message
        return self._prompts.chat(
            Conversation(given, tools, documents, ends, continue_final_message, chat_template_kwargs)
        )

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
        if isinstance(prompt, str) or (prompt and not any(is_prompt(p) for p in prompt)):
            with self._stream(cast(Prompt, prompt), **options) as stream:
                return stream.result
        ids = [self._prompt_ids(p) for p in prompts_of(prompt)]  # all are checked before any begins
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

    @takes_chat_options
    def chat(self, messages: Iterable[Message], **options: Unpack[ChatOptions]) -> Result:
        """The answer to a conversation, put into the model's chat template.

        Messages are dictionaries with ``role`` and ``content``, in OpenAI's form. The keyword arguments are described
        in ``llamagpu.engine.params.ChatOptions``; sampling settings that are not given come from the model's
        generation_config.json. The cache keeps earlier conversations while it has room, and a conversation that begins
        the same reuses it.

        Raises:
            UsageError: the model has no chat template, the conversation is not valid, or the template refuses it.
            ContextFullError: the conversation is longer than the context.
            TypeError: an unknown keyword.
        """
        with self.chat_stream(messages, **options) as stream:
            return stream.result

    @takes_chat_options
    def chat_stream(self, messages: Iterable[Message], **options: Unpack[ChatOptions]) -> Stream:
        """As ``chat``, but an iterator of text pieces."""
        given: dict[str, Any] = {**options}
        ids = self.apply_chat_template(messages, **{k: given.pop(k) for k in CHAT_DEFAULTS if k in given})
        return self._stream(ids, reuse=True, **cast(GenerateOptions, self._chat_settings() | given))

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

    def logits(self, ids: Iterable[int], *, first: int = 0, reuse: bool = False) -> npt.NDArray[np.float32]:
        """The model's logits for the positions from ``first`` on: float32 [len(ids) - first, vocab_size]. Adds no BOS.

        ``reuse`` takes the beginning of the ids from the cache, if earlier calls left it there; last bits may differ.
        """
        prompt = tuple(self._prompt_ids(items(ids, "token ids")))
        first = whole_in("first", first, 0, len(prompt) - 1)
        return wait_logits(self._session.engine, Request(prompt, 1, want_logits=True, first=first, reuse=reuse))

    def bind(self, bindings: Bindings = (), /, **tensors: gpu.Tensor) -> Bound:
        """Bind tensors on this model's device to its input and outputs, for runs that move nothing to the host.

        Takes keywords, a mapping, or pairs of (name, tensor), as ``dict`` does. Binding compiles and records nothing
        but what a length needs that never ran before.

        Args:
            input_ids: u32 [n] or [1, n], n up to the context. Adds no BOS.
            logits: f32 [n, vocab_size], or [1, vocab_size] for the last position.
            hidden_states: f32 [n, hidden_size], or [1, hidden_size] for the last position: after the final norm, as
                transformers' ``last_hidden_state``.

        Raises:
            UsageError: a name is bound twice, missing or unknown, or a tensor has the wrong dtype or shape, or shares
                memory with another one.
            ContextFullError: there are more ids than the context has tokens.
            OutOfMemoryError: the cache has no room for the ids now.
            KernelError: a tensor is on another device, or was freed.
            DeviceLostError: the model is closed.
        """
        named = named_tensors(bindings, tensors)
        check_bindings(named, decoder_arguments(self.config), self.device, self.context)
        return Bound(self._session, named)

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if self._session.closed:
            raise DeviceLostError("This model is closed.", "", "Load it again.")
        return self._prompts.ids(prompt)
