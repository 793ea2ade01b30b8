"""``llamagpu serve``: models over HTTP."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import click

from llamagpu.cli.options import (
    adapter_option,
    device_option,
    dtype_option,
    kv_dtype_option,
    max_memory_option,
    revision_option,
    speculate_option,
)
from llamagpu.cli.output import note, progress_bar
from llamagpu.errors import UsageError

_NEEDS = ("fastapi", "uvicorn", "prometheus_client")


@click.command()
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]MODEL",
    help="A model directory, GGUF file or hub id, and its name in requests; can be given several times. "
    "[default: the bundled model]",
)
@revision_option
@device_option
@max_memory_option
@dtype_option
@kv_dtype_option
@click.option("--context", type=int, help="Most tokens of prompt and text together. [default: up to 4096]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option(
    "--api-key",
    "keys",
    multiple=True,
    help="A key that requests must have; can be given several times. [default: LLAMAGPU_API_KEY]",
)
@click.option("--queue", type=click.IntRange(0), default=64, show_default=True, help="Most waiting requests.")
@click.option(
    "--max-batch", type=click.IntRange(1, 32), default=32, show_default=True, help="Most sequences that run at once."
)
@click.option("--max-connections", type=click.IntRange(1), default=1000, show_default=True, help="Most connections.")
@click.option("--allow-origin", multiple=True, help="Let web pages of this origin use the server; * is all of them.")
@click.option("--allow-host", multiple=True, help="A further name of the server in Host headers, as behind a proxy.")
@click.option(
    "--max-body", type=click.IntRange(1000), default=8_000_000, show_default=True, help="Most bytes of a request."
)
@click.option(
    "--grace",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    help="Seconds for running requests after SIGTERM or Ctrl-C.",
)
@speculate_option
@adapter_option("It belongs to the first -m; requests name it as their model.")
@click.option(
    "--isolate/--no-isolate",
    default=True,
    show_default=True,
    help="Run models in processes of their own, which are started again if a driver ends them.",
)
def serve(models: tuple[str, ...], **options: Any) -> int:
    """Serve models over HTTP with OpenAI's endpoints.

    Embedding models and cross-encoders are recognised. SIGTERM ends the server when running requests are done, with
    exit code 0.
    """
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        what = f"The server needs the package {missing[0].replace('_', '-')}."
        raise UsageError(what, "It is not installed.", 'Install the extra: pip install "llamagpu[serve]"')
    from llamagpu.server.guard import Access
    from llamagpu.server.models import Models
    from llamagpu.server.serve import Server

    keys = options.pop("keys") or tuple(filter(None, [os.environ.get("LLAMAGPU_API_KEY")]))
    access = Access(
        options.pop("host"), keys, options.pop("allow_origin"), options.pop("allow_host"), options.pop("max_body")
    )
    access.check()
    port, grace, connections = (options.pop(name) for name in ("port", "grace", "max_connections"))
    places, queue, adapters = (options.pop(name) for name in ("max_batch", "queue", "adapters"))
    found = Models(models, options, places, queue, adapters)
    with ExitStack() as loading:
        progress = loading.enter_context(progress_bar("loading"))

        def ready() -> None:
            loading.close()
            _announce(found.names, server.address)

        server = Server(found, access, port, grace=grace, connections=connections, progress=progress, ready=ready)
        server.run()
    return 0


def _announce(names: Sequence[str], address: tuple[str, int]) -> None:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    note(f"serving {', '.join(names)} on http://{host}:{address[1]}")
