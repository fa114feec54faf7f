"""The program `distilbert`, also `python -m distilbert`: signals and imports, then the command line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, program: str = "distilbert") -> None:
    """Run the command line and exit. From the first import on, an interrupt is one line and nothing is left behind."""
    signal.signal(signal.SIGINT, _interrupted)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough ends us quietly, as it does `cat`
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a closed one is None
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue] - both are text files
    try:
        from distilbert.cli import main as run
    except ImportError as error:
        sys.stderr.write(f"error: {error}: run `pip install distilbert`.\n")
        sys.exit(3)
    run(arguments, program)


def _interrupted(*_: object) -> None:
    """End at once: nothing is being written yet, and an exception could be lost in a framework's callback."""
    os.write(2, b"error: interrupted.\n")
    os._exit(130)


if __name__ == "__main__":
    main()
