"""Which examples each step takes: a pure function of their lengths, the settings and the seed.

Texts of like length go together, so that little is padding: the shuffled examples are sorted by length within windows
of fifty batches, cut into batches, and the batches shuffled. An epoch can be begun anywhere at no cost, so a resumed
run skips nothing and reads nothing twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from distilbert.training.randomness import generator

Indices = NDArray[np.int64]

WINDOW = 50  # batches among which texts are sorted by length


class Plan:
    """The steps of a run.

    Example:
        plan = Plan(lengths, seed=0, batch_size=32, epochs=3)
        for indices in plan.batches(1): ...  # the micro-batches of step 1
    """

    def __init__(
        self,
        lengths: NDArray[np.int32],
        *,
        seed: int,
        batch_size: int,
        epochs: float = 1.0,
        max_steps: int | None = None,
        token_budget: int | None = None,
        accumulation: int = 1,
        group_by_length: bool = True,
    ) -> None:
        """Lay out the steps.

        Args:
            lengths: tokens of each example.
            seed: of the order.
            batch_size: the most examples of a batch.
            epochs: how often all examples are taken; the last epoch may be a part.
            max_steps: end after that many steps, if the epochs have not ended before.
            token_budget: the most tokens of a batch, padding included; a longer example is a batch of its own.
            accumulation: batches of a step. The last step of an epoch may have fewer.
            group_by_length: put texts of like length together.
        """
        self._lengths, self._seed, self._batch_size = lengths, seed, batch_size
        self._token_budget, self._accumulation, self._grouped = token_budget, accumulation, group_by_length
        self._epoch, self._batches = -1, list[Indices]()
        self._ends = self._lay_out(epochs, max_steps)

    def _lay_out(self, epochs: float, max_steps: int | None) -> list[int]:
        """The last step of each epoch."""
        ends, done = list[int](), 0
        for epoch in range(math.ceil(epochs)):
            steps = math.ceil(len(self._of_epoch(epoch)) / self._accumulation)
            done += max(1, round(steps * min(1.0, epochs - epoch)))
            ends.append(done if max_steps is None else min(done, max_steps))
            if ends[-1] == max_steps:
                break
        return ends

    @property
    def full(self) -> int:
        """See `full_size`."""
        return full_size(len(self._lengths), self._batch_size, self._token_budget)

    @property
    def total_steps(self) -> int:
        """How many steps there are."""
        return self._ends[-1]

    @property
    def epoch_ends(self) -> Sequence[int]:
        """The last step of each epoch."""
        return self._ends

    def batches(self, step: int) -> list[Indices]:
        """The micro-batches of `step`, from 1 to `total_steps`: the numbers of their examples."""
        epoch = int(np.searchsorted(self._ends, step))
        first = (step - 1 - (self._ends[epoch - 1] if epoch else 0)) * self._accumulation
        return self._of_epoch(epoch)[first : first + self._accumulation]

    def _of_epoch(self, epoch: int) -> list[Indices]:
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._cut(epoch)
        return self._batches

    def _cut(self, epoch: int) -> list[Indices]:
        random = generator(self._seed, "order", epoch)
        order = random.permutation(len(self._lengths))
        if not self._grouped:
            return list(cut(order, self._lengths, self._batch_size, self._token_budget))
        window = WINDOW * self._batch_size
        pieces = (order[start : start + window] for start in range(0, len(order), window))
        batches = [
            batch
            for piece in pieces
            for batch in cut(by_length(piece, self._lengths), self._lengths, self._batch_size, self._token_budget)
        ]
        return [batches[i] for i in random.permutation(len(batches))]


def by_length(indices: Indices, lengths: NDArray[np.int32]) -> Indices:
    """`indices`, shortest first; equal ones stay in their order."""
    return indices[np.argsort(lengths[indices], kind="stable")]


def full_size(count: int, batch_size: int, token_budget: int | None) -> int:
    """How many of `count` examples all batches but the smaller last ones have; 0 where each has its own number."""
    return min(count, batch_size) if token_budget is None else 0


def cut(
    indices: Indices, lengths: NDArray[np.int32], batch_size: int, token_budget: int | None = None
) -> Iterator[Indices]:
    """Batches of consecutive examples, each as large as `batch_size` and `token_budget` allow."""
    if token_budget is None:
        yield from (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))
        return
    start, longest = 0, 0
    for end, length in enumerate(lengths[indices].tolist()):
        longest = max(longest, length)
        count = end + 1 - start
        if count > 1 and (count > batch_size or count * longest > token_budget):
            yield indices[start:end]
            start, longest = end, length
    if start < len(indices):
        yield indices[start:]
