"""`python -m runner`."""

import contextlib
import os
import sys

from runner.cli import main
from runner.output import INTERRUPTED

if __name__ == "__main__":
    code = main()
    if code == INTERRUPTED:
        # A KeyboardInterrupt on its way through exec() of a string, as imports have it, makes Python end by a signal
        # whatever code we return.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
