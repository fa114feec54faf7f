"""A lock that one process holds: on the folder of a run, and while its data are prepared."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

from distilbert.errors import TrainingError

try:
    import fcntl
except ImportError:  # Windows, where the user has to see to it
    fcntl = None


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Generator[None]:
    """Hold the lock of the file `path`; the system lets go of it when the process ends, however that may be.

    Raises:
        TrainingError: another process holds it, and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(
                    f"{path.parent}: another process is training there; choose another folder."
                ) from None
        yield
