"""Batches that waste little: items of like length together, their order restored, and sequences packed without padding.

Sorting happens inside a window, so that a stream without end needs the memory of one window. Axes: batch, and total,
the tokens of a whole batch. Training and inference share this file.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from distilbert.errors import DataError
from distilbert.tokenization.checks import check_count

Item = TypeVar("Item")
Result = TypeVar("Result")

WINDOW = 4096  # items that are sorted together: more save hardly any padding


class Batch(NamedTuple, Generic[Item]):
    """Items of like length, the longest first, and where they stood in the stream."""

    indices: list[int]
    items: list[Item]


def length_sorted_batches(
    items: Iterable[Item],
    *,
    batch_size: int | None = None,
    token_budget: int | None = None,
    window: int = WINDOW,
    key: Callable[[Item], int] = len,  # pyright: ignore[reportArgumentType] - for items that have a length
    padded: bool = True,
    start: int = 0,
) -> Iterator[Batch[Item]]:
    """Batches of like length, from a stream that is read once and never more than a window ahead.

    Inside a window the longest come first, and equally long items in their order; no batch spans two windows.

    Args:
        items: such as texts or their token ids.
        batch_size: the most items of a batch.
        token_budget: the most tokens of a batch once it is padded, which is items times the longest.
        window: how many items are sorted together.
        key: the length of an item, in tokens; `int` if the items are lengths themselves.
        padded: False counts an item's own tokens against the budget, for models that compute without padding.
        start: the number of the first item in messages, for a part of a longer stream.

    Returns:
        an iterator over batches, which together have every item exactly once.

    Raises:
        ValueError: neither limit is given, or one is no positive number. DataError, once
            the item is reached: an item alone is longer than `token_budget`.
    """
    if batch_size is None and token_budget is None:
        raise ValueError("batches need a limit: give batch_size, token_budget or both.")
    for name, value in (("batch_size", batch_size), ("token_budget", token_budget), ("window", window)):
        if value is not None:
            check_count(name, value, 1)
    fitting = _fitting if padded else _fitting_unpadded
    return _batches(iter(items), batch_size or window, token_budget, window, key, fitting, start)


def restore_order(results: Iterable[tuple[Iterable[int], Iterable[Result]]]) -> Iterator[Result]:
    """The results of batches, one by one, in the order of the stream that the batches came from.

    Each is given as soon as all before it are there: behind `length_sorted_batches` what waits is at most a window.

    Args:
        results: the indices of a batch, and as many results; arrays count by their first axis.

    Raises:
        ValueError: an index comes twice or not at all, or a batch has fewer or more results than indices.
    """
    waiting: dict[int, Result] = {}
    due = 0
    for indices, found in results:
        for index, result in zip(indices, found, strict=True):
            if index < due or index in waiting:
                raise ValueError(f"every index must come once, got {index} again.")
            waiting[index] = result
        while due in waiting:
            yield waiting.pop(due)
            due += 1
    if waiting:
        raise ValueError(f"every index must come once, got {min(waiting)} but never {due}.")


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """Sequences one after the other, without padding.

    Attributes:
        ids: token ids, (total,), int32.
        lengths: tokens of each sequence, (batch,), int32.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]

    @property
    def cumulative_lengths(self) -> NDArray[np.int32]:
        """Where each sequence begins, and the end of the last, (batch + 1,): kernels call it cu_seqlens."""
        return np.concatenate(([0], np.cumsum(self.lengths))).astype(np.int32)

    @property
    def position_ids(self) -> NDArray[np.int32]:
        """The place of each token in its own sequence, (total,)."""
        starts = np.repeat(self.cumulative_lengths[:-1], self.lengths)  # (total,)
        return np.arange(len(self.ids), dtype=np.int32) - starts


def pack(ids: Iterable[Sequence[int]]) -> Packed:
    """Token ids of sequences, of any length, zero included, one after the other.

    Raises:
        TypeError: not lists of integers. ValueError: an id does not fit into int32.
    """
    flat, lengths = array("i"), array("i")
    try:
        for sequence in ids:
            flat.extend(sequence)
            lengths.append(len(sequence))
    except TypeError:
        raise TypeError("ids must be a list of lists of integers, one list per sequence.") from None
    except OverflowError:
        raise ValueError(f"token ids must fit into int32, sequence {len(lengths)} has one that does not.") from None
    return Packed(np.asarray(flat, np.int32), np.asarray(lengths, np.int32))


def _batches(
    items: Iterator[Item],
    rows: int,
    token_budget: int | None,
    window: int,
    key: Callable[[Item], int],
    fitting: Callable[[Sequence[int], int], int],
    number: int,
) -> Iterator[Batch[Item]]:
    start = 0
    while held := list(islice(items, window)):
        lengths = [key(item) for item in held]
        order = sorted(range(len(held)), key=lengths.__getitem__, reverse=True)  # equal ones keep their order
        _check_fits(number + start + order[0], lengths[order[0]], token_budget)
        while order:
            taken = order[:rows]
            if token_budget is not None:
                taken = taken[: fitting([lengths[i] for i in taken], token_budget)]
            order = order[len(taken) :]
            yield Batch([start + i for i in taken], [held[i] for i in taken])
        start += len(held)


def _fitting(lengths: Sequence[int], token_budget: int) -> int:
    """How many of the items, the longest first, fit into the budget once they are padded."""
    return token_budget // max(lengths[0], 1)


def _fitting_unpadded(lengths: Sequence[int], token_budget: int) -> int:
    """How many of the items, the first always, fit into the budget without padding."""
    return int(np.searchsorted(np.cumsum(lengths), token_budget, side="right"))


def _check_fits(index: int, length: int, token_budget: int | None) -> None:
    if token_budget is not None and length > token_budget:
        detail = f"item {index} has {length} tokens, more than token_budget={token_budget}"
        raise DataError(f"{detail}: truncate it, split it, or raise the budget.")
