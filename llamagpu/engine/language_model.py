"""A decoder that is loaded with its tokenizer: what generation and embedding have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from llamagpu import gpu
from llamagpu.engine.arguments import adapter_name, checked_adapters, items, whole_in, whole_number
from llamagpu.engine.bound import Bindings, Bound, check_bindings, named_tensors
from llamagpu.engine.counters import Counters
from llamagpu.engine.drafts import PROMPT
from llamagpu.engine.places import Places
from llamagpu.engine.prompts import Prompts
from llamagpu.engine.remote import RemoteSession, elsewhere, remote_arguments
from llamagpu.engine.session import Session
from llamagpu.engine.texts import Texts
from llamagpu.engine.verify import verified
from llamagpu.errors import DeviceLostError, Unique, UsageError, shown
from llamagpu.model import Model, Sizes, check_dtypes, find_model, prepare
from llamagpu.model.bound import decoder_arguments
from llamagpu.model.estimate import MemoryUse
from llamagpu.model.fingerprint import fingerprint
from llamagpu.model.fit import Load
from llamagpu.model.layout import Layout
from llamagpu.model.weights import Progress
from llamagpu.text import ChatTemplates, Conversation, Message, Tokenizer, special_tokens
from llamagpu.text.guide import Guides
from llamagpu.text.shape import shape_of


class LanguageModel(Unique):
    """A decoder on a GPU, with its tokenizer and chat templates; the base of ``LLM``, which describes the arguments."""

    _head = True  # whether the model computes logits

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
        recover: bool = True,
        isolate: bool = False,
        max_memory: int | str | None = None,
        verify: bool = False,
        speculate: str | Path | None = None,
        queue: int | None = None,
        adapters: Mapping[str, str | Path] | None = None,
    ):
        dtype, kv_dtype = check_dtypes(dtype, kv_dtype)
        device = device if isinstance(device, gpu.Device) else adapter_name(device)
        context, queue, speculate = _checked(context, queue, speculate)
        load = Load(device, max_memory, dtype, kv_dtype, context, self._head, fused)
        self.directory = find_model(model, revision, fit=load)
        self._prepared = prepared = prepare(self.directory, dtype, self._head)
        self.source, self.config, self.name = prepared.source, prepared.config, prepared.name
        self._chat_template, self._generation = chat_template, self.source.generation_config()
        files = self.source.tokenizer_file(), self.source.tokenizer_config()
        self._tokenizer = Tokenizer(*files, prepared.config.vocab_size, f"{self.name}'s tokenizer")
        templates = self._templates(special_tokens(files[1]))
        options: dict[str, Any] = {"context": context, "kv_dtype": kv_dtype, "tune": tune, "fused": fused}
        options |= {"speculate": speculate, "device": device, "recover": recover, "max_memory": max_memory}
        self._session = self._open_session(options | {"adapters": checked_adapters(adapters)}, progress, isolate)
        self._places = Places(self._session.engine, queue)
        self._prompts = Prompts(self.name, self._tokenizer, templates, prepared.config.vocab_size, self.context)
        if verify:
            verified(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} on {self.device.adapter}{' closed' if self.closed else ''}>"

    @property
    def device(self) -> gpu.Device:
        """The device that the model is on; of an isolated model its ``adapter`` alone is known."""
        return cast(gpu.Device, self._session.device)

    @property
    def loaded(self) -> Model:
        """The model on the device: weights, cache and plans.

        Raises:
            UsageError: it is in another process.
        """
        if isinstance(self._session, RemoteSession):
            raise elsewhere("loaded")
        return self._session.model

    @property
    def layout(self) -> Layout:
        """The model's tensors in its files."""
        return self._prepared.layout

    @property
    def context(self) -> int:
        """The most tokens of a sequence, prompt and new ones together."""
        return self._session.model.context

    @property
    def sizes(self) -> Sizes:
        """The bytes of weights, cache and activations, and the chosen context, pool and cache dtype."""
        return self._session.model.sizes

    @property
    def memory(self) -> MemoryUse:
        """The bytes that the device's buffers take now, the estimate of this model's, and their limit."""
        return MemoryUse.of(self.device, self.sizes)

    @property
    def counters(self) -> Counters:
        """What the engine counted since the model was loaded, and how full the cache is now. It waits for nothing."""
        return self._session.counters

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

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._session.closed

    def close(self) -> None:
        """Free the model's memory. Running generations end with an error; closing twice is harmless."""
        self._session.close()

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
            OutOfMemoryError: the cache has no room for the ids now, beside what the longest running generation may come
                to need. One that begins later gets what is left, and ends with this error if it needs more.
            KernelError: a tensor is on another device, or was freed.
            DeviceLostError: the model is closed.
        """
        named = named_tensors(bindings, tensors)
        check_bindings(named, decoder_arguments(self.config, self._head), self.device, self.context)
        return Bound(self._session.engine, named)

    def texts(self, max_length: int | None = None) -> Texts:
        """What embeds texts of up to ``max_length`` tokens, or as many as the context has."""
        self._check_open()
        most = self.context if max_length is None else min(max_length, self.context)
        return Texts(self._tokenizer, self._session.packs(), most)

    def prepare_shape(self, **shape: Any) -> None:
        """Check and compile what texts must look like, so that generations with the same shape begin at once.

        Args:
            shape: json_schema, json_object, regex, choices or grammar, as ``generate`` takes them.

        Raises:
            UsageError: it cannot be used, or the model's vocabulary cannot spell it.
        """
        found = shape_of(**shape)
        if found is not None:
            self._guides.guide(found)

    @cached_property
    def _guides(self) -> Guides:
        """The grammars of the model's vocabulary."""
        return Guides(self._tokenizer, self.config.vocab_size, self.config.eos_token_id)

    def _open_session(
        self, options: dict[str, Any], progress: Progress | None, isolate: bool
    ) -> Session | RemoteSession:
        """Load the model, here or in another process."""
        if not isolate:
            return Session(self._prepared, progress=progress, **options)
        options = options | {"dtype": self.dtype, "head": self._head}
        return RemoteSession(remote_arguments(self.directory, "decoder", options), progress)

    def _templates(self, special: Mapping[str, str]) -> ChatTemplates:
        """The model's chat templates, or the one that replaces them."""
        if self._chat_template is not None and not isinstance(self._chat_template, str):
            raise UsageError("chat_template is not text.", "It is Jinja, or the name of one of the model's templates.")
        own = self.source.chat_templates()
        return ChatTemplates(own, self._chat_template, special, self._tokenizer.special_texts)

    def _check_open(self) -> None:
        if self.closed:
            raise DeviceLostError("This model is closed.", "", "Load it again.")


def _checked(
    context: int | None, queue: int | None, speculate: str | Path | None
) -> tuple[int | None, int | None, str | None]:
    """A context, a queue and a drafter, where they are given."""
    if speculate is not None and not isinstance(speculate, (str, Path)):
        raise UsageError(f"speculate is {shown(speculate)}.", f"It is None, {PROMPT!r}, or a draft model.")
    return (
        None if context is None else whole_number(context, "a context length"),
        None if queue is None else whole_in("queue", queue, 0),
        None if speculate is None else str(speculate),
    )
