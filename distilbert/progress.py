"""A progress bar on standard error, for who waits at a terminal or in a notebook."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

Advance = Callable[[int, int | None], None]  # called with (done, in all); None where nobody knows how many there are


@contextlib.contextmanager
def show_progress(what: str) -> Generator[Advance]:
    """A progress bar named `what`, gone at the end, and the function that moves it."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    errors = Console(stderr=True)
    columns, shown = (*Progress.get_default_columns(), MofNCompleteColumn()), errors.is_terminal or errors.is_jupyter
    with Progress(*columns, console=errors, transient=True, disable=not shown) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
