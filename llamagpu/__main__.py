"""``python -m llamagpu``, and the console script."""

import sys

from llamagpu.errors import INTERRUPTED


def main() -> None:
    """Run a command and exit. Ctrl-C during the imports prints no traceback either."""
    try:
        from llamagpu.cli.main import run
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(run())


if __name__ == "__main__":
    main()
