"""Multiple choice: one of several texts, each read together with the question and its context."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike

from distilbert.checks import IGNORE
from distilbert.errors import DataError
from distilbert.tokenization.checks import shown
from distilbert.training.batches import Batch
from distilbert.training.records import Faults, Record
from distilbert.training.tasks.base import Example, Task, as_list, counting, encode_pairs, int32


class _Item(NamedTuple):
    first: str
    seconds: list[str]
    label: int


@dataclass(frozen=True, kw_only=True, eq=False)
class MultipleChoice(Task):
    """Records: `question`, `choices`, `label` (the number of the right one, from 0), and `context` (optional).

    A row holds the context, and then the question and one choice; without a context the question, and then one choice.
    Columns: `input_ids`, the rows of the choices one after the other; `choice_lengths`, the tokens of each; `labels`.

    Attributes:
        num_choices: how many choices every record has.
    """

    name: ClassVar[str] = "multiple-choice"
    FIELDS: ClassVar[tuple[str, ...]] = ("question", "context", "choices", "label")
    LEARNED: ClassVar[tuple[str, ...]] = ("num_choices",)

    num_choices: int | None = None

    @property
    def problem(self) -> str:
        """Multiple choice."""
        return "multiple_choice"

    @property
    def columns(self) -> Mapping[str, DTypeLike]:
        """`input_ids`, `choice_lengths` and `labels`."""
        return {"input_ids": np.int32, "choice_lengths": np.int32, "labels": np.int32}

    def learn(self, records: Iterable[Record]) -> Self:
        """Take the number of choices from the first record that has any.

        Raises:
            DataError: none has.
        """
        if self.is_learned:
            return self
        first = None
        for record in records:
            first = first or record
            if choices := as_list(self.value(record, "choices")):
                return dataclasses.replace(self, num_choices=len(choices))
        raise self.missing(first, "choices") if first is not None else DataError("there are no records.")

    def read(self, record: Record) -> _Item:
        """The texts of the rows, and which is right."""
        question, context = self.text(record, "question"), self.optional_text(record, "context")
        choices = [self.checked_text(record, "choices", choice) for choice in self.values(record, "choices")]
        if len(choices) != self.num_choices:
            detail = f"must be {self.num_choices} texts, as in the records before, got {len(choices)}"
            raise self.wrong(record, "choices", detail)
        seconds = choices if not context else [f"{question} {choice}" for choice in choices]
        return _Item(context or question, seconds, self._label_of(record, len(choices)))

    def _label_of(self, record: Record, choices: int) -> int:
        value: Any = self.value(record, "label")
        if value is None:
            if self.distil:
                return IGNORE
            raise self.missing(record, "label")
        number = int(value) if isinstance(value, str) and value.isdecimal() and value.isascii() else value
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < choices:
            raise self.wrong(record, "label", f"must be a whole number from 0 to {choices - 1}, got {shown(value)}")
        return number

    def encode(self, items: Sequence[_Item], faults: Faults) -> list[list[Example]]:
        """One example each."""
        del faults
        firsts = [item.first for item in items for _ in item.seconds]
        rows = iter(encode_pairs(self.tokenizer, firsts, [s for item in items for s in item.seconds], self.limit))
        return [[self._example([next(rows) for _ in item.seconds], item.label)] for item in items]

    def _example(self, rows: Sequence[Sequence[int]], label: int) -> Example:
        ids = int32([token for row in rows for token in row])
        return {"input_ids": ids, "choice_lengths": int32([len(row) for row in rows]), "labels": int32([label])}

    def length(self, example: Example) -> int:
        """The tokens of the longest choice."""
        return int(example["choice_lengths"].max())

    def collate(self, examples: Sequence[Example], *, step: int = 0, micro: int = 0, length_multiple: int = 1) -> Batch:
        """A row each, of all choices."""
        del step, micro
        rows = [row for e in examples for row in np.split(e["input_ids"], np.cumsum(e["choice_lengths"])[:-1])]
        ids, mask = (x.reshape(len(examples), -1, x.shape[-1]) for x in self.padded(rows, length_multiple))
        labels = np.concatenate([example["labels"] for example in examples])  # (rows,)
        by_loss = {"labels": counting(labels).astype(np.float32)}
        if self.distil:
            by_loss |= {"logits": np.ones(len(labels), np.float32), "hidden": mask.astype(np.float32)}
        return Batch({"input_ids": ids, "attention_mask": mask}, {"labels": labels}, by_loss)
