"""Work that goes on beside other work, one step ahead of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_END: Any = object()


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result]:
    """The results of `function`, in order; while the caller works on one, a thread computes the next.

    Items are read in the caller's thread, one ahead, so that what makes them need not know of threads. The thread ends
    with the iterator: exhausted, closed, or left by an exception. Closing waits for the one result that is under way.

    Raises:
        what `function` or `items` raise, in the place of the result; all results before it come first.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:  # starts no thread before it has work
        for first in remaining:
            done = function(first)
            while (item := (yield from _next_after(done, remaining))) is not _END:
                due = pool.submit(function, item)
                yield done
                done = due.result()
            yield done


def _next_after(done: Result, items: Iterator[Item]) -> Generator[Result, None, Item]:
    """Read the next item; the result that waits is given first if that fails."""
    try:
        return next(items, _END)
    except Exception:
        yield done
        raise
