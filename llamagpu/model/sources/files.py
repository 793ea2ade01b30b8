"""Opening the files of models, which nobody should trust: regular files only, text and JSON within bounds."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llamagpu.errors import LlamaGPUError, ModelNotFoundError, UnsupportedModelError, shown

MOST_JSON = 8_000_000  # bytes of a JSON file or header; the largest of small models have a tenth of it
MOST_TOKENIZER = 64_000_000  # bytes of tokenizer.json and tokenizer.model; the largest have 35 million
MOST_TEMPLATE = 1_000_000  # bytes of a chat template; the largest have 30,000
_MOST_DEPTH = 64
_MOST_DIGITS = 40  # transformers writes 10^30 for "no limit"
_TEXTS = ("model_type", "hidden_act", "hidden_activation", "activation")  # keys of config.json that name something
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
Pairs = Callable[[list[tuple[str, Any]]], dict[str, Any]]


def present(path: Path) -> bool:
    """Whether there is anything of this name, be it a broken link: opening that is an error, not a missing file."""
    return os.path.lexists(path)


def broken(path: Path, why: str) -> UnsupportedModelError:
    """The error for a file that contradicts its format."""
    return UnsupportedModelError(
        f"{path.name} is broken: {why}.", f"In {path.parent.resolve()}.", "Download the file again."
    )


def pickled(path: Path) -> UnsupportedModelError:
    """The error for weights as Python pickles, which are never opened."""
    return UnsupportedModelError(
        f"{path} is a Python pickle, not safetensors.",
        "Reading a pickle can run any code that somebody put into it, so llamagpu never opens one.",
        "Convert the model where its code may run: AutoModelForCausalLM.from_pretrained, then save_pretrained.",
    )


def open_file(path: Path) -> BinaryIO:
    """A file of a model, opened for reading its bytes.

    Pipes, sockets, devices and directories are refused without being opened: reading them could wait or go on for ever.

    Raises:
        ModelNotFoundError: there is no such file.
        UnsupportedModelError: it is not a regular file, or cannot be read.
    """
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (the caller closes it)
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # the name may have changed hands
                return file
            file.close()
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError) as e:  # ValueError: the name holds a NUL
        raise UnsupportedModelError(f"{path} cannot be read.", getattr(e, "strerror", None) or str(e)) from None
    raise broken(path, "it is not a regular file")


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _missing(path: Path) -> ModelNotFoundError:
    if path.is_symlink():
        return ModelNotFoundError(
            f"{path} is a link to a file that does not exist.", "", "Download the model again, or remove the link."
        )
    return ModelNotFoundError(
        f"There is no {path.name} in {str(path.parent)!r}.",
        "A model directory holds config.json, tokenizer.json and *.safetensors.",
        "Check the path, or download the model again.",
    )


def map_file(path: Path) -> npt.NDArray[np.uint8]:
    """The bytes of a file, mapped into memory; raises as ``open_file``."""
    with open_file(path) as file:
        return np.memmap(file, np.uint8, mode="r")


def read_bytes(path: Path, most: int = MOST_TOKENIZER) -> bytes:
    """The content of a file; raises as ``open_file``, and for more than ``most`` bytes."""
    try:
        with open_file(path) as file:
            data = file.read(most + 1)
    except LlamaGPUError:
        raise
    except OSError as e:
        raise UnsupportedModelError(f"{path} cannot be read.", e.strerror or str(e)) from None
    if len(data) > most:
        raise broken(path, f"it has more than {most:,} bytes")
    return data


def read_text(path: Path, most: int = MOST_TEMPLATE) -> str:
    """The text of a UTF-8 file; raises as ``read_bytes``."""
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError as e:
        raise UnsupportedModelError(f"{path} cannot be read.", str(e), "Download the file again.") from None


# --- JSON ----------------------------------------------------------------------------------


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelNotFoundError: the file is missing.
        UnsupportedModelError: it does not hold a JSON object, or one beyond the bounds of ``parse_json``.
    """
    value = _read_json(path)
    if not isinstance(value, dict):
        raise UnsupportedModelError(f"{path} does not hold a JSON object.", "", "Download the file again.")
    return value


def load_objects(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects from a file; raises as ``load_json``."""
    value = _read_json(path)
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise UnsupportedModelError(f"{path} does not hold a list of JSON objects.", "", "Download the file again.")
    return value


def load_config(directory: Path) -> dict[str, Any]:
    """config.json of a directory; raises as ``load_json``, and if a key that names something does not hold text."""
    path = directory / "config.json"
    config = load_json(path)
    for key in _TEXTS:
        if not isinstance(config.get(key), str | None):
            raise UnsupportedModelError(
                f"{path} sets {key} to {shown(config[key])}.",
                "It must be text, the name of an architecture or activation.",
            )
    return config


def _read_json(path: Path) -> Any:
    data = read_bytes(path, MOST_JSON)
    try:
        return parse_json(data)
    except ValueError as e:
        raise UnsupportedModelError(f"{path} cannot be read as JSON.", str(e), "Download the file again.") from None


def parse_json(data: bytes, pairs: Pairs | None = None) -> Any:
    """A JSON value from UTF-8. NaN and infinite numbers pass, because published configs have them.

    Args:
        pairs: makes a dictionary of an object's pairs.

    Raises:
        ValueError: it is not JSON, or it has deep nesting, numbers of over 40 digits or halves of surrogate pairs,
            which nobody writes and much code stumbles over.
    """
    try:
        value = json.loads(data.decode(), parse_int=_integer, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level, depth = [value], 0
    while level:
        if depth > _MOST_DEPTH:
            raise ValueError("it is nested too deeply")
        inner: list[Any] = []
        for item in level:
            if isinstance(item, str):
                item.encode()  # raises for halves of surrogate pairs
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, dict):
                inner += [*item, *item.values()]
        level, depth = inner, depth + 1
    return value


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a whole number has {len(text):,} digits")
    return int(text)
