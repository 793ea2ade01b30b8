"""``python -m llamagpu``, and the console script."""

import contextlib
import os
import sys

from llamagpu.errors import INTERRUPTED


def main() -> None:
    """Run a command and exit. Ctrl-C during the imports prints no traceback either."""
    try:
        from llamagpu.cli.main import run

        code = run()
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        # If Ctrl-C came while Python ran code from a text, as dataclasses do, sys.exit would end by the signal.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or never there
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
