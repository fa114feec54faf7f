"""Text classification: one label, several labels, or numbers for a text or a pair of texts."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from distilbert.checks import IGNORE
from distilbert.config import PROBLEM_TYPES
from distilbert.tokenization.checks import check_choice, shown
from distilbert.training.batches import Batch
from distilbert.training.records import Faults, Record, RecordError
from distilbert.training.tasks.base import Example, Task, as_list, counting, encode_pairs, int32
from distilbert.training.tasks.labels import (
    LabelNames,
    add_names,
    check_class_weights,
    class_weights,
    name_of,
    sorted_names,
)


class _Item(NamedTuple):
    text: str
    pair: str | None
    labels: list[Any]  # numbers of classes, or the values of a regression; [-100] and [nan]: none is known


@dataclass(frozen=True, kw_only=True, eq=False)
class TextClassification(Task):
    """Records: `text`, `text_pair` (optional), `label`.

    What `label` is decides what is learned, unless `problem_type` says so: a text or a whole number is a class, a list
    is several labels, and if one is a number with a fraction, all are numbers.
    Columns: `input_ids`; `labels`: the number of the class, the numbers of all labels that hold, or the values.

    Attributes:
        problem_type: one of those of the config.
        labels: the names of the classes; of a regression, of its values.
        class_weights: how much a class, or a label, counts: a number for each, or "balanced".
    """

    name: ClassVar[str] = "text-classification"
    FIELDS: ClassVar[tuple[str, ...]] = ("text", "text_pair", "label")
    LEARNED: ClassVar[tuple[str, ...]] = ("problem_type", "labels")
    COLLATING: ClassVar[tuple[str, ...]] = (*Task.COLLATING, "class_weights")

    problem_type: str | None = None
    labels: tuple[str, ...] | None = None
    class_weights: Sequence[float] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.problem_type is not None:
            check_choice("problem_type", self.problem_type, PROBLEM_TYPES)
        if self.labels is not None:
            LabelNames(self.labels)
        check_class_weights(self.class_weights)

    @property
    def problem(self) -> str:
        """The problem type."""
        if self.problem_type is None:
            raise ValueError("the problem type is not known before the training data are read; give problem_type.")
        return self.problem_type

    @property
    def config_changes(self) -> dict[str, Any]:
        """The names of the classes, or of the values of a regression, and the problem type."""
        return {"id2label": dict(enumerate(self._names.names)), "problem_type": self.problem}

    @property
    def columns(self) -> Mapping[str, DTypeLike]:
        """`input_ids`, and the labels of the problem type."""
        return {"input_ids": np.int32, "labels": np.float32 if self.problem == "regression" else np.int32}

    @functools.cached_property
    def _names(self) -> LabelNames:
        if self.labels is None:
            raise ValueError("the labels are not known before the training data are read; give labels.")
        return LabelNames(self.labels)

    def learn(self, records: Iterable[Record]) -> Self:
        """Find out problem type and names.

        Raises:
            DataError: no record has a label, or there are too many.
        """
        if self.is_learned:
            return self
        seen, first = _Seen(), None
        for record in records:
            first = first or record
            seen.add(self.value(record, "label"))
        kind = self.problem_type or seen.problem_type
        labels = self.labels
        if labels is None:
            labels = _given(seen.width or 1) if kind == "regression" else sorted_names(seen.names(kind))
        if first is not None and (kind is None or not labels):
            raise self.unsaid(first, "label")
        return dataclasses.replace(self, problem_type=kind, labels=labels)

    def read(self, record: Record) -> _Item:
        """Texts and labels."""
        return _Item(self.text(record, "text"), self.optional_text(record, "text_pair"), self._labels_of(record))

    def _labels_of(self, record: Record) -> list[Any]:
        value = self.value(record, "label")
        regression = self.problem == "regression"
        if value is None:
            if self.distil:
                return [math.nan] * len(self._names.names) if regression else [IGNORE]
            raise self.missing(record, "label")
        if regression:
            return self._numbers(record, value)
        if self.problem == "single_label_classification":
            return [self._class(record, value)]
        several = as_list(value)
        if several is None:
            raise self.wrong(record, "label", f"must be a list of labels, got {shown(value)}")
        return sorted({self._class(record, one) for one in several})

    def _class(self, record: Record, value: Any) -> int:
        number = self._names.number(value)
        if number is None:
            raise self._unknown(record, value)
        return number

    def _unknown(self, record: Record, value: Any) -> RecordError:
        if name_of(value) is None:
            return self.wrong(record, "label", f"must be a text or a whole number, got {shown(value)}")
        return self.wrong(record, "label", f"must be one of {self._names.listed()}, got {shown(value)}")

    def _numbers(self, record: Record, value: Any) -> list[float]:
        several = as_list(value)
        values = [_number(one) for one in ([value] if several is None else several)]
        if None in values:
            raise self.wrong(record, "label", f"must be a finite number, got {shown(value)}")
        if len(values) != len(self._names.names):
            detail = f"must hold as many numbers as the model gives, {len(self._names.names)}, got {len(values)}"
            raise self.wrong(record, "label", detail)
        return [one for one in values if one is not None]

    def encode(self, items: Sequence[_Item], faults: Faults) -> list[list[Example]]:
        """One example each."""
        del faults
        rows = encode_pairs(self.tokenizer, [i.text for i in items], [i.pair for i in items], self.limit)
        dtype = self.columns["labels"]
        pairs = zip(rows, items, strict=True)
        return [[{"input_ids": int32(ids), "labels": np.array(item.labels, dtype)}] for ids, item in pairs]

    def tally(self, examples: Sequence[Example]) -> NDArray[np.int64] | None:
        """How often each label occurs, (num_labels,)."""
        if self.problem == "regression":
            return None
        found = np.concatenate([example["labels"] for example in examples])
        return np.bincount(found[counting(found)], minlength=len(self._names.names))

    def collate(self, examples: Sequence[Example], *, step: int = 0, micro: int = 0, length_multiple: int = 1) -> Batch:
        """A row each."""
        del step, micro
        ids, mask = self.padded([example["input_ids"] for example in examples], length_multiple)
        labels, weights = self._targets([example["labels"] for example in examples])
        by_loss = {"labels": weights}
        if self.distil:
            each = weights.shape  # of each distribution, or number: for single labels, of each row
            by_loss |= {"logits": np.ones(each, np.float32), "hidden": mask.astype(np.float32)}
        return Batch({"input_ids": ids, "attention_mask": mask}, {"labels": labels}, by_loss)

    def _targets(self, rows: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Labels and their weights."""
        classes = len(self._names.names)
        by_class = None if self.evaluation else class_weights(self.class_weights, self.counts, classes)
        if self.problem == "regression":
            values = np.stack(rows)  # (rows, num_labels)
            return np.nan_to_num(values), np.isfinite(values).astype(np.float32)
        if self.problem == "single_label_classification":
            labels = np.concatenate(rows)  # (rows,)
            weights = counting(labels).astype(np.float32)
            return labels, weights if by_class is None else weights * by_class[np.maximum(labels, 0)]
        known = np.array([IGNORE not in row for row in rows])  # (rows,)
        hot = np.zeros((len(rows), classes), np.float32)
        for i in np.flatnonzero(known).tolist():
            hot[i, rows[i]] = 1
        weights = np.repeat(known[:, None], classes, axis=1).astype(np.float32)  # (rows, num_labels)
        return hot, weights if by_class is None else weights * by_class


