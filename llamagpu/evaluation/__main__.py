"""``python -m llamagpu.evaluation``: the harness's command line, which knows the model ``llamagpu`` then."""

from __future__ import annotations

import sys

from llamagpu.cli.output import error_lines, note
from llamagpu.errors import INTERRUPTED, LlamaGPUError


def main() -> int:
    """Run the harness on the command line's arguments, and return the exit code."""
    try:
        from llamagpu.evaluation import harness

        harness.run_command_line()
    except LlamaGPUError as e:
        note(error_lines(e.what, e.why, e.hint))
        return e.exit_code
    except KeyboardInterrupt:
        note("interrupted")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
