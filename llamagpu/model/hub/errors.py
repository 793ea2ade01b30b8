"""The errors of huggingface_hub, of its HTTP client and of the disk, as this project's errors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from llamagpu.errors import LlamaGPUError, ModelNotFoundError, UnsupportedModelError

# Errors of the connection, by the names of their classes or base classes: the hub's library is built on requests,
# httpx or httpx2, depending on its version.
_TIMEOUTS = {"TimeoutException", "Timeout", "TimeoutError"}
_BROKEN = {"TransportError", "ConnectionError", "ChunkedEncodingError"}
_NOT_FETCHED = "The model {} could not be fetched from the hub."


@contextmanager
def our_errors(model: str, revision: str | None = None) -> Iterator[None]:
    """Raise this project's errors for those of the hub's library. What the library raises has many roots."""
    try:
        yield
    except LlamaGPUError:
        raise
    except Exception as e:
        raise _translated(e, model, revision) from None


def _translated(error: Exception, model: str, revision: str | None) -> LlamaGPUError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return _gated(error, model)
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        unknown = f"{_endpoint()} does not have it, or does not show it without a token."
        return ModelNotFoundError(
            f"There is no model {model} on the hub, and no such directory here.",
            _reason(error) if isinstance(error, errors.HFValidationError) else unknown,
            "Check the name. For a private model, set HF_TOKEN (or run: hf auth login).",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFoundError(
            f"The model {model} has no revision {revision}.",
            "A revision is a branch, a tag or the full hash of a commit.",
            f"Its revisions: {_endpoint()}/{model}/commits/main",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return not_cached(model)
    status = status_of(error)
    if status is not None:
        return _refused(error, status, model)
    if _names(error) & _TIMEOUTS:
        why = f"{_endpoint()} did not answer in time."
        hint = "Try again. HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT set how many seconds to wait."
        return ModelNotFoundError(_NOT_FETCHED.format(model), why, hint)
    if isinstance(error, OSError) and error.errno is not None and not _names(error) & _BROKEN:
        return _disk(error, model)
    return ModelNotFoundError(
        _NOT_FETCHED.format(model),
        f"{_endpoint()}: {_reason(error)}",
        "Check the network, or give the path of a model directory. A repeated download continues where it stopped.",
    )


def adapter_error(place: object) -> UnsupportedModelError:
    """The error for a directory or a repo that holds a LoRA adapter without a model."""
    return UnsupportedModelError(
        f"{place} holds a LoRA adapter.",
        "An adapter is a change to a base model, and no model by itself.",
        "Give its base model, and the adapter's directory with --adapter (in Python: adapters={name: path}).",
    )


def not_cached(model: str, missing: list[str] | None = None) -> ModelNotFoundError:
    """The error for a model that is not in the cache while the hub must not be asked."""
    lacks = f"its cache lacks {_listed(missing)}" if missing else "it is not in the cache"
    return ModelNotFoundError(
        _NOT_FETCHED.format(model),
        f"HF_HUB_OFFLINE is set, and {lacks}.",
        "Unset HF_HUB_OFFLINE to download it, or give the path of a model directory.",
    )


def _gated(error: Exception, model: str) -> ModelNotFoundError:
    token = "the token's account has not been admitted" if status_of(error) == 403 else "there is no valid token"
    return ModelNotFoundError(
        f"The model {model} is gated: its owner admits users one by one.",
        f"The hub refused its files, because {token}.",
        f"Accept its terms at {_endpoint()}/{model}, and set HF_TOKEN (or run: hf auth login).",
    )


def _refused(error: Exception, status: int, model: str) -> ModelNotFoundError:
    """The error for an answer of the hub that is none of the above."""
    hint = "Try again later." if status == 429 or status >= 500 else "Check the name, and HF_ENDPOINT if it is set."
    if status in (401, 403):
        hint = "Check HF_TOKEN (or run: hf auth login)."
    why = f"{_endpoint()} answered {status}: {_reason(error)}"
    return ModelNotFoundError(_NOT_FETCHED.format(model), why, hint)


def _disk(error: OSError, model: str) -> LlamaGPUError:
    """The error for a cache that cannot be written."""
    from llamagpu.model.hub.cache import cache_folder

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(model, error.strerror or "")
    return LlamaGPUError(
        f"The model {model} could not be written to the cache {cache_folder()}.",
        error.strerror or str(error),
        "Check the folder's permissions, or set HF_HOME to another one.",
    )


def disk_full(model: str, why: str) -> LlamaGPUError:
    """The error for a model that the cache's disk has no room for."""
    from llamagpu.model.hub.cache import cache_folder

    hint = "Free some space (hf cache rm removes models), or set HF_HOME to a folder on another disk."
    return LlamaGPUError(f"The disk of {cache_folder()} has no room for {model}.", why, hint)


def status_of(error: Exception) -> int | None:
    """The status of the HTTP answer that raised an error, if it was one."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