class _Seen:
    """What the labels of the training data are."""

    def __init__(self) -> None:
        self.kinds: dict[type, None] = {}  # in the order in which they were seen
        self.width: int | None = None  # of the first
        self._single, self._several = set[str](), set[str]()

    def add(self, value: Any) -> None:
        """Take in one more label."""
        if value is None:
            return
        several = as_list(value)
        self.kinds.setdefault(type(value) if several is None else list)
        self.width = self.width or (1 if several is None else len(several))
        add_names(self._single, [value])
        add_names(self._several, several or ())

    @property
    def problem_type(self) -> str | None:
        """What such labels are for; None without labels."""
        if not self.kinds:
            return None
        if next(iter(self.kinds)) is list:
            return "multi_label_classification"
        is_regression = float in self.kinds and self.kinds.keys() <= {int, float}
        return "regression" if is_regression else "single_label_classification"

    def names(self, kind: str | None) -> set[str]:
        """The names of the classes."""
        return self._several if kind == "multi_label_classification" else self._single


def _given(count: int) -> tuple[str, ...]:
    """Names for what has none, as a config gives them."""
    return tuple(f"LABEL_{i}" for i in range(count))


def _number(value: Any) -> float | None:
    """A finite number, also from a text of CSV; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) < np.finfo(np.float32).max else None
