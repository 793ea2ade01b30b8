"""Log lines while the hub is asked and configs are checked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("llamagpu")
_SILENT_SECONDS = 3.0  # time to wait for the hub before a line is logged


@contextmanager
def asking_hub(model: str) -> Iterator[None]:
    """Log a line if the block takes long: resolving the hub's address alone can take half a minute."""
    line = "waiting for the hub about %s (HF_HUB_OFFLINE=1 uses its local cache only)"
    timer = threading.Timer(_SILENT_SECONDS, log.warning, (line, model))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def quiet() -> Iterator[None]:
    """Drop this thread's log lines below errors: the same lines follow when the model is loaded."""
    thread = threading.get_ident()

    def loud(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.ERROR

    log.addFilter(loud)
    try:
        yield
    finally:
        log.removeFilter(loud)
