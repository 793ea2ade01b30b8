"""The sampling settings that a model's authors recommend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_READ = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def chat_settings(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling settings for chats from the keys of generation_config.json, by the names of ``GenerateOptions``."""
    given = generation_config
    if given.get("do_sample") is not True:
        return {k: given[k] for k in ("repetition_penalty",) if given.get(k) is not None}
    return {"temperature": 1.0} | {k: given[k] for k in _READ if given.get(k) is not None}
