"""Token classification: a label for each word, which its first token bears, or all of its tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from distilbert.checks import IGNORE
from distilbert.tokenization.checks import shown
from distilbert.training.batches import Batch
from distilbert.training.records import Faults, Record
from distilbert.training.tasks.base import Example, Task, as_list, counting, int32, pad
from distilbert.training.tasks.labels import (
    LabelNames,
    add_names,
    check_class_weights,
    class_weights,
    sorted_names,
)


class _Item(NamedTuple):
    words: list[str]
    labels: list[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenClassification(Task):
    """Records: `tokens`, the words of a text, and `labels`, one for each.

    Columns: `input_ids`; `labels`, one for each id, -100 where none counts. Words beyond `max_length` are cut.

    Attributes:
        labels: the names of the classes.
        label_all: all tokens of a word bear its label, not only the first.
        class_weights: how much a class counts: a number for each, or "balanced".
    """

    name: ClassVar[str] = "token-classification"
    FIELDS: ClassVar[tuple[str, ...]] = ("tokens", "labels")
    LEARNED: ClassVar[tuple[str, ...]] = ("labels",)
    COLLATING: ClassVar[tuple[str, ...]] = (*Task.COLLATING, "class_weights")

    labels: tuple[str, ...] | None = None
    label_all: bool = False
    class_weights: Sequence[float] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is not None:
            LabelNames(self.labels)
        check_class_weights(self.class_weights)

    @property
    def problem(self) -> str:
        """Token classification."""
        return "token_classification"

    @property
    def config_changes(self) -> dict[str, Any]:
        """The names of the classes."""
        return {"id2label": dict(enumerate(self._names.names))}

    @property
    def columns(self) -> Mapping[str, DTypeLike]:
        """`input_ids` and `labels`."""
        return {"input_ids": np.int32, "labels": np.int32}

    @functools.cached_property
    def _names(self) -> LabelNames:
        if self.labels is None:
            raise ValueError("the labels are not known before the training data are read; give labels.")
        return LabelNames(self.labels)

    def learn(self, records: Iterable[Record]) -> Self:
        """Collect the names.

        Raises:
            DataError: no record has labels.
        """
        if self.is_learned:
            return self
        found, first = set[str](), None
        for record in records:
            first = first or record
            add_names(found, as_list(self.value(record, "labels")) or ())
        if first is not None and not found:
            raise self.unsaid(first, "labels")
        return dataclasses.replace(self, labels=sorted_names(found))

    def read(self, record: Record) -> _Item:
        """Words and the numbers of their labels."""
        words = [self.checked_text(record, "tokens", word) for word in self.values(record, "tokens")]
        if self.distil and self.value(record, "labels") is None:
            return _Item(words, [IGNORE] * len(words))
        labels = self.values(record, "labels")
        if len(labels) != len(words):
            raise self.wrong(record, "labels", f"must be {len(words)} labels, one for each word, got {len(labels)}")
        numbers = [self._names.number(label) for label in labels]
        if None in numbers:
            unknown = labels[numbers.index(None)]
            raise self.wrong(record, "labels", f"must each be one of {self._names.listed()}, got {shown(unknown)}")
        return _Item(words, [number for number in numbers if number is not None])

    def encode(self, items: Sequence[_Item], faults: Faults) -> list[list[Example]]:
        """One example each."""
        del faults
        encoded = self.tokenizer(
            [item.words for item in items],
            is_split_into_words=True,
            truncation=True,
            max_length=self.limit,
            return_attention_mask=False,
            return_offsets_mapping=True,  # finds out at once which word each token is from
        )
        rows = zip(encoded["input_ids"], items, strict=True)
        return [
            [{"input_ids": int32(ids), "labels": self._placed(encoded.word_ids(i), item.labels)}]
            for i, (ids, item) in enumerate(rows)
        ]

    def _placed(self, words: Sequence[int | None], labels: Sequence[int]) -> NDArray[np.int32]:
        """The labels of words at their tokens. words: for each token the number of its word."""
        before = [None, *words[:-1]]
        counts = [word is not None and (self.label_all or word != b) for word, b in zip(words, before, strict=True)]
        return int32([labels[w] if c and w is not None else IGNORE for w, c in zip(words, counts, strict=True)])

    def tally(self, examples: Sequence[Example]) -> NDArray[np.int64] | None:
        """How often each label counts, (num_labels,)."""
        found = np.concatenate([example["labels"] for example in examples])
        return np.bincount(found[counting(found)], minlength=len(self._names.names))

    def collate(self, examples: Sequence[Example], *, step: int = 0, micro: int = 0, length_multiple: int = 1) -> Batch:
        """A row each."""
        del step, micro
        ids, mask = self.padded([example["input_ids"] for example in examples], length_multiple)
        labels = pad([example["labels"] for example in examples], IGNORE, length_multiple)  # (rows, seq)
        weights = counting(labels).astype(np.float32)
        classes = len(self._names.names)
        by_class = None if self.evaluation else class_weights(self.class_weights, self.counts, classes)
        if by_class is not None:
            weights = weights * by_class[np.maximum(labels, 0)]
        by_loss = {"labels": weights}
        if self.distil:
            real = mask.astype(np.float32)
            by_loss |= {"logits": real, "hidden": real}
        return Batch({"input_ids": ids, "attention_mask": mask}, {"labels": labels}, by_loss)
