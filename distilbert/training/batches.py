"""A batch as training sees it: NumPy arrays, and for everything that a loss counts, the weight with which it counts.

The weights of one step sum to 1 for each loss. So a mean over the step is the sum over its parts, however it is cut:
into micro-batches, into the shares of devices, or with rows that only fill up a shape, whose weights are 0. The ranking
loss of pairs alone depends on the micro-batch, whose pairs are each other's negatives, on however many devices.
Axes: rows, choices, seq, n (chosen positions), pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Batch:
    """Rows that go through the model at once.

    inputs: arguments of the model, `input_ids` and `attention_mask`, int32, (rows, seq); for multiple choice
        (rows, choices, seq).
    targets: by the model's argument. Single-label classification and multiple choice: `labels` (rows,) int32.
        Regression and multi-label classification: `labels` (rows, num_labels) float32. Token classification: `labels`
        (rows, seq) int32. Question answering: `start_positions`, `end_positions` (rows,) int32. Masked LM: `positions`
        (n,) int32, places row * seq + column at which logits are needed, ascending, and `labels` (n,) int32, the tokens
        that were there. Sentence embedding: nothing for the ranking loss of pairs; `labels` (pairs,) float32 for
        the cosine that a pair should have.
    weights: float32. `labels`, `start_positions`, `end_positions`: of the target of that name and of its shape; of the
        ranking loss, `labels` (pairs,). Of losses against a teacher: `logits`, of each distribution: (rows,), (rows,
        num_labels), (rows, seq), or (n,); for question answering (rows,); and `hidden`, of the cosine between vectors:
        (rows, seq), for multiple choice (rows, choices, seq), of sentence embeddings (rows,).
        A label is in range wherever its weight is not 0.
    teacher: what a teacher gave for this batch, if it was computed before: `logits` and `hidden`, as `teach` returns;
        where nothing counts, anything.
    paired: whether the first half of the rows are anchors, and the second half, in the same order, their positives.
    full: rows, or pairs, of all batches of the run but the smaller last ones; 0 where each has its own number. A
        framework that compiles shapes fills up to it.
    """

    inputs: Arrays
    targets: Arrays = field(default_factory=dict[str, NDArray[Any]])
    weights: Arrays = field(default_factory=dict[str, NDArray[Any]])
    teacher: Arrays = field(default_factory=dict[str, NDArray[Any]])
    paired: bool = False
    full: int = 0

    @property
    def rows(self) -> int:
        """How many rows the model gets."""
        return len(self.inputs["input_ids"])

    @property
    def seq(self) -> int:
        """Length of the rows, padding included."""
        return self.inputs["input_ids"].shape[-1]

    @property
    def tokens(self) -> int:
        """How many tokens are no padding."""
        return int(self.inputs["attention_mask"].sum())

    @property
    def has_positions(self) -> bool:
        """Whether logits are needed at chosen positions only."""
        return "positions" in self.targets

    def take(self, rows: NDArray[np.intp], counted: NDArray[np.bool_]) -> Batch:
        """Some rows, in that order; those that are not `counted` get the weight 0.

        Of pairs, `rows` and `counted` choose pairs.
        """
        return _take_pairs(self, rows, counted) if self.paired else _take_rows(self, rows, counted)

    def split(self, parts: int) -> list[Batch]:
        """Shares of equally many rows for that many devices; the last ones are filled up with rows of weight 0."""
        units = self.rows // 2 if self.paired else self.rows
        size = -(-units // parts)
        numbers = np.arange(size * parts)
        chosen, counted = np.where(numbers < units, numbers, 0), numbers < units
        slices = [slice(i * size, (i + 1) * size) for i in range(parts)]
        return [self.take(chosen[part], counted[part]) for part in slices]


def _take_rows(batch: Batch, rows: NDArray[np.intp], counted: NDArray[np.bool_]) -> Batch:
    if batch.has_positions:
        return _take_positions(batch, rows, counted)
    return replace(
        batch,
        inputs={name: array[rows] for name, array in batch.inputs.items()},
        targets={name: array[rows] for name, array in batch.targets.items()},
        weights={name: _counting(array[rows], counted) for name, array in batch.weights.items()},
        teacher={name: array[rows] for name, array in batch.teacher.items()},
    )


def _take_positions(batch: Batch, rows: NDArray[np.intp], counted: NDArray[np.bool_]) -> Batch:
    """Positions belong to rows, and are numbered anew."""
    owner, column = np.divmod(batch.targets["positions"], batch.seq)  # (n,)
    places = [np.flatnonzero(owner == row) if counts else owner[:0] for row, counts in zip(rows, counted, strict=True)]
    chosen = np.concatenate(places) if places else owner[:0]
    new_owner = np.repeat(np.arange(len(rows)), [len(place) for place in places])
    positions = (new_owner * batch.seq + column[chosen]).astype(np.int32)
    by_row = {"hidden"}
    return replace(
        batch,
        inputs={name: array[rows] for name, array in batch.inputs.items()},
        targets={"positions": positions, "labels": batch.targets["labels"][chosen]},
        weights={n: _counting(a[rows], counted) if n in by_row else a[chosen] for n, a in batch.weights.items()},
        teacher={name: array[rows if name in by_row else chosen] for name, array in batch.teacher.items()},
    )


def _take_pairs(batch: Batch, pairs: NDArray[np.intp], counted: NDArray[np.bool_]) -> Batch:
    half = batch.rows // 2
    rows, both = np.concatenate([pairs, pairs + half]), np.concatenate([counted, counted])
    weights = {
        name: _counting(array[rows], both) if len(array) == batch.rows else _counting(array[pairs], counted)
        for name, array in batch.weights.items()
    }
    return replace(
        batch,
        inputs={name: array[rows] for name, array in batch.inputs.items()},
        targets={name: array[pairs] for name, array in batch.targets.items()},
        weights=weights,
        teacher={name: array[rows] for name, array in batch.teacher.items()},
    )


def _counting(weights: NDArray[Any], counted: NDArray[np.bool_]) -> NDArray[Any]:
    return weights * counted.reshape(-1, *[1] * (weights.ndim - 1)).astype(weights.dtype)


def normalized(batches: Sequence[Batch]) -> list[Batch]:
    """The micro-batches of one step with weights that sum to 1 over the step, for each loss.

    Where nothing counts in the whole step, the weights stay 0, and so does the loss.
    """
    names = {name for batch in batches for name in batch.weights}
    sums = {name: sum(float(batch.weights[name].sum(dtype=np.float64)) for batch in batches) for name in names}
    return [
        replace(batch, weights={n: (a / (sums[n] or 1.0)).astype(np.float32) for n, a in batch.weights.items()})
        for batch in batches
    ]
