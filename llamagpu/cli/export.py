"""``llamagpu export``: write a model as a static site that runs it in a browser."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from llamagpu.cli.options import dtype_option, json_option, kv_dtype_option, revision_option
from llamagpu.cli.output import note, progress_bar, write, write_json
from llamagpu.errors import UsageError


@click.command()
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("-m", "--model", help="A model directory, GGUF file or hub id. [default: the bundled model]")
@revision_option
@dtype_option
@kv_dtype_option
@click.option("--context", type=int, help="Most tokens of prompt and text together. [default: up to 4096]")
@click.option("--title", help="The page's heading. [default: the model's name]")
@click.option(
    "--serve", is_flag=True, help="Serve the site on this machine until Ctrl-C; without OUT, a temporary one."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Of --serve; 0: any free.")
@json_option
def export(out: Path | None, serve: bool, port: int, as_json: bool, **options: str | int | None) -> None:
    """Write a model to the new folder OUT as a static site: any web server, or GitHub Pages, can host it.

    The page runs the model on the visitor's GPU, by WebGPU. Nothing is compiled and no GPU is needed to export. With
    --serve, an OUT that is a site already is served as it is.
    """
    if out is None and not serve:
        raise UsageError("OUT is missing.", "The site is written to it.", "Try: llamagpu export -m MODEL site")
    if out is not None:
        if not (serve and (out / "plan.json").is_file()):
            _export(out, as_json, options)
        if serve:
            _serve(out, port)
        return
    with tempfile.TemporaryDirectory(prefix="llamagpu-site-") as folder:
        temporary = Path(folder) / "site"
        _export(temporary, as_json, options)
        _serve(temporary, port)


def _export(out: Path, as_json: bool, options: dict[str, str | int | None]) -> None:
    from llamagpu.browser import export as export_site

    with progress_bar("writing") as progress:
        site = export_site(options.pop("model"), out, progress=progress, **options)  # type: ignore[arg-type]
    facts = {"path": str(out), "bytes": site.nbytes, "weight_bytes": site.weight_bytes, "files": site.files}
    if as_json:
        write_json(facts | {"context": site.context})
    else:
        note(f"{out}: {site.nbytes / 1e6:,.1f} MB in {site.files} files, context {site.context} tokens")


def _serve(folder: Path, port: int) -> None:
    from llamagpu.browser.serve import site_server

    with site_server(folder, port) as server:
        write(f"http://localhost:{server.server_address[1]}/\n")
        server.serve_forever()
