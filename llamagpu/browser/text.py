"""The text of an exported site: tokenizer.json, and text.json with what else ``site/text.js`` needs.

text.json also has probes: texts with their ids, and conversations with their prompts. The browser computes them again
when it loads the model. So it refuses a tokenizer or a chat template that its libraries read differently.
"""

from __future__ import annotations

import json
from typing import Any

from llamagpu.browser.tokenizer import browser_tokenizer
from llamagpu.errors import LlamaGPUError, UnsupportedModelError, UsageError
from llamagpu.model.sources import Source
from llamagpu.text import ChatTemplate, ChatTemplates, Conversation, Tokenizer, sandbox, special_tokens
from llamagpu.text.sentencepiece import converted

_TEXTS = (
    "Once upon a time, there was a girl's cat.",
    " two  spaces,\ta tab\n\nand   lines \r\n",
    "Grüße, Привет, 日本語, مرحبا, नमस्ते, ไทย",
    "👩‍👩‍👧 🦙🏽 🇩🇪 é́ ﬁ ½ ٣",
    "1234567890 + 3.14 = x**2; don't WE'LL",
    "a\ufeffb\u0085c\u00a0d\u2028e\u3000f",
    "def f(x):\n        return {'a': [x]}  # <s>\n",
)
_SAID = ("Hi", "\n Hello, <b>wörld</b>! 🦙 \n", "\ufeffWhy?\n\nBecause.\x85 ")
_MOST_NAMES, _MOST_NAME = 20, 40  # strings that a template names, and their characters, for its probes


def text_files(source: Source, vocab_size: int, chat_template: str | None = None) -> dict[str, str]:
    """The files of a model's text by name, tokenizer.json and text.json.

    Args:
        chat_template: Jinja, or the name of one of the model's templates, in place of the default.

    Raises:
        UnsupportedModelError: the tokenizer cannot be read, or does not work in a browser.
    """
    file, config = source.tokenizer_file(), source.tokenizer_config()
    tokenizer = Tokenizer(file, config, vocab_size, f"{source.name}'s tokenizer")
    prefix, suffix = _ends(tokenizer)
    special = special_tokens(config)
    templates = ChatTemplates(source.chat_templates(), chat_template, special, tokenizer.special_texts)
    texts = [*_TEXTS, *(f"{token}a {token}" for token in sorted(set(special.values())))]
    settings = {
        "longest": tokenizer.longest,
        "prefix": prefix,
        "suffix": suffix,
        "special": special,
        "probes": [[text, ids := tokenizer.encode(text), tokenizer.decode(ids)] for text in texts],
        "chat": _chat(templates),
    }
    whole = browser_tokenizer(converted(file, config) if isinstance(file, bytes) else file)
    return {"tokenizer.json": whole, "text.json": json.dumps(settings, ensure_ascii=False, separators=(",", ":"))}


def _ends(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that go before and after every text."""
    plain, whole = tokenizer.encode("a", special=False), tokenizer.encode("a")
    at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), None)
    if at is None:
        raise UnsupportedModelError(
            "The model's tokenizer does not work in a browser.",
            "The special tokens that it adds are not before or after the text.",
            "Choose another model, or run this one from Python.",
        )
    return whole[:at], whole[at + len(plain) :]


def _chat(templates: ChatTemplates) -> dict[str, Any] | None:
    """The default chat template with its probes, or why it is refused; None if there is none."""
    if not templates:
        return None
    try:
        template = templates.of()
        for _ in range(3):  # templates may write the time: a second must not end meanwhile
            now = sandbox.now().replace(microsecond=0)
            probes = [_rendered(template, *probe) for probe in _conversations(template)]
            if sandbox.now().replace(microsecond=0) == now:
                break
    except LlamaGPUError as e:
        return {"refused": f"{e.what} {e.why}".strip()}
    if all(probe["text"] is None for probe in probes):
        return {"refused": "It takes no conversation of plain messages."}
    return {
        "template": template.source,
        "named": sorted(template.named),
        "attributes": sorted(template.attributes),
        "now": now.isoformat(),
        "probes": probes,
    }


def _conversations(template: ChatTemplate) -> list[tuple[list[dict[str, str]], bool]]:
    """Conversations, and whether the answer's beginning follows. Some have what the template looks for in texts."""
    system = [{"role": "system", "content": " Be brief. "}]
    turns = _turns(*_SAID)
    named = sorted(n for n in template.named if len(n) < _MOST_NAME and n.strip() and not n.isalnum())[:_MOST_NAMES]
    looked_for = [_turns(f" {n} a", f"\n{n}\n b\n{n}\n\n c \n", n) for n in named]
    return [
        (turns[:1], True),
        (turns, True),
        (turns[:2], False),
        (system + turns, True),
        *((conversation, True) for conversation in looked_for),
    ]


def _turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _rendered(template: ChatTemplate, messages: list[dict[str, str]], prompts: bool) -> dict[str, Any]:
    given = Conversation(messages, add_generation_prompt=prompts)
    try:
        text: str | None = template.render(given).text
    except UsageError:  # some take no system message
        text = None
    return {"messages": messages, "addGenerationPrompt": prompts, "text": text}
