"""Names of classes: collected from data in sorted order or given, and the number of the class that a value means."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilbert.config import MAX_LABELS
from distilbert.errors import DataError

HEAVIEST = 1e6  # weight of a class
_WHOLE = re.compile(r"-?[0-9]+")


def name_of(value: Any) -> str | None:
    """The name that a label in a file stands for: a text itself, whole numbers and truth values as JSON writes them.

    None if it is no label.
    """
    if isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else None


def sorted_names(names: Collection[str]) -> tuple[str, ...]:
    """Names in order: by number if all are whole numbers, else as texts.

    Raises:
        DataError: there are more than a model may have.
    """
    if len(names) > MAX_LABELS:
        raise DataError(f"there are more than {MAX_LABELS} labels: is this the right column?")
    return tuple(sorted(names, key=int) if _all_whole(names) else sorted(names))


def add_names(names: set[str], values: Iterable[Any]) -> None:
    """Add the names of labels, but no more once there are too many."""
    if len(names) <= MAX_LABELS:
        names.update(name for value in values if (name := name_of(value)) is not None)


class LabelNames:
    """The names of classes, whose numbers are their places.

    A whole number that is not a name itself means the class of that number, unless all names are numbers.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if not names or len(set(names)) != len(names):
            raise ValueError(f"labels must be names that differ, at least one, got {list(names)[:5]}.")
        self.names = tuple(names)
        self._numbers = {name: i for i, name in enumerate(names)}
        self._by_number = not _all_whole(names)

    def number(self, value: Any) -> int | None:
        """The class that a value means; None if it is none of them."""
        name = name_of(value)
        found = None if name is None else self._numbers.get(name)
        is_number = self._by_number and isinstance(value, int) and not isinstance(value, bool)
        if found is None and is_number and 0 <= value < len(self.names):
            return value
        return found

    def listed(self) -> str:
        """The first of them, for messages."""
        shown = ", ".join(map(repr, self.names[:8]))
        return f"{shown} and {len(self.names) - 8} more" if len(self.names) > 8 else shown


def _all_whole(names: Collection[str]) -> bool:
    return all(_WHOLE.fullmatch(name) for name in names)


def check_class_weights(weights: Sequence[float] | str | None) -> None:
    """Refuse class weights that are neither "balanced" nor numbers of at least 0.

    Raises:
        ValueError: they are not.
    """
    if weights is None or weights == "balanced":
        return
    if isinstance(weights, str) or not all(0 <= w <= HEAVIEST for w in weights) or not any(weights):
        raise ValueError(
            f"class_weights must be 'balanced' or a number from 0 to {HEAVIEST:g} for each class, got {weights}."
        )


def class_weights(
    wanted: Sequence[float] | str | None, counts: NDArray[np.int64] | None, classes: int
) -> NDArray[np.float32] | None:
    """The weight of each class, (classes,); None where all weigh 1. "balanced": all / (classes * its count).

    Raises:
        ValueError: there are not as many as classes, or balance needs counts that nobody has taken.
    """
    if wanted is None:
        return None
    if isinstance(wanted, str):
        if counts is None:
            raise ValueError("class_weights='balanced' needs the counts of the classes in the training data.")
        return (counts.sum() / (classes * np.maximum(counts, 1))).astype(np.float32)
    if len(wanted) != classes:
        raise ValueError(f"class_weights must be {classes} numbers, one for each class, got {len(wanted)}.")
    return np.array(wanted, np.float32)
