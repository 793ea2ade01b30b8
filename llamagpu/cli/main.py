"""``llamagpu``: the command line. Standard output carries results; everything else goes to standard error."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from llamagpu.cli.bench import bench
from llamagpu.cli.chat import chat
from llamagpu.cli.doctor import doctor
from llamagpu.cli.embed import embed
from llamagpu.cli.export import export
from llamagpu.cli.generate import generate
from llamagpu.cli.inspect import inspect
from llamagpu.cli.merge import merge
from llamagpu.cli.models import models
from llamagpu.cli.output import ClosedPipe, Interrupted, error_lines
from llamagpu.cli.perplexity import perplexity
from llamagpu.cli.profile import profile
from llamagpu.cli.quantize import quantize
from llamagpu.cli.rank import rank
from llamagpu.cli.serve import serve
from llamagpu.cli.tune import tune
from llamagpu.cli.verify import verify
from llamagpu.errors import INTERRUPTED, LlamaGPUError
from llamagpu.version import __version__

USAGE, CLOSED_PIPE = 2, 141
_VERBOSE = "llamagpu.verbose"
_VERBOSE_HELP = "Log more to standard error (-vv: everything)."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="llamagpu")
@click.option("-v", "--verbose", count=True, help=_VERBOSE_HELP)
def cli(verbose: int) -> None:
    """Run small Llama models on any GPU, through WebGPU.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 model not found or offline, 4 model not supported, 5 no GPU adapter,
    6 out of memory or device lost, 130 interrupted, 141 output pipe closed.
    """
    _log(verbose)


def _log(verbose: int) -> None:
    """Send log lines to standard error: warnings, and more with -v."""
    click.get_current_context().find_root().meta[_VERBOSE] = verbose
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger = logging.getLogger("llamagpu")
    logger.handlers = [handler]
    logger.setLevel(level)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR if verbose == 0 else level)


def _more_verbose(context: click.Context, _option: click.Parameter, verbose: int) -> None:
    """Add the -v after the command's name to those before it."""
    if verbose:
        _log(context.find_root().meta[_VERBOSE] + verbose)


for command in (
    generate,
    chat,
    embed,
    rank,
    serve,
    models,
    quantize,
    merge,
    export,
    inspect,
    perplexity,
    bench,
    profile,
    tune,
    doctor,
    verify,
):
    command.params.append(
        click.Option(["-v", "--verbose"], count=True, expose_value=False, callback=_more_verbose, help=_VERBOSE_HELP)
    )
    cli.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. An error becomes up to three short lines on standard error."""
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):  # the error was reported; Python would flush again at exit
        _drop_output()
    return code


def _drop_output() -> None:
    """Discard the text in standard output's buffer."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # standard output has no file descriptor
        pass


def _run(arguments: Sequence[str] | None) -> int:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    try:
        code = cli.main(args=arguments, prog_name="llamagpu", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except LlamaGPUError as e:
        if os.environ.get("LLAMAGPU_DEBUG") == "1":
            traceback.print_exc()
        click.echo(error_lines(e.what, e.why, e.hint), err=True)
        return e.exit_code
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message(), err=True)
        return USAGE
    except click.UsageError as e:
        command = e.ctx.command_path if e.ctx else "llamagpu"
        click.echo(error_lines(e.format_message(), "", f"See: {command} --help"), err=True)
        return USAGE
    except click.ClickException as e:
        click.echo(error_lines(e.format_message()), err=True)
        return USAGE
    except (KeyboardInterrupt, click.exceptions.Abort, Interrupted):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except (ClosedPipe, BrokenPipeError):
        _drop_output()
        return CLOSED_PIPE
    except SystemExit as e:  # click exits like this if the pipe closes while it prints help
        return CLOSED_PIPE if "PacifyFlushWrapper" in type(sys.stdout).__name__ else int(e.code or 0)
    except OSError as e:
        click.echo(error_lines("A file or standard output could not be written.", e.strerror or str(e)), err=True)
        return 1
    except Exception as e:
        if os.environ.get("LLAMAGPU_DEBUG") == "1":
            raise
        hint = "Run it again with LLAMAGPU_DEBUG=1 for the traceback, and report it."
        click.echo(error_lines(f"Something unexpected failed: {type(e).__name__}.", str(e), hint), err=True)
        return 1
