"""The bodies of requests: OpenAI's fields that are supported, and the engine's own.

Every other field is an error. Fields of OpenAI's that are not supported are here with the values that change nothing
(``NEUTRAL``), because clients send them.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from llamagpu.engine.chat_options import TEMPLATE_OPTIONS, TOOL_OPTIONS
from llamagpu.engine.params import DEFAULTS
from llamagpu.server.bounds import (
    MOST_BIASES,
    MOST_TOKENIZED,
    Biases,
    Items,
    Texts,
    check_likely,
    check_most,
    check_stops,
    text_alone,
    without_further,
)
from llamagpu.server.errors import BAD_REQUEST, UNSUPPORTED, RequestError
from llamagpu.server.formats import ResponseFormat

_MOST_CHOICES = 1024
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
}


class Body(BaseModel):
    """A body. Its values have the types of JSON: "1" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)
    neutral: ClassVar[tuple[str, ...]] = ()  # fields of _NEUTRAL

    model: str | None = None
    user: str | None = None  # known to OpenAI's service alone

    @model_validator(mode="before")
    @classmethod
    def _first_unknown(cls, data: Any) -> Any:
        """Of a body with unknown fields, the known ones and the first unknown one: it alone is told."""
        return without_further(data, cls.model_fields)

    def check(self) -> None:
        """Refuse values of fields that are not supported.

        Raises:
            RequestError: there is one; it is named.
        """
        for name in self.neutral:
            value = getattr(self, name)
            if not any(value == allowed and type(value) is type(allowed) for allowed in _NEUTRAL[name]):
                raise RequestError(UNSUPPORTED, f"{name} is not supported.", "", "Leave it out.", param=name)


class StreamOptions(BaseModel):
    """What a stream tells besides the text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class Sampled(Body):
    """What both kinds of generation take. Ranges are the engine's business (``GenerateOptions``)."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Biases | None = None
    seed: int | None = None
    stop: str | Texts | None = None
    stop_token_ids: Items[int] | None = None
    ignore_eos: bool | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, Any] | None = None  # known to OpenAI's service alone
    return_token_ids: bool | None = None
    response_format: ResponseFormat | None = None

    @property
    def choices(self) -> int:
        """Texts for each prompt."""
        return 1 if self.n is None else self.n

    @property
    def texts(self) -> int:
        """Texts in all."""
        return self.choices

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wanted(self) -> int | None:
        """The likeliest tokens that are wanted with each token; None if not even its own log-probability is."""
        raise NotImplementedError

    def check(self) -> None:
        """See ``Body.check``."""
        super().check()
        if not 1 <= self.choices <= _MOST_CHOICES:
            raise RequestError(BAD_REQUEST, f"n is {self.n}.", f"It must be from 1 to {_MOST_CHOICES}.", param="n")
        check_stops(self.stop, self.stop_token_ids)
        check_most("logit_bias", self.logit_bias, MOST_BIASES, "entries")
        if self.stream_options is not None and not self.stream:
            raise RequestError(BAD_REQUEST, "stream_options needs stream.", param="stream_options")

    def options(self) -> dict[str, Any]:
        """The engine's settings, without those that the request leaves open.

        Raises:
            RequestError: a key of logit_bias is no token id, or response_format has no schema.
        """
        fields = type(self).model_fields.keys() & DEFAULTS.keys() - {"logprobs"}
        given = {k: v for k in fields if (v := getattr(self, k)) is not None}
        if self.logit_bias is not None:
            given["logit_bias"] = {_token(key): value for key, value in self.logit_bias.items()}
        if self.response_format is not None:
            given |= self.response_format.options()
        if self.wanted is not None:
            given["logprobs"] = max(1, self.wanted)
        return given


class ChatBody(Sampled):
    """POST /v1/chat/completions."""

    neutral = (
        "functions",
        "function_call",
        "modalities",
        "store",
        "service_tier",
    )
    messages: Items[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    documents: Items[dict[str, Any]] | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Items[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    store: Any = None
    service_tier: Any = None

    @property
    def wanted(self) -> int | None:
        """See ``Sampled.wanted``."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        """See ``Body.check``."""
        super().check()
        if self.top_logprobs is not None:
            check_likely("top_logprobs", self.top_logprobs)
            if not self.logprobs:
                raise RequestError(BAD_REQUEST, "top_logprobs needs logprobs.", param="top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            what = "max_tokens and max_completion_tokens exclude one another."
            raise RequestError(BAD_REQUEST, what, param="max_completion_tokens")
        if self.tools and self.tool_choice != "none" and self.response_format and self.response_format.options():
            what = "response_format and tools exclude one another."
            raise RequestError(BAD_REQUEST, what, "An answer of that format has no calls.", param="response_format")

    def options(self) -> dict[str, Any]:
        """See ``Sampled.options``. Without a limit the context is the limit."""
        most = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        return super().options() | {"max_tokens": 2**31 - 1 if most is None else most}

    def tool_options(self) -> dict[str, Any]:
        """What the request says of tools, without what it leaves open."""
        return {k: v for k in TOOL_OPTIONS if (v := getattr(self, k)) is not None}

    def template(self) -> dict[str, Any]:
        """The arguments of the chat template."""
        return {k: v for k in TEMPLATE_OPTIONS if (v := getattr(self, k)) is not None}


class CompletionBody(Sampled):
    """POST /v1/completions."""

    neutral = ("best_of", "echo", "suffix")
    prompt: str | Texts | Items[int] | Items[Items[int]]
    logprobs: int | None = None
    best_of: Any = None
    echo: Any = None
    suffix: Any = None

    @property
    def wanted(self) -> int | None:
        """See ``Sampled.wanted``."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(cast("list[str | list[int]]", self.prompt))

    @property
    def texts(self) -> int:
        """See ``Sampled.texts``."""
        return len(self.prompts) * self.choices

    def check(self) -> None:
        """See ``Body.check``."""
        super().check()
        if not self.prompt:
            raise RequestError(BAD_REQUEST, "The prompt is empty.", "There is nothing to continue.", param="prompt")
        if self.texts > _MOST_CHOICES:
            what = f"The request asks for {self.texts} texts."
            raise RequestError(BAD_REQUEST, what, f"At most {_MOST_CHOICES} are made.", param="prompt")
        if self.logprobs is not None:
            check_likely("logprobs", self.logprobs)

    def options(self) -> dict[str, Any]:
        """See ``Sampled.options``. OpenAI's limit is 16 tokens."""
        return {"max_tokens": 16} | super().options()


class EmbeddingsBody(Body):
    """POST /v1/embeddings."""

    input: Annotated[str | Texts, BeforeValidator(text_alone)]
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = None


class RerankBody(Body):
    """POST /v1/rerank."""

    query: str
    documents: Items[str | dict[str, Any]]
    top_n: int | None = None
    return_documents: bool = False


class TokenizeBody(Body):
    """POST /tokenize, of a text or of a conversation."""

    prompt: str | None = None
    messages: Items[dict[str, Any]] | None = None
    add_special_tokens: bool = True

    def check(self) -> None:
        """See ``Body.check``."""
        super().check()
        check_most("prompt", self.prompt, MOST_TOKENIZED, "characters")


class DetokenizeBody(Body):
    """POST /detokenize."""

    tokens: Items[int]
    skip_special_tokens: bool = True

    def check(self) -> None:
        """See ``Body.check``."""
        super().check()
        check_most("tokens", self.tokens, MOST_TOKENIZED, "ids")


def _token(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 20):
        raise RequestError(BAD_REQUEST, f"logit_bias has the key {key[:60]!r}.", "Keys are ids.", param="logit_bias")
    return int(key)
